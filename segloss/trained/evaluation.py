"""Evaluates a split: sums the integer confusion matrices of all images."""

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Float64, Int, Int64

from segloss import hosts, metrics
from segloss.config import MAX_PIXELS, Inference
from segloss.data import Batch, Dataset, InOrder, Loading, iterate_batches
from segloss.data.bands import RGB, Bands
from segloss.data.loading.batches import Source
from segloss.devices import shard
from segloss.trained.inference import predict_labels
from segloss.trained.memory import memory_named
from segloss.trained.shares import Group, share_out
from segloss.trained.tiles import Tile, Tiling, describe_tiles, plan_tiles

# Takes the positions of images in a split, and the confusion matrix of each.
OnConfusions = Callable[[Int64[np.ndarray, " b"], Int[np.ndarray, "b c c"]], None]

_TAKING_MEMORY = ("batch_size", "max_pixels")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The confusion matrix of one split, and a score for each of its images.

    Attributes:
        split: name of the split.
        confusion: pixels of the whole split: rows are labels, columns are predictions.
        image_scores: mean IoU of each image alone, in the order of the split; NaN for
            an image without labelled pixels.
    """

    split: str
    confusion: Int64[np.ndarray, "c c"]
    image_scores: Float64[np.ndarray, " n"]


def evaluation_step(
    variables: dict[str, Any],
    batch: Batch,
    *,
    model: nn.Module,
    inference: Inference,
    num_classes: int,
    bands: Bands = RGB,
) -> jax.Array:
    """Predicts a batch on one device; returns a confusion matrix per image.

    The result is int32 `[b, num_classes, num_classes + 1]`; see `confusion_matrix`.
    """
    predicted = predict_labels(
        variables,
        batch["images"],
        batch["hw"],
        model=model,
        inference=inference,
        bands=bands,
    )
    count = functools.partial(metrics.confusion_matrix, num_classes=num_classes)
    return jax.vmap(count)(predicted, batch["labels"], batch["valid"])


def _with_memory_named(evaluate: Callable[..., Evaluation]) -> Callable:
    """Makes a lack of memory within `evaluate` name the fields to lower."""

    @functools.wraps(evaluate)
    def named(
        step: Callable, variables: Any, dataset: Dataset, split: str, **how: Any
    ) -> Evaluation:
        sizes = {k: how[k] for k in ("size_multiple", "max_pixels") if k in how}

        def parts() -> dict[str, int]:
            tiling = plan_tiles(dataset.max_hw, **sizes)
            rows = how["batch_size"] if tiling.is_whole else 1
            image = np.dtype(dataset.bands.dtype).itemsize * dataset.bands.num_bands
            on_device = max(1, how["batch_size"] // jax.local_device_count())
            return {
                "one batch on the host": rows * math.prod(tiling.canvas_hw) * image,
                "the logits on each device": (
                    on_device * math.prod(tiling.tile_hw) * dataset.num_classes * 4
                ),
            }

        fields = {f"config.evaluate.{x}": how.get(x) for x in _TAKING_MEMORY}
        with memory_named(f"evaluating {split}", parts, fields):
            return evaluate(step, variables, dataset, split, **how)

    return named


@_with_memory_named
def evaluate(
    evaluation_step: Callable,
    replicated_variables: Any,
    dataset: Dataset,
    split: str,
    *,
    batch_size: int,
    size_multiple: int,
    max_pixels: int = MAX_PIXELS,
    num_threads: int = 2,
    on_batch: Callable[[int], None] = lambda images: None,
    on_confusions: OnConfusions = lambda ids, confusions: None,
) -> Evaluation:
    """Computes the confusion matrix of one split at the full size of the images.

    Each image is padded as for prediction, independently of the other images. Images
    with the same padded size share batches, and each size is compiled once. An image
    that is predicted in tiles is counted tile by tile, one tile on each device: a pixel
    counts in the tile that predicts it (see `plan_tiles`). Each image and its labels
    are decoded once. The confusion matrices of single images are not kept.

    The processes of a run share the images (see `share_out`): each one counts its own,
    and all return the evaluation of the whole split. An image shares its device with
    the same images for any number of processes of the same number of devices in all, so
    the counts do not depend on how many processes there are.

    Args:
        evaluation_step: this module's `evaluation_step`, mapped by `map_over_devices`
            over the devices of this process.
        replicated_variables: the model's variables on every device of this process.
        dataset: the dataset with the split.
        split: name of the split.
        batch_size: number of images in a batch, over all devices of the run; rounded up
            to a multiple of the number of devices.
        size_multiple: both sides are padded to a multiple of this number of pixels.
        max_pixels: images with more pixels, after padding, are predicted in tiles.
        num_threads: number of threads that read ahead.
        on_batch: called after each batch with its number of images, and with 0 after
            each batch of tiles. With several processes, the number is that of all of
            them, extrapolated from this one, and it is called with 0 every second while
            this process waits for others. If it raises `hosts.Interrupted`, the
            evaluation ends in all processes.
        on_confusions: called after each batch of this process with the positions of its
            images in the split, and the confusion matrix of each. Images of one padded
            size follow each other, so this is not the order of the split.

    Raises:
        hosts.Interrupted: in all processes, if `on_batch` raises it in one of them.
        BadSampleError: if a sample cannot be used. It is not skipped, even if training
            skips bad samples, because the score would be that of a smaller split.
    """
    source = dataset.source(split)
    sizes = dict(size_multiple=size_multiple, max_pixels=max_pixels)
    tilings = [plan_tiles(hw, **sizes) for hw in _read_sizes(source)]
    shares = share_out(tilings, batch_size=batch_size)
    share = shares[hosts.process_index()]
    step = functools.partial(evaluation_step, replicated_variables)
    num_classes = dataset.num_classes
    total = np.zeros((num_classes, num_classes), np.int64)
    image_scores = np.full(len(source), np.nan)
    with hosts.shared_work(lambda: on_batch(0)) as poll:
        show = _extrapolate(on_batch, share.num_images, len(source))

        def on_tiles() -> None:
            on_batch(0)
            poll()

        for group in share.groups:
            for ids, batch in _load(source, group, dataset, num_threads):
                if group.is_whole:
                    counts = _count(step, batch)[batch["sample_valid"]]
                else:
                    counts = _count_in_tiles(
                        step, batch, tilings[ids[0]], dataset.bands, on_tiles
                    )
                total += counts.sum(axis=0, dtype=np.int64)
                image_scores[ids] = metrics.mean_iou(counts)
                on_confusions(ids, counts)
                show(len(counts))
                poll()
    scores = hosts.exchange_arrays(image_scores[share.ids])
    for other, of_other in zip(shares, scores, strict=True):
        image_scores[other.ids] = of_other
    return Evaluation(split, sum(hosts.exchange_arrays(total)), image_scores)


def _read_sizes(source: Source) -> list[tuple[int, int]]:
    """Returns height and width of each image; each process reads a part of them."""
    index, count = hosts.process_index(), hosts.process_count()
    own = [source.label_hw(i) for i in range(index, len(source), count)]
    sizes = np.empty((len(source), 2), np.int64)
    parts = hosts.exchange_arrays(np.array(own, np.int64).reshape(-1, 2))
    for first, part in enumerate(parts):
        sizes[first::count] = part
    return [(h, w) for h, w in sizes.tolist()]


def _load(
    source: Source, group: Group, dataset: Dataset, num_threads: int
) -> Iterator[tuple[Int64[np.ndarray, " b"], Batch]]:
    """Yields the ids of the images of each batch of a group, and the batch."""
    loading = Loading(
        canvas_hw=group.canvas_hw,
        ignore_label=dataset.ignore_label,
        num_classes=dataset.num_classes,
        bands=dataset.bands,
        # Decoded images wait in memory, which large ones would fill.
        num_threads=num_threads if group.is_whole else min(num_threads, 1),
        prefetch_batches=4 if group.is_whole else 1,
    )
    sampler = InOrder(group.ids, batch_max=group.rows)
    batches = iterate_batches(
        source, sampler, loading, start=0, stop=len(sampler), num_devices=1
    )
    for k, batch in enumerate(batches):
        yield sampler[k], batch


def _extrapolate(
    on_batch: Callable[[int], None], num_own: int, num_images: int
) -> Callable[[int], None]:
    """Returns a function that is called with numbers of this process's images.

    It calls `on_batch` with numbers of images of all processes: it assumes that the
    others have finished the same part of their images.
    """
    done = shown = 0

    def show(images: int) -> None:
        nonlocal done, shown
        done += images
        before, shown = shown, done * num_images // num_own
        on_batch(shown - before)

    return show


def describe_large_images(dataset: Dataset, split: str, inference: Inference) -> str:
    """Returns a line about the images that are predicted in tiles; "" if none is."""
    sizes = dict(size_multiple=inference.size_multiple, max_pixels=inference.max_pixels)
    if plan_tiles(dataset.max_hw, **sizes).is_whole:
        return ""
    source = dataset.source(split)
    counts = collections.Counter(
        plan_tiles(source.label_hw(i), **sizes).cut_hw for i in range(len(source))
    )
    line = describe_tiles(counts, max_pixels=inference.max_pixels)
    return f"{split}: {line}" if line else ""


def _count_in_tiles(
    step: Callable,
    image: Batch,
    tiling: Tiling,
    bands: Bands,
    on_tiles: Callable[[], None],
) -> Int64[np.ndarray, "1 c c"]:
    """Returns the confusion matrix of a batch of one image, summed over its tiles.

    `step` is the mapped `evaluation_step` with variables; `on_tiles` is called after
    each batch of tiles.
    """
    rows, total = jax.local_device_count(), 0
    for start in range(0, len(tiling.tiles), rows):
        tiles = tiling.tiles[start : start + rows]
        counts = _count(step, _cut_tiles(image, tiling, tiles, rows, bands))
        total += counts.sum(axis=0, keepdims=True, dtype=np.int64)
        on_tiles()
    return total


def _cut_tiles(
    image: Batch, tiling: Tiling, tiles: Sequence[Tile], rows: int, bands: Bands
) -> Batch:
    """Cuts tiles from a batch of one image into a batch with `rows` rows.

    Rows without a tile are padding. Valid pixels are those for which the prediction of
    the tile is used, and not that of an overlapping tile.
    """
    shape, (h, w) = (rows, *tiling.tile_hw), tiling.tile_hw
    batch = Batch(
        images=np.full((*shape, bands.num_bands), bands.pad),
        labels=np.zeros(shape, image["labels"].dtype),
        valid=np.zeros(shape, bool),
        sample_valid=np.arange(rows) < len(tiles),
        hw=np.full((rows, 2), tiling.tile_hw, np.int32),
    )
    for row, tile in enumerate(tiles):
        top, left = tile.corner
        outer = 0, slice(top, top + h), slice(left, left + w)
        batch["images"][row] = image["images"][outer]
        batch["labels"][row] = image["labels"][outer]
        batch["valid"][row][tile.kept_inside] = image["valid"][0][tile.kept]
        batch["hw"][row] = tiling.hw_inside(tile)
    return batch


def _count(step: Callable, batch: Batch) -> Int[np.ndarray, "b c c"]:
    counts = np.asarray(step(shard(batch)))
    # A model always predicts a class, so the last column is empty.
    return counts.reshape(-1, *counts.shape[2:])[..., :-1]

"""Evaluates a split: sums the integer confusion matrices of all images."""

import collections
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Float64, Int, Int64

from segloss import metrics
from segloss.config import MAX_PIXELS, Inference
from segloss.data import Batch, Dataset, InOrder, Loading, iterate_batches
from segloss.data.bands import RGB, Bands
from segloss.devices import shard
from segloss.trained.inference import predict_labels
from segloss.trained.tiles import Tile, Tiling, describe_tiles, plan_tiles

# Takes the positions of images in a split, and the confusion matrix of each.
OnConfusions = Callable[[Int64[np.ndarray, " b"], Int[np.ndarray, "b c c"]], None]


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

    Args:
        evaluation_step: this module's `evaluation_step`, mapped by `map_over_devices`.
        replicated_variables: the model's variables on every device.
        dataset: the dataset with the split.
        split: name of the split.
        batch_size: number of images in a batch, over all devices.
        size_multiple: both sides are padded to a multiple of this number of pixels.
        max_pixels: images with more pixels, after padding, are predicted in tiles.
        num_threads: number of threads that read ahead.
        on_batch: called after each batch with its number of images, and with 0 after
            each batch of tiles.
        on_confusions: called after each batch with the positions of its images in the
            split, and the confusion matrix of each. Images of one padded size follow
            each other, so this is not the order of the split.

    Raises:
        BadSampleError: if a sample cannot be used. It is not skipped, even if training
            skips bad samples, because the score would be that of a smaller split.
    """
    source = dataset.source(split)
    sizes = dict(size_multiple=size_multiple, max_pixels=max_pixels)
    tilings = [plan_tiles(source.label_hw(i), **sizes) for i in range(len(source))]
    groups = collections.defaultdict(list)
    for i, tiling in enumerate(tilings):
        groups[tiling.canvas_hw, tiling.is_whole].append(i)
    step = functools.partial(evaluation_step, replicated_variables)
    num_devices = jax.local_device_count()
    num_classes = dataset.num_classes
    total = np.zeros((num_classes, num_classes), np.int64)
    image_scores = np.full(len(source), np.nan)
    for (canvas_hw, whole), ids in groups.items():
        sampler = InOrder(np.array(ids), batch_max=batch_size if whole else 1)
        batches = iterate_batches(
            source,
            sampler,
            Loading(
                canvas_hw=canvas_hw,
                ignore_label=dataset.ignore_label,
                num_classes=num_classes,
                bands=dataset.bands,
                # Decoded images wait in memory, which large ones would fill.
                num_threads=num_threads if whole else min(num_threads, 1),
                prefetch_batches=4 if whole else 1,
            ),
            start=0,
            stop=len(sampler),
            num_devices=num_devices if whole else 1,
        )
        for k, batch in enumerate(batches):
            if whole:
                counts = _count(step, batch)[batch["sample_valid"]]
            else:
                (i,) = sampler[k]
                counts = _count_in_tiles(
                    step, batch, tilings[i], dataset.bands, on_batch
                )
            total += counts.sum(axis=0, dtype=np.int64)
            image_scores[sampler[k]] = metrics.mean_iou(counts)
            on_confusions(sampler[k], counts)
            on_batch(len(counts))
    return Evaluation(split, total, image_scores)


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
    on_tiles: Callable[[int], None],
) -> Int64[np.ndarray, "1 c c"]:
    """Returns the confusion matrix of a batch of one image, summed over its tiles.

    `step` is the mapped `evaluation_step` with variables; `on_tiles` is called with 0
    after each batch of tiles.
    """
    rows, total = jax.local_device_count(), 0
    for start in range(0, len(tiling.tiles), rows):
        tiles = tiling.tiles[start : start + rows]
        counts = _count(step, _cut_tiles(image, tiling, tiles, rows, bands))
        total += counts.sum(axis=0, keepdims=True, dtype=np.int64)
        on_tiles(0)
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

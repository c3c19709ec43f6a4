"""Batches of one static shape, loaded by grain; only what was chosen is decoded."""

from collections.abc import Iterator
from typing import Any, NotRequired, Protocol, TypedDict, runtime_checkable

import grain
import numpy as np
from jaxtyping import Bool, Float16, Int, Int64, UInt8

from segloss.data.augment import PAD_RGB
from segloss.data.distances import signed_distances


class Batch(TypedDict):
    """One batch of fixed shape; `valid` and `sample_valid` say what of it is real."""

    images: UInt8[np.ndarray, "b h w 3"]
    labels: UInt8[np.ndarray, "b h w"]
    valid: Bool[np.ndarray, "b h w"]
    sample_valid: Bool[np.ndarray, " b"]
    # Only where the loss asks for them.
    distances: NotRequired[Float16[np.ndarray, "b h w c"]]


@runtime_checkable
class Source(Protocol):
    """Of `{"image": uint8 [h, w, 3], "labels": uint8 [h, w], "stem": str}`."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> dict[str, Any]: ...


@runtime_checkable
class Sampler(Protocol):
    """What chooses the samples of batch k: see `segloss.data.samplers`."""

    batch_max: int

    def __getitem__(self, k: int) -> Int64[np.ndarray, " b"]: ...


class InOrder:
    """The given samples once, in order, the last batch short: what evaluation reads."""

    def __init__(self, ids: Int64[np.ndarray, " n"], *, batch_max: int):
        self.ids = ids
        self.batch_max = batch_max

    def __len__(self) -> int:
        return -(-len(self.ids) // self.batch_max)

    def __getitem__(self, k: int) -> Int64[np.ndarray, " b"]:
        return self.ids[k * self.batch_max : (k + 1) * self.batch_max]


def round_up(hw: tuple[int, int], multiple: int) -> tuple[int, int]:
    """Height and width of the smallest canvas whose sides `multiple` divides."""
    return -(-hw[0] // multiple) * multiple, -(-hw[1] // multiple) * multiple


def put_on_canvas(
    image: UInt8[np.ndarray, "h w 3"], canvas_hw: tuple[int, int]
) -> UInt8[np.ndarray, "H W 3"]:
    """The image in the upper left corner, the mean colour beside it."""
    canvas = np.empty((*canvas_hw, 3), np.uint8)
    canvas[:] = PAD_RGB
    canvas[: image.shape[0], : image.shape[1]] = image
    return canvas


def load_batch(
    source: Source,
    ids: Int[np.ndarray, " n"],
    *,
    batch_size: int,
    canvas_hw: tuple[int, int],
    ignore_label: int,
    distance_classes: int | None = None,
) -> Batch:
    """Reads the samples `ids` onto a canvas of fixed size, the rest padding.

    Args:
        source: images with labels.
        ids: samples to read, at most `batch_size`.
        batch_size: samples in the batch; those past `len(ids)` are not valid.
        canvas_hw: height and width of the canvas; images lie in its upper left corner.
        ignore_label: label of pixels that do not count.
        distance_classes: how many classes to make signed distances of; None makes none.

    Raises:
        ValueError: if an image is larger than the canvas; it names the sample.
    """
    images = np.empty((batch_size, *canvas_hw, 3), np.uint8)
    images[len(ids) :] = PAD_RGB
    labels = np.full((batch_size, *canvas_hw), ignore_label, np.uint8)
    distances = np.zeros((*labels.shape, distance_classes or 0), np.float16)
    for row, i in enumerate(ids):
        sample = source[int(i)]
        h, w = sample["labels"].shape
        if h > canvas_hw[0] or w > canvas_hw[1]:
            raise ValueError(
                f"load_batch: sample {sample['stem']!r} is {h}x{w}, larger than the "
                f"canvas {canvas_hw[0]}x{canvas_hw[1]}."
            )
        images[row] = put_on_canvas(sample["image"], canvas_hw)
        labels[row, :h, :w] = sample["labels"]
        if distance_classes is not None:
            distances[row, :h, :w] = signed_distances(
                sample["labels"],
                sample["labels"] != ignore_label,
                num_classes=distance_classes,
            )
    batch = Batch(
        images=images,
        labels=labels,
        valid=labels != ignore_label,
        sample_valid=np.arange(batch_size) < len(ids),
    )
    if distance_classes is not None:
        batch["distances"] = distances
    return batch


def iterate_batches(
    source: Source,
    sampler: Sampler,
    *,
    start: int,
    stop: int,
    num_devices: int,
    canvas_hw: tuple[int, int],
    ignore_label: int,
    distance_classes: int | None = None,
    num_threads: int = 2,
    prefetch_batches: int = 4,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Batches `start` to `stop` of a sampler, read ahead in threads.

    The batch is padded to a multiple of `num_devices`, which counts those of all
    processes, and each process reads its own share of the rows. The sampler is a pure
    function of k, so processes agree without talking and `start` is all that resuming
    needs.
    """
    rows_per_device = -(-sampler.batch_max // num_devices)
    share = rows_per_device * num_devices // process_count
    first = process_index * share

    def load(k: int) -> Batch:
        return load_batch(
            source,
            sampler[k][first : first + share],
            batch_size=share,
            canvas_hw=canvas_hw,
            ignore_label=ignore_label,
            distance_classes=distance_classes,
        )

    options = grain.ReadOptions(
        num_threads=num_threads, prefetch_buffer_size=prefetch_batches
    )
    batches = grain.MapDataset.range(start, stop).map(load)
    return iter(batches.to_iter_dataset(options))

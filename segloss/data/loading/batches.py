"""One batch of fixed shape, read from the samples that were chosen."""

from typing import Any, NamedTuple, NotRequired, Protocol, TypedDict, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float16, Int, UInt8

from segloss.data.colours import PAD_RGB
from segloss.data.loading.canvases import Canvases
from segloss.data.loading.distances import signed_distances


class Batch(TypedDict):
    """One batch of fixed shape; `valid` and `sample_valid` are False for padding."""

    images: UInt8[np.ndarray, "b h w 3"]
    labels: UInt8[np.ndarray, "b h w"]
    valid: Bool[np.ndarray, "b h w"]
    sample_valid: Bool[np.ndarray, " b"]
    # Only if the loss needs them.
    distances: NotRequired[Float16[np.ndarray, "b h w c"]]
    # True for bad samples, which are also not valid; only if bad samples are skipped.
    sample_skipped: NotRequired[Bool[np.ndarray, " b"]]


class Memory(NamedTuple):
    """Pools of arrays for batches of one shape."""

    images: Canvases
    labels: Canvases
    valid: Canvases

    @classmethod
    def of(
        cls, batch_size: int, canvas_hw: tuple[int, int], ignore_label: int
    ) -> "Memory":
        shape = (batch_size, *canvas_hw)
        return cls(
            Canvases((*shape, 3), 0), Canvases(shape, ignore_label), Canvases(shape, 0)
        )


class BadSampleError(ValueError):
    """A sample that cannot be used; the message names it and its split."""


@runtime_checkable
class Source(Protocol):
    """Random access to samples.

    `source[i]` is `{"image": uint8 [h, w, 3], "labels": uint8 [h, w], "stem": str}`.
    Indexing raises `BadSampleError` if a sample cannot be decoded.
    """

    split: str

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> dict[str, Any]: ...


def round_up(hw: tuple[Any, Any], multiple: int) -> tuple[Any, Any]:
    """Rounds height and width up to multiples of `multiple`.

    They are integers, or symbolic dimensions when a model is exported for any size.

    >>> round_up((30, 64), 32)
    (32, 64)
    """
    return -(-hw[0] // multiple) * multiple, -(-hw[1] // multiple) * multiple


def put_on_canvas(
    image: UInt8[np.ndarray, "h w 3"], canvas_hw: tuple[int, int]
) -> UInt8[np.ndarray, "H W 3"]:
    """Places an image in the upper left corner, padded with ImageNet's mean colour.

    >>> import numpy as np
    >>> put_on_canvas(np.zeros((1, 1, 3), np.uint8), (1, 2)).tolist()
    [[[0, 0, 0], [124, 116, 104]]]
    """
    canvas = np.empty((*canvas_hw, 3), np.uint8)
    _fill(canvas, image)
    return canvas


def _fill(
    canvas: UInt8[np.ndarray, "H W 3"], image: UInt8[np.ndarray, "h w 3"]
) -> None:
    h, w, _ = image.shape
    canvas[:h, :w] = image
    # Copies whole rows of bytes, since NumPy broadcasts groups of three bytes slowly.
    row = np.tile(np.array(PAD_RGB, np.uint8), canvas.shape[1])
    canvas[:h, w:] = row[3 * w :].reshape(-1, 3)
    canvas[h:] = row.reshape(-1, 3)


def load_batch(
    source: Source,
    ids: Int[np.ndarray, " n"],
    *,
    batch_size: int,
    canvas_hw: tuple[int, int],
    ignore_label: int,
    num_classes: int | None = None,
    distance_classes: int | None = None,
) -> Batch:
    """Reads the samples `ids` into a batch of fixed shape; the rest is padding.

    Args:
        source: samples with images and labels.
        ids: samples to read, at most `batch_size`.
        batch_size: number of rows of the batch; rows from `len(ids)` on are not valid.
        canvas_hw: height and width of the batch. Images are placed in the upper left
            corner.
        ignore_label: label of pixels that do not count.
        num_classes: all other labels must be less than this; None skips the check.
        distance_classes: number of classes for which to compute signed distances; None
            computes none.

    Raises:
        BadSampleError: if a sample cannot be decoded or is larger than the canvas, or
            its labels are out of range or differ from the image in size.

    >>> import numpy as np
    >>> class Source(list):
    ...     split = "train"
    >>> image, labels = np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), np.uint8)
    >>> source = Source([{"image": image, "labels": labels, "stem": "a"}])
    >>> batch = load_batch(
    ...     source, np.array([0]), batch_size=2, canvas_hw=(2, 3), ignore_label=255
    ... )
    >>> batch["images"].shape, batch["sample_valid"].tolist()
    ((2, 2, 3, 3), [True, False])
    """
    return load_into(
        source,
        ids,
        Memory.of(batch_size, canvas_hw, ignore_label),
        ignore_label=ignore_label,
        num_classes=num_classes,
        distance_classes=distance_classes,
        skip_bad=False,
    )[0]


def load_into(
    source: Source,
    ids: Int[np.ndarray, " n"],
    memory: Memory,
    *,
    ignore_label: int,
    num_classes: int | None,
    distance_classes: int | None,
    skip_bad: bool,
) -> tuple[Batch, list[str]]:
    """Returns the batch, and a message for each sample that it skips."""
    images, labels, valid = (canvases.take(len(ids)) for canvases in memory)
    valid = valid.view(bool)
    batch_size, canvas_hw = len(labels), labels.shape[1:]
    distances = np.zeros((*labels.shape, distance_classes or 0), np.float16)
    sample_valid = np.zeros(batch_size, bool)
    faults = []
    for row, i in enumerate(ids):
        try:
            sample = _read(source, int(i), canvas_hw, ignore_label, num_classes)
        except BadSampleError as error:
            if not skip_bad:
                raise
            faults.append(str(error))
            continue
        h, w = sample["labels"].shape
        _fill(images[row], sample["image"])
        labels[row, :h, :w] = sample["labels"]
        valid[row, :h, :w] = sample["labels"] != ignore_label
        sample_valid[row] = True
        if distance_classes is not None:
            distances[row, :h, :w] = signed_distances(
                sample["labels"],
                valid[row, :h, :w],
                num_classes=distance_classes,
            )
    batch = Batch(images=images, labels=labels, valid=valid, sample_valid=sample_valid)
    if distance_classes is not None:
        batch["distances"] = distances
    if skip_bad:
        batch["sample_skipped"] = (np.arange(batch_size) < len(ids)) & ~sample_valid
    return batch, faults


def _read(
    source: Source,
    i: int,
    canvas_hw: tuple[int, int],
    ignore_label: int,
    num_classes: int | None,
) -> dict[str, Any]:
    """Reads sample i and checks that it fits into a batch."""
    sample = source[i]
    image, labels = sample["image"], sample["labels"]
    if image.shape != (*labels.shape, 3):
        fault = f"must be RGB and match its labels {labels.shape}, got {image.shape}"
    elif labels.shape[0] > canvas_hw[0] or labels.shape[1] > canvas_hw[1]:
        size, canvas = ("x".join(map(str, hw)) for hw in (labels.shape, canvas_hw))
        fault = f"is {size}, larger than the canvas {canvas}"
    elif num_classes and ((labels >= num_classes) & (labels != ignore_label)).any():
        stray = [int(x) for x in np.unique(labels) if x >= num_classes]
        stray = [x for x in stray if x != ignore_label]
        fault = f"has labels {stray}; must be < {num_classes} or {ignore_label}"
    else:
        return sample
    raise BadSampleError(
        f"sample {sample['stem']!r} of split {source.split!r} {fault}."
    )

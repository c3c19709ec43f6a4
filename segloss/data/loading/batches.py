"""Reads chosen samples into one batch of fixed shape."""

import dataclasses
from typing import Any, NamedTuple, NotRequired, Protocol, TypedDict, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float16, Int, Int32, Shaped, UInt

from segloss.data.bands import RGB, Bands, label_dtype
from segloss.data.loading.canvases import Canvases
from segloss.data.loading.distances import signed_distances
from segloss.data.loading.window import SCALE_ONE, Window
from segloss.data.loading.windows import Windows
from segloss.errors import SeglossError

ON_BAD_SAMPLE = ("raise", "skip")


class Batch(TypedDict):
    """One batch of fixed shape.

    `valid` is False for padding and void pixels, `sample_valid` for rows without a
    sample. Images have the bands and the type of `Loading.bands`.
    """

    images: Shaped[np.ndarray, "b h w n"]
    labels: UInt[np.ndarray, "b h w"]
    valid: Bool[np.ndarray, "b h w"]
    sample_valid: Bool[np.ndarray, " b"]
    # Height and width of the image, or of its window, without padding. The window is
    # the part of the image that a random scale and crop needs.
    hw: Int32[np.ndarray, "b 2"]
    # Only for training.
    window: NotRequired[Window]
    # Only if the loss needs them.
    distances: NotRequired[Float16[np.ndarray, "b h w c"]]
    # True for bad samples, which are also not valid; only if bad samples are skipped.
    sample_skipped: NotRequired[Bool[np.ndarray, " b"]]
    # Of one device: the number of the signal that asks to stop, or 0; only if a run has
    # several processes.
    stop_signal: NotRequired[Int32[np.ndarray, ""]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loading:
    """How samples become batches.

    Attributes:
        canvas_hw: height and width of a batch's arrays. Images, or their windows, are
            placed in the upper left corner.
        ignore_label: label of pixels that do not count.
        num_classes: all other labels must be less than this; None skips the check.
        bands: the bands of the images.
        windows: draws the window, the part that a random crop needs, of each image that
            a batch holds; None takes whole images.
        distances: True adds the signed distances that `boundary_loss` needs.
        num_threads: number of reading threads, per worker if there are any; 0 reads a
            batch only when it is requested.
        num_workers: number of reading processes; 0 reads in this process. Workers are
            spawned, which takes seconds and requires a main module without side effects
            on import. They stop when the iterator is closed.
        prefetch_batches: number of batches to read ahead, per worker if there are any.
        on_bad_sample: "raise" raises `BadSampleError` if a sample cannot be decoded, or
            its size or labels are invalid. "skip" marks it as not valid, warns about it
            once, and adds `sample_skipped` to the batches. A batch with a skipped
            sample may lack classes that the sampler promised.

    Raises:
        ValueError: at construction, if `on_bad_sample` is unknown, or `distances` is
            True without `num_classes`.
    """

    canvas_hw: tuple[int, int]
    ignore_label: int
    num_classes: int | None = None
    bands: Bands = RGB
    windows: Windows | None = None
    distances: bool = False
    num_threads: int = 2
    num_workers: int = 0
    prefetch_batches: int = 4
    on_bad_sample: str = "raise"

    def __post_init__(self) -> None:
        if self.on_bad_sample not in ON_BAD_SAMPLE:
            raise SeglossError(
                "Loading: on_bad_sample must be 'raise' or 'skip', "
                f"got {self.on_bad_sample!r}."
            )
        if self.distances and self.num_classes is None:
            raise SeglossError("Loading: distances need num_classes, got None.")


class Memory(NamedTuple):
    """Pools from which the large arrays of batches of one shape are taken."""

    images: Canvases
    labels: Canvases
    valid: Canvases

    @classmethod
    def of(cls, batch_size: int, loading: Loading) -> "Memory":
        shape, bands = (batch_size, *loading.canvas_hw), loading.bands
        of_labels = label_dtype(loading.num_classes or 0, loading.ignore_label)
        return cls(
            Canvases((*shape, bands.num_bands), 0, bands.dtype),
            Canvases(shape, loading.ignore_label, of_labels),
            Canvases(shape, 0),
        )


class BadSampleError(SeglossError):
    """A sample cannot be decoded, or its size or labels are invalid.

    The message names the sample and its split.
    """


@runtime_checkable
class Source(Protocol):
    """Random access to samples.

    `source[i]` is `{"image": [h, w, n], "labels": [h, w], "stem": str}`: an image with
    the bands of the dataset, and labels that are uint8 or uint16. Indexing raises
    `BadSampleError` if a sample cannot be decoded. A source may also have a method
    `opened(i)`, which returns the same sample with an image that is decoded only when
    it is sliced.
    """

    split: str

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> dict[str, Any]: ...


def round_up(hw: tuple[Any, Any], multiple: int) -> tuple[Any, Any]:
    """Rounds height and width up to multiples of `multiple`.

    Height and width are integers, or JAX's symbolic dimensions when a model is exported
    for any size.

    >>> round_up((30, 64), 32)
    (32, 64)
    """
    return -(-hw[0] // multiple) * multiple, -(-hw[1] // multiple) * multiple


def put_on_canvas(
    image: Shaped[np.ndarray, "h w n"],
    canvas_hw: tuple[int, int],
    bands: Bands = RGB,
) -> Shaped[np.ndarray, "H W n"]:
    """Pads an image at the bottom and right with the mean of its bands to `canvas_hw`.

    Values that are not finite are replaced by the mean, too.

    >>> import numpy as np
    >>> put_on_canvas(np.zeros((1, 1, 3), np.uint8), (1, 2)).tolist()
    [[[0, 0, 0], [124, 116, 104]]]
    """
    canvas = np.empty((*canvas_hw, bands.num_bands), bands.dtype)
    _fill(canvas, image, bands)
    return canvas


def _fill(
    canvas: Shaped[np.ndarray, "H W n"],
    image: Shaped[np.ndarray, "h w n"],
    bands: Bands,
) -> None:
    h, w, n = image.shape
    canvas[:h, :w] = image
    if canvas.dtype.kind == "f":
        np.copyto(canvas[:h, :w], bands.pad, where=~np.isfinite(image))
    # Copies whole rows of values, since NumPy broadcasts groups of three bytes slowly.
    row = np.tile(bands.pad, canvas.shape[1])
    canvas[:h, w:] = row[n * w :].reshape(-1, n)
    canvas[h:] = row.reshape(-1, n)


def load_batch(
    source: Source,
    ids: Int[np.ndarray, " n"],
    loading: Loading,
    *,
    batch_size: int,
    batch: int = 0,
    owed: Bool[np.ndarray, "n c"] | None = None,
) -> Batch:
    """Reads the samples `ids` into a batch of fixed shape; the rest is padding.

    Args:
        source: samples with images and labels.
        ids: ids of the samples to read, at most `batch_size`.
        loading: how samples become batches; `on_bad_sample` is ignored, and a bad
            sample raises.
        batch_size: number of rows of the batch; rows from `len(ids)` on are not valid.
        batch: index of the batch; part of the seed of random windows.
        owed: True for the classes that the window of each sample must keep; None keeps
            none.

    Raises:
        BadSampleError: if a sample cannot be decoded or is larger than the canvas, or
            its labels are out of range or differ from the image in size.

    >>> import numpy as np
    >>> from segloss.data import Loading
    >>> class Source(list):
    ...     split = "train"
    >>> image, labels = np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), np.uint8)
    >>> source = Source([{"image": image, "labels": labels, "stem": "a"}])
    >>> loading = Loading(canvas_hw=(2, 3), ignore_label=255)
    >>> batch = load_batch(source, np.array([0]), loading, batch_size=2)
    >>> batch["images"].shape, batch["sample_valid"].tolist()
    ((2, 2, 3, 3), [True, False])
    """
    memory = Memory.of(batch_size, loading)
    chosen = Chosen(ids, owed, batch, first_row=0)
    loading = dataclasses.replace(loading, on_bad_sample="raise")
    return load_into(memory, source, chosen, loading)[0]


class Chosen(NamedTuple):
    """The samples of a batch that one process reads.

    Attributes:
        ids: ids of the samples.
        owed: True for the classes that the random window of each sample must keep;
            None if it need not keep any.
        batch: index of the batch.
        first_row: row of the first of these samples in the batch of all processes.
    """

    ids: Int[np.ndarray, " n"]
    owed: Bool[np.ndarray, "n c"] | None
    batch: int
    first_row: int


def load_into(
    memory: Memory, source: Source, chosen: Chosen, loading: Loading
) -> tuple[Batch, list[str]]:
    """Reads `chosen` into a batch whose large arrays are taken from `memory`.

    Returns the batch, and a message for each bad sample that is skipped.
    """
    ids = chosen.ids
    images, labels, valid = (canvases.take(len(ids)) for canvases in memory)
    valid = valid.view(bool)
    rows, canvas_hw = len(labels), labels.shape[1:]
    hw = np.tile(np.array(canvas_hw, np.int32), (rows, 1))
    sample_valid = np.zeros(rows, bool)
    batch = Batch(
        images=images, labels=labels, valid=valid, sample_valid=sample_valid, hw=hw
    )
    if loading.distances:
        batch["distances"] = np.zeros((*labels.shape, loading.num_classes), np.float16)
    if loading.windows is not None:
        batch["window"] = Window(
            scale=np.full(rows, SCALE_ONE, np.int32),
            offset=np.zeros((rows, 2), np.int32),
            start=np.zeros((rows, 2), np.int32),
            hw=hw,
        )
    faults = []
    for row in range(len(ids)):
        try:
            image, of_image, window = _read(source, chosen, row, loading)
        except BadSampleError as error:
            if loading.on_bad_sample == "raise":
                raise
            faults.append(str(error))
            continue
        if loading.windows is not None:
            for field, value in zip(batch["window"], window, strict=True):
                field[row] = value
        h, w = hw[row] = window.hw
        _fill(images[row], image, loading.bands)
        labels[row, :h, :w] = of_image[window.slices]
        valid[row, :h, :w] = labels[row, :h, :w] != loading.ignore_label
        sample_valid[row] = True
        if loading.distances:
            # Of the whole image: boundaries outside the window count.
            distances = signed_distances(
                of_image,
                of_image != loading.ignore_label,
                num_classes=loading.num_classes,
            )
            batch["distances"][row, :h, :w] = distances[window.slices]
    if loading.on_bad_sample == "skip":
        batch["sample_skipped"] = (np.arange(rows) < len(ids)) & ~sample_valid
    return batch, faults


def _read(
    source: Source, chosen: Chosen, row: int, loading: Loading
) -> tuple[Shaped[np.ndarray, "_ _ n"], UInt[np.ndarray, "h w"], Window]:
    """Reads sample `chosen.ids[row]` and draws its window.

    Returns the image in the window, the labels of the whole image, and the window.
    """
    i = int(chosen.ids[row])
    sample = getattr(source, "opened", source.__getitem__)(i)
    image, labels = sample["image"], sample["labels"]
    ignore_label, num_classes = loading.ignore_label, loading.num_classes
    max_hw = labels.shape if loading.windows is not None else loading.canvas_hw
    if image.shape != (*labels.shape, loading.bands.num_bands):
        fault = (
            f"must be {loading.bands} and match its labels {labels.shape}, "
            f"got {image.shape}"
        )
    elif labels.shape[0] > max_hw[0] or labels.shape[1] > max_hw[1]:
        size, canvas = ("x".join(map(str, hw)) for hw in (labels.shape, max_hw))
        fault = f"is {size}, larger than the canvas {canvas}"
    elif num_classes and _has_stray(labels, num_classes, ignore_label):
        stray = [int(x) for x in np.unique(labels) if x >= num_classes]
        stray = [x for x in stray if x != ignore_label]
        fault = f"has labels {stray}; must be < {num_classes} or {ignore_label}"
    else:
        window = _draw(loading, chosen, row, labels)
        if all(n <= most for n, most in zip(window.hw, loading.canvas_hw, strict=True)):
            return image[window.slices], labels, window
        size, canvas = ("x".join(map(str, hw)) for hw in (window.hw, loading.canvas_hw))
        fault = f"needs a window of {size}, larger than the canvas {canvas}"
    raise BadSampleError(
        f"sample {sample['stem']!r} of split {source.split!r} {fault}."
    )


def _draw(
    loading: Loading, chosen: Chosen, row: int, labels: UInt[np.ndarray, "h w"]
) -> Window:
    if loading.windows is None:
        return Window(SCALE_ONE, (0, 0), (0, 0), labels.shape)
    owed = np.zeros(0, bool) if chosen.owed is None else chosen.owed[row]
    place = {"batch": chosen.batch, "row": chosen.first_row + row}
    return loading.windows.draw(labels, owed, **place)[0]


def _has_stray(
    labels: UInt[np.ndarray, "h w"], num_classes: int, ignore_label: int
) -> bool:
    beyond = labels >= num_classes
    return bool(beyond.any() and (labels[beyond] != ignore_label).any())

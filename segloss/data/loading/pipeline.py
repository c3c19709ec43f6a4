"""Loads batches of static shape with grain; decodes only the chosen samples."""

import contextlib
import functools
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Generator, Iterator
from typing import Any, NamedTuple, NotRequired, Protocol, TypedDict, runtime_checkable

import grain
import numpy as np
from absl import flags
from jaxtyping import Bool, Float16, Int, Int64, UInt8

from segloss.data.colours import PAD_RGB
from segloss.data.loading.canvases import Canvases
from segloss.data.loading.distances import signed_distances

ON_BAD_SAMPLE = ("raise", "skip")


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


class _Memory(NamedTuple):
    """Pools of arrays for batches of one shape."""

    images: Canvases
    labels: Canvases
    valid: Canvases

    @classmethod
    def of(
        cls, batch_size: int, canvas_hw: tuple[int, int], ignore_label: int
    ) -> "_Memory":
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


@runtime_checkable
class Sampler(Protocol):
    """Chooses the samples of batch k; see `segloss.data.samplers`."""

    batch_max: int

    def __getitem__(self, k: int) -> Int64[np.ndarray, " b"]: ...


class InOrder:
    """Sampler for evaluation: each of `ids` once and in order, the last batch short.

    >>> import numpy as np
    >>> batches = InOrder(np.arange(5), batch_max=2)
    >>> [batches[k].tolist() for k in range(len(batches))]
    [[0, 1], [2, 3], [4]]
    """

    def __init__(self, ids: Int64[np.ndarray, " n"], *, batch_max: int):
        self.ids = ids
        self.batch_max = batch_max

    def __len__(self) -> int:
        return -(-len(self.ids) // self.batch_max)

    def __getitem__(self, k: int) -> Int64[np.ndarray, " b"]:
        return self.ids[k * self.batch_max : (k + 1) * self.batch_max]


def round_up(hw: tuple[Any, Any], multiple: int) -> tuple[Any, Any]:
    """Rounds height and width up to multiples of `multiple`.

    They are integers, or symbolic dimensions when a model is exported for any size.

    >>> round_up((30, 64), 32)
    (32, 64)
    """
    return -(-hw[0] // multiple) * multiple, -(-hw[1] // multiple) * multiple


def count_rows(batch_max: int, num_devices: int) -> int:
    """Rows that a batch has on the devices: `batch_max` rounded up to a multiple.

    >>> count_rows(9, num_devices=8)
    16
    """
    return -(-batch_max // num_devices) * num_devices


def describe_unused_rows(batch_max: int, num_devices: int) -> str | None:
    """One line about rows that no batch can fill; None if there are none.

    >>> describe_unused_rows(8, num_devices=8) is None
    True
    """
    rows = count_rows(batch_max, num_devices)
    unused = rows - batch_max
    if not unused:
        return None
    fitting = " or ".join(str(n) for n in (rows - num_devices, rows) if n)
    return (
        f"sampler.batch_max={batch_max} on {num_devices} devices: every step computes "
        f"{rows} rows, and {unused} of them never {'hold' if unused > 1 else 'holds'} "
        f"an image; batch_max={fitting} has no such rows"
    )


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
    return _load(
        source,
        ids,
        _Memory.of(batch_size, canvas_hw, ignore_label),
        ignore_label=ignore_label,
        num_classes=num_classes,
        distance_classes=distance_classes,
        skip_bad=False,
    )[0]


def _load(
    source: Source,
    ids: Int[np.ndarray, " n"],
    memory: _Memory,
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


def iterate_batches(
    source: Source,
    sampler: Sampler,
    *,
    start: int,
    stop: int,
    num_devices: int,
    canvas_hw: tuple[int, int],
    ignore_label: int,
    num_classes: int | None = None,
    distance_classes: int | None = None,
    num_threads: int = 2,
    num_workers: int = 0,
    prefetch_batches: int = 4,
    on_bad_sample: str = "raise",
    process_index: int = 0,
    process_count: int = 1,
) -> Generator[Batch, None, None]:
    """Yields batches `start` to `stop - 1` of a sampler, prefetched by grain.

    Batches are padded to a multiple of `num_devices`, the number of devices of all
    processes, and each process reads its own share of the rows. The sampler is a pure
    function of k, so processes agree without communication, and resuming needs only
    `start`. The number of threads and workers does not affect the batches.

    Args:
        source: samples with images and labels; must be picklable if there are workers.
        sampler: chooses the samples of batch k; must be picklable if there are workers.
        start: index of the first batch.
        stop: index after the last batch.
        num_devices: number of devices of all processes.
        canvas_hw: height and width of the batches; see `load_batch`.
        ignore_label: label of pixels that do not count.
        num_classes: all other labels must be less than this; None skips the check.
        distance_classes: number of classes for which to compute signed distances; None
            computes none.
        num_threads: number of reading threads, per worker if there are any; 0 reads a
            batch only when it is requested.
        num_workers: number of reading processes; 0 reads in this process. Workers are
            spawned, which takes seconds and requires a main module without side effects
            on import. They stop when the iterator is closed.
        prefetch_batches: number of batches to read ahead, per worker if there are any.
        on_bad_sample: "raise" stops at a bad sample. "skip" marks it as not valid,
            warns about it once, and adds `sample_skipped` to the batches. A batch with
            a skipped sample may lack classes that the sampler promised.
        process_index: index of this process in the run.
        process_count: number of processes in the run.

    Raises:
        BadSampleError: see `load_batch`.
        ChildProcessError: if a worker is killed.
        ValueError: if `on_bad_sample` is unknown.
    """
    if on_bad_sample not in ON_BAD_SAMPLE:
        raise ValueError(
            "iterate_batches: on_bad_sample must be 'raise' or 'skip', "
            f"got {on_bad_sample!r}."
        )
    share = count_rows(sampler.batch_max, num_devices) // process_count
    first = process_index * share
    # A partial of a module-level function, since it is pickled for the workers.
    load = functools.partial(
        _load_share,
        source,
        sampler,
        slice(first, first + share),
        _Memory.of(share, canvas_hw, ignore_label),
        ignore_label=ignore_label,
        num_classes=num_classes,
        distance_classes=distance_classes,
        skip_bad=on_bad_sample == "skip",
    )
    read_ahead = grain.ReadOptions(
        num_threads=num_threads, prefetch_buffer_size=prefetch_batches
    )
    loaded = grain.MapDataset.range(start, stop).map(load).to_iter_dataset(read_ahead)
    if num_workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # or grain refuses to start workers
        workers = grain.MultiprocessingOptions(num_workers, per_worker_buffer_size=1)
        loaded = loaded.mp_prefetch(workers, _end_with_parent)
    return _iterate(loaded)


def _load_share(
    source: Source,
    sampler: Sampler,
    rows: slice,
    memory: _Memory,
    k: int,
    **options: Any,
) -> tuple[Batch, list[str]]:
    batch, faults = _load(source, sampler[k][rows], memory, **options)
    for array in batch.values():
        # The memory is reused, so writing to padding would show in a later batch.
        array.flags.writeable = False
    return batch, faults


def _iterate(loaded: grain.IterDataset) -> Generator[Batch, None, None]:
    known = set()
    with contextlib.closing(iter(loaded)) as batches:
        # Creates the iterators of all workers; `close` could miss one otherwise. Also
        # starts Python's resource tracker, which unblocks signals.
        batches.get_state()
        with _signals_blocked():
            batches.start_prefetch()
        for batch, faults in _unless_workers_die(batches):
            for fault in faults:
                if fault not in known:
                    known.add(fault)
                    skipped = f"It is skipped; bad samples so far: {len(known)}."
                    warnings.warn(f"{fault} {skipped}", stacklevel=2)
            yield batch


def _unless_workers_die(loaded: Iterator[Any]) -> Iterator[Any]:
    try:
        yield from loaded
    except RuntimeError as error:
        if "Worker process was terminated" not in str(error):
            raise
        raise ChildProcessError(
            "iterate_batches: a worker process ended, perhaps for lack of memory; use "
            f"fewer num_workers or prefetch_batches. {str(error).splitlines()[0]}"
        ) from error


def _end_with_parent(worker: int, num_workers: int) -> None:
    """Ends this worker when its parent has ended, even if the parent was killed."""

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Blocks SIGINT and SIGTERM for the processes and threads started inside.

    Terminals and schedulers signal whole process groups. A run that is asked to stop
    still needs the batch it is waiting for. This thread receives the signals on exit.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

"""Batches of one static shape, loaded by grain; only what was chosen is decoded."""

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

from segloss.data.augment import PAD_RGB
from segloss.data.canvases import Canvases
from segloss.data.distances import signed_distances

ON_BAD_SAMPLE = ("raise", "skip")


class Batch(TypedDict):
    """One batch of fixed shape; `valid` and `sample_valid` say what of it is real."""

    images: UInt8[np.ndarray, "b h w 3"]
    labels: UInt8[np.ndarray, "b h w"]
    valid: Bool[np.ndarray, "b h w"]
    sample_valid: Bool[np.ndarray, " b"]
    # Only where the loss asks for them.
    distances: NotRequired[Float16[np.ndarray, "b h w c"]]
    # True for bad samples, which are not valid; only where they are skipped.
    sample_skipped: NotRequired[Bool[np.ndarray, " b"]]


class _Memory(NamedTuple):
    """What batches of one shape are made of."""

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
    """Of `{"image": uint8 [h, w, 3], "labels": uint8 [h, w], "stem": str}`.

    Raises `BadSampleError` where a sample cannot be decoded.
    """

    split: str

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


def round_up(hw: tuple[Any, Any], multiple: int) -> tuple[Any, Any]:
    """Height and width of the smallest canvas whose sides `multiple` divides.

    Integers, or symbols where a model is exported for images of any size.
    """
    return -(-hw[0] // multiple) * multiple, -(-hw[1] // multiple) * multiple


def count_rows(batch_max: int, num_devices: int) -> int:
    """Rows that a batch has on the devices: `batch_max` rounded up to a multiple.

    >>> count_rows(9, num_devices=8)
    16
    """
    return -(-batch_max // num_devices) * num_devices


def describe_unused_rows(batch_max: int, num_devices: int) -> str | None:
    """One line on the rows that no batch ever fills; None if there are none."""
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
    """The image in the upper left corner, the mean colour beside it."""
    canvas = np.empty((*canvas_hw, 3), np.uint8)
    _fill(canvas, image)
    return canvas


def _fill(
    canvas: UInt8[np.ndarray, "H W 3"], image: UInt8[np.ndarray, "h w 3"]
) -> None:
    h, w, _ = image.shape
    canvas[:h, :w] = image
    # Whole rows of bytes, since numpy is slow to repeat three of them.
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
    """Reads the samples `ids` onto a canvas of fixed size, the rest padding.

    Args:
        source: images with labels.
        ids: samples to read, at most `batch_size`.
        batch_size: samples in the batch; those past `len(ids)` are not valid.
        canvas_hw: height and width of the canvas; images lie in its upper left corner.
        ignore_label: label of pixels that do not count.
        num_classes: all other labels must be less; None lets any pass.
        distance_classes: how many classes to make signed distances of; None makes none.

    Raises:
        BadSampleError: if a sample cannot be decoded, is larger than the canvas, or
            its labels are out of range or of another size.
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
    """The batch, and what is wrong with the samples that it skips."""
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
    """Sample i, once it is found to fit a batch."""
    sample = source[i]
    image, labels = sample["image"], sample["labels"]
    if image.shape != (*labels.shape, 3):
        fault = f"must be RGB as large as its labels {labels.shape}, got {image.shape}"
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
    """Batches `start` to `stop` of a sampler, read ahead in threads or processes.

    The batch is padded to a multiple of `num_devices`, which counts those of all
    processes, and each process reads its own share of the rows. The sampler is a pure
    function of k, so processes agree without talking and `start` is all that resuming
    needs. The batches depend on neither threads nor workers.

    Args:
        source: images with labels; picklable, where there are workers.
        sampler: chooses the samples of batch k; picklable, too.
        start: the first batch.
        stop: one past the last batch.
        num_devices: devices of all processes.
        canvas_hw: see `load_batch`, as for the next three.
        ignore_label: label of pixels that do not count.
        num_classes: all other labels must be less; None lets any pass.
        distance_classes: how many classes to make signed distances of; None makes none.
        num_threads: threads that read, in each worker if there are any; 0 reads when a
            batch is asked for.
        num_workers: processes that read; 0 reads in this one. They are spawned, which
            takes seconds and needs a main module that does nothing when imported, and
            end with the iterator, which is to be closed.
        prefetch_batches: batches read ahead, by each worker if there are any.
        on_bad_sample: "raise" stops at a bad sample. "skip" leaves it not valid, warns
            at the first sight of it, and the batch holds `sample_skipped`. Such a batch
            may lack classes that the sampler counted on.
        process_index: which process of the run this is.
        process_count: processes of the run.

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
    # A partial of a module's function, because workers get it pickled.
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
        # What were written beside the samples would be in a later batch as well.
        array.flags.writeable = False
    return batch, faults


def _iterate(loaded: grain.IterDataset) -> Generator[Batch, None, None]:
    known = set()
    with contextlib.closing(iter(loaded)) as batches:
        # Makes the iterators of all workers, or `close` could overlook one. It starts
        # Python's resource tracker, too, which unblocks signals.
        batches.get_state()
        with _signals_blocked():
            batches.start_prefetch()
        for batch, faults in _unless_workers_die(batches):
            for fault in faults:
                if fault not in known:
                    known.add(fault)
                    skipped = f"It is skipped, as {len(known)} so far."
                    warnings.warn(f"{fault} {skipped}", stacklevel=2)
            yield batch


def _unless_workers_die(loaded: Iterator[Any]) -> Iterator[Any]:
    try:
        yield from loaded
    except RuntimeError as error:
        if "Worker process was terminated" not in str(error):
            raise
        raise ChildProcessError(
            "iterate_batches: a worker process ended, perhaps for want of memory; use "
            f"fewer num_workers or prefetch_batches. {str(error).splitlines()[0]}"
        ) from error


def _end_with_parent(worker: int, num_workers: int) -> None:
    """Ends this worker when its parent is gone, also if that was killed."""

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """What is started inside never sees Ctrl-C or SIGTERM; here they come after.

    Terminals and schedulers signal whole groups of processes, but a run that is asked
    to stop still wants the batch that it waits for.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

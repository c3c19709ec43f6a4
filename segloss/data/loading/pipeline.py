"""Batches of a sampler, read ahead by grain in threads or processes."""

import contextlib
import functools
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Generator, Iterator
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np
from absl import flags
from jaxtyping import Int64

from segloss.data.loading.batches import Batch, Memory, Source, load_into

ON_BAD_SAMPLE = ("raise", "skip")


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


def count_rows(batch_max: int, num_devices: int) -> int:
    """Rows that a batch has on the devices: `batch_max` rounded up to a multiple.

    >>> count_rows(9, num_devices=8)
    16
    """
    return -(-batch_max // num_devices) * num_devices


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
        Memory.of(share, canvas_hw, ignore_label),
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
    memory: Memory,
    k: int,
    **options: Any,
) -> tuple[Batch, list[str]]:
    batch, faults = load_into(source, sampler[k][rows], memory, **options)
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

"""Reads the batches that a sampler chooses, ahead of time in threads or processes."""

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
from jaxtyping import Bool, Int64

from segloss.data.loading.batches import (
    Batch,
    Chosen,
    Loading,
    Memory,
    Source,
    load_into,
)
from segloss.errors import SeglossError


@runtime_checkable
class Sampler(Protocol):
    """Chooses samples: `sampler[k]` are the sample ids of batch k.

    There are at most `batch_max` ids in a batch. See `segloss.data.samplers`.
    """

    batch_max: int

    def __getitem__(self, k: int) -> Int64[np.ndarray, " b"]: ...


@runtime_checkable
class OwingSampler(Sampler, Protocol):
    """Sampler that also tells for which classes it chose each sample of batch k.

    `owed(k)` is True for these classes. Crops keep them with `Windows.keep_classes`.
    """

    def owed(self, k: int) -> Bool[np.ndarray, "b c"]: ...


class InOrder:
    """Sampler for evaluation: cuts `ids` into batches in order; the last may be short.

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
    """Returns `batch_max` rounded up to a multiple of `num_devices`.

    This is the number of rows of a batch, including padding, on all devices together.

    >>> count_rows(9, num_devices=8)
    16
    """
    return -(-batch_max // num_devices) * num_devices


def iterate_batches(
    source: Source,
    sampler: Sampler,
    loading: Loading,
    *,
    start: int,
    stop: int,
    num_devices: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Generator[Batch, None, None]:
    """Yields batches `start` to `stop - 1` of a sampler, prefetched by grain.

    Batches are padded to a multiple of `num_devices` rows, and each process reads its
    own share of the rows. Samples and random windows depend only on the sampler,
    `loading`, the index k of the batch and the row. Processes therefore agree without
    communication, and resuming needs only `start`. The number of threads and workers
    does not affect the batches.

    Args:
        source: samples with images and labels; must be picklable if there are workers.
        sampler: `sampler[k]` are the sample ids of batch k; must be picklable if there
            are workers.
        loading: how samples become batches, and the number of threads and workers.
        start: index of the first batch.
        stop: index after the last batch.
        num_devices: number of devices of all processes.
        process_index: index of this process in the run.
        process_count: number of processes in the run.

    Raises:
        ValueError: if windows keep classes, and the sampler has no method `owed`; or if
            the processes cannot have equal shares of the rows.
        BadSampleError: if a sample is bad (see `load_batch`), unless
            `loading.on_bad_sample` is "skip".
        ChildProcessError: if a worker is killed.
    """
    keeping = loading.windows is not None and loading.windows.keep_classes
    if keeping and not isinstance(sampler, OwingSampler):
        raise SeglossError(
            "iterate_batches: keep_classes=True needs a sampler with a method `owed`, "
            f"which {type(sampler).__name__} lacks."
        )
    rows = count_rows(sampler.batch_max, num_devices)
    if rows % process_count:
        raise SeglossError(
            f"iterate_batches: the {rows} rows of a batch on {num_devices} devices "
            f"must be a multiple of the {process_count} processes; give all processes "
            "the same number of devices."
        )
    share = rows // process_count
    # A partial of a module-level function, since it is pickled for the workers.
    load = functools.partial(
        _load_share,
        Memory.of(share, loading),
        source,
        sampler,
        loading,
        slice(process_index * share, (process_index + 1) * share),
    )
    read_ahead = grain.ReadOptions(
        num_threads=loading.num_threads, prefetch_buffer_size=loading.prefetch_batches
    )
    loaded = grain.MapDataset.range(start, stop).map(load).to_iter_dataset(read_ahead)
    if loading.num_workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # or grain refuses to start workers
        workers = grain.MultiprocessingOptions(
            loading.num_workers, per_worker_buffer_size=1
        )
        loaded = loaded.mp_prefetch(workers, _end_with_parent)
    return _iterate(loaded)


def _load_share(
    memory: Memory,
    source: Source,
    sampler: Sampler,
    loading: Loading,
    rows: slice,
    k: int,
) -> tuple[Batch, list[str]]:
    keeping = loading.windows is not None and loading.windows.keep_classes
    owed = sampler.owed(k)[rows] if keeping else None
    chosen = Chosen(sampler[k][rows], owed, k, rows.start)
    batch, faults = load_into(memory, source, chosen, loading)
    for name in ("images", "labels", "valid"):
        # The memory is reused, so writing to padding would show in a later batch.
        batch[name].flags.writeable = False
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
    """Makes this worker exit when its parent exits, even if the parent was killed.

    grain calls this in each worker; the arguments are not used.
    """

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

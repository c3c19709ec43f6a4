"""Batch loaders for `benchmarks.data`, which counts their reads and times them."""

import collections
import contextlib
import dataclasses
import functools
import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
from PIL import Image

from benchmarks.timing import Ratio, ratio
from segloss.data import Batch, Loading, Sampler, iterate_batches, load_batch

# Batches read ahead: per worker, and at most by two workers together.
PREFETCH = 4
AHEAD = 10
LEAST_OF_RANDOM = 0.9
MOST_PLANNING = 0.01


class Pair(NamedTuple):
    """Parameters of Balance-batch: most images and least classes of a batch."""

    batch_max: int
    batch_cl: int


class Stopwatch:
    """Clock: calling it returns seconds, without those spent inside `paused`."""

    def __init__(self) -> None:
        self._paused_seconds = 0.0

    def __call__(self) -> float:
        return time.perf_counter() - self._paused_seconds

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Context in which the clock stands still."""
        start = time.perf_counter()
        yield
        self._paused_seconds += time.perf_counter() - start


class Counted:
    """Wraps a source of samples and lists the id of each sample that is read."""

    def __init__(self, source: Any):
        self.source = source
        self.split = source.split
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> dict[str, Any]:
        self.read.append(i)
        return self.source[i]

    def opened(self, i: int) -> dict[str, Any]:
        self.read.append(i)
        return getattr(self.source, "opened", self.source.__getitem__)(i)


@dataclasses.dataclass
class Loader:
    """A way to load batches, and the results of its last run.

    Attributes:
        start: creates an iterator of `1 + timed_batches + AHEAD` batches.
        timed_batches: number of batches to load while the clock runs.
        source: the source of its samples; None if reads cannot be counted.
        timed_images: number of images that the last run loaded while the clock ran.
        reads_per_image: samples read per sample in a batch in the last run; None if
            unknown.
    """

    start: Callable[[], Iterable[Batch]]
    timed_batches: int
    source: Counted | None = None
    timed_images: int = 0
    reads_per_image: float | None = None

    def run(self, watch: Stopwatch) -> None:
        """Loads all batches to the device, and pauses `watch` at start and end.

        The first batch is not timed because it includes startup. The last `AHEAD`
        batches are not timed, so that as many batches are read ahead when the clock
        stops as when it starts.
        """
        sizes = []

        def noted(batches: Iterable[Batch]) -> Iterator[Batch]:
            for batch in batches:
                sizes.append(int(batch["sample_valid"].sum()))
                yield batch

        with watch.paused():
            before = len(self.source.read) if self.source else 0
            batches = noted(self.start())
            jax.block_until_ready(jax.device_put(next(batches)))
        for batch in itertools.islice(batches, self.timed_batches):
            jax.block_until_ready(jax.device_put(batch))
        with watch.paused():
            self.timed_images = sum(sizes[1:])
            collections.deque(batches, maxlen=0)
        if self.source:
            self.reads_per_image = (len(self.source.read) - before) / sum(sizes)


@dataclasses.dataclass
class Measured:
    """Results for one pair (batch_max, batch_cl).

    Attributes:
        mean_size: mean number of images in a batch.
        images: number of images timed per call, by loader.
        seconds: seconds of each call, by loader and round.
        reads: samples decoded per image, by loader; None if unknown.
        start_seconds: seconds to create the sampler, once.
        planning_seconds: seconds per image to plan an epoch.
    """

    mean_size: float
    images: dict[str, int]
    seconds: dict[str, list[float]]
    reads: dict[str, float | None]
    start_seconds: float
    planning_seconds: float

    def per_image(self, loader: str) -> list[float]:
        return [t / self.images[loader] for t in self.seconds[loader]]

    def speed_over(self, other: str) -> Ratio | None:
        """Returns the images per second of "index" divided by those of `other`.

        None if `other` was not run.
        """
        if other not in self.seconds:
            return None
        return ratio(self.per_image(other), self.per_image("index"))

    @property
    def planning_share(self) -> float:
        return self.planning_seconds / statistics.median(self.per_image("index"))

    def missed(self) -> list[str]:
        """Describes each limit of the benchmark that the loader "index" misses."""
        missed = []
        if self.reads["index"] != 1:
            missed.append(f"decoded {self.reads['index']:.2f} > 1")
        if (against := self.speed_over("random")).median < LEAST_OF_RANDOM:
            missed.append(f"random {against.median:.2f} < {LEAST_OF_RANDOM}")
        if self.planning_share > MOST_PLANNING:
            missed.append(f"planning {self.planning_share:.1%} > {MOST_PLANNING:.0%}")
        return missed


def by_sampler(
    source: Any,
    sampler: Sampler,
    timed_batches: int,
    loading: Loading,
) -> Loader:
    """Returns segloss's own loader, as in a training run.

    It loads the batches of `sampler`; `timed_batches` of them are timed.
    """
    counted = Counted(source)
    # With fewer batches than threads, some threads would be idle.
    ahead = max(PREFETCH, loading.num_threads)
    start = functools.partial(
        iterate_batches,
        counted,
        sampler,
        dataclasses.replace(loading, prefetch_batches=ahead),
        start=0,
        stop=1 + timed_batches + AHEAD,
        num_devices=1,
    )
    # Worker processes count their own reads, which are not visible here.
    source = None if loading.num_workers else counted
    return Loader(start, timed_batches, source)


class OfSizes:
    """Sampler that cuts the batches of `chosen` to the sizes of those of `sizes`."""

    def __init__(self, chosen: Sampler, sizes: Sampler):
        self.batch_max = sizes.batch_max
        self._chosen, self._sizes = chosen, sizes

    def __getitem__(self, k: int) -> np.ndarray:
        return self._chosen[k][: len(self._sizes[k])]


def by_discarding(
    source: Any, pair: Pair, timed_batches: int, loading: Loading
) -> Loader:
    """Returns a loader that reads and discards samples, as in the Balance-batch paper.

    See `read_until_enough`. Each thread fills its own batches.
    """
    counted = Counted(source)

    def load(k: int) -> Batch:
        samples = read_until_enough(counted, pair, loading.ignore_label, k)
        ids = np.arange(len(samples))
        return load_batch(InMemory(samples), ids, loading, batch_size=pair.batch_max)

    options = grain.ReadOptions(
        num_threads=loading.num_threads,
        prefetch_buffer_size=max(PREFETCH, loading.num_threads),
    )
    seeds = grain.MapDataset.range(1 + timed_batches + AHEAD)
    batches = seeds.map(load).to_iter_dataset(options)
    return Loader(lambda: batches, timed_batches, counted)


def read_until_enough(
    source: Any, pair: Pair, ignore_label: int, seed: int
) -> list[dict[str, Any]]:
    """Returns the samples of one batch, without knowing their classes in advance.

    Reads random samples until they have `batch_cl` distinct classes. If `batch_max`
    samples are not enough, discards them and starts again.
    """
    rng = np.random.default_rng(seed)
    while True:
        samples, held = [], set()
        for i in rng.permutation(len(source))[: pair.batch_max]:
            samples.append(source[int(i)])
            held |= {*np.unique(samples[-1]["labels"]).tolist()} - {ignore_label}
            if len(held) >= pair.batch_cl:
                return samples


def reads_of_discarding(
    presence: np.ndarray, pair: Pair, *, attempts: int = 2_000
) -> float:
    """Estimates how many samples `read_until_enough` reads per sample that it returns.

    `presence` is True where a sample has a class.
    """
    rng = np.random.default_rng(0)
    drawn = kept = 0
    for _ in range(attempts):
        order = rng.permutation(len(presence))[: pair.batch_max]
        held = np.logical_or.accumulate(presence[order]).sum(axis=1)
        enough = np.flatnonzero(held >= pair.batch_cl)
        drawn += enough[0] + 1 if len(enough) else len(order)
        kept += enough[0] + 1 if len(enough) else 0
    return drawn / kept if kept else float("inf")


class InMemory(list):
    """A source of samples that are already in memory: a list of them."""

    split = "read"


class Files(Sequence):
    """A source that reads image and label files, for torch.

    `root` is the folder of a split, with `images` and `labels`.
    """

    split = "files"

    def __init__(self, root: Path):
        self._pairs = [
            (path, root / "labels" / f"{path.stem}.png")
            for path in sorted((root / "images").iterdir())
        ]

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, i: int) -> dict[str, Any]:
        image, labels = (np.asarray(Image.open(path)) for path in self._pairs[i])
        return {"image": image, "labels": labels, "stem": self._pairs[i][0].stem}


def by_torch(
    root: Path,
    sampler: Sampler,
    timed_batches: int,
    loading: Loading,
) -> Loader | None:
    """Returns torch's `DataLoader` with the batches of `sampler`.

    It has `loading.num_threads` workers. Returns None if torch is not installed.
    """
    num_workers = loading.num_threads
    try:
        from torch.utils.data import DataLoader
    except ImportError:
        return None

    batches = DataLoader(
        Files(root),
        batch_sampler=[sampler[k].tolist() for k in range(1 + timed_batches + AHEAD)],
        collate_fn=functools.partial(_collate, loading, sampler.batch_max),
        num_workers=num_workers,
        # Forking a process with JAX's threads can deadlock, and spawning takes seconds,
        # so spawned workers persist between calls.
        multiprocessing_context="spawn" if num_workers else None,
        persistent_workers=num_workers > 0,
    )

    def start() -> Iterator[Batch]:
        for batch in batches:
            yield {name: tensor.numpy() for name, tensor in batch.items()}

    return Loader(start, timed_batches)


def _collate(loading: Loading, batch_size: int, samples: list[dict[str, Any]]) -> Any:
    import torch

    ids = np.arange(len(samples))
    batch = load_batch(InMemory(samples), ids, loading, batch_size=batch_size)
    # Tensors, because workers pass them through shared memory.
    return {name: torch.from_numpy(array) for name, array in batch.items()}

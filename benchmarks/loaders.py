"""Ways to load batches, their reads counted and their seconds taken."""

import collections
import contextlib
import dataclasses
import functools
import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
from PIL import Image

from benchmarks.timing import Ratio, ratio
from segloss.data import Batch, Sampler, iterate_batches, load_batch

# Batches that are read ahead: by each worker, and by all of two workers at most.
PREFETCH = 4
AHEAD = 10
LEAST_OF_RANDOM = 0.9
MOST_PLANNING = 0.01


class Pair(NamedTuple):
    """The two numbers of Balance-batch."""

    batch_max: int
    batch_cl: int


class Stopwatch:
    """Seconds, without those that pass in `paused`."""

    def __init__(self) -> None:
        self._paused_seconds = 0.0

    def __call__(self) -> float:
        return time.perf_counter() - self._paused_seconds

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the watch."""
        start = time.perf_counter()
        yield
        self._paused_seconds += time.perf_counter() - start


class Counted:
    """A source that notes what is read of it, which is what is decoded."""

    def __init__(self, source: Any):
        self.source = source
        self.split = source.split
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> dict[str, Any]:
        self.read.append(i)
        return self.source[i]


@dataclasses.dataclass
class Loader:
    """A way to load batches, and what its last call did.

    Attributes:
        start: makes an iterator of `1 + timed_batches + AHEAD` batches.
        timed_batches: how many are loaded while the watch runs.
        source: what it reads; None where that cannot be counted.
        timed_images: loaded while the watch ran.
        reads_per_image: samples decoded per sample that a batch holds.
    """

    start: Callable[[], Iterable[Batch]]
    timed_batches: int
    source: Counted | None = None
    timed_images: int = 0
    reads_per_image: float | None = None

    def run(self, watch: Stopwatch) -> None:
        """Brings all batches to the device.

        Untimed are the first, with all that starts, and the last, because what is read
        ahead when the watch starts must be as much as when it stops.
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
    """What a pair took.

    Attributes:
        mean_size: images per batch.
        images: that each call of a loader timed.
        seconds: of each call, by loader and round.
        reads: samples decoded per image, by loader.
        start_seconds: to make the sampler, once.
        planning_seconds: per image, of an epoch.
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
        """How many times the images per second of another loader the index has."""
        if other not in self.seconds:
            return None
        return ratio(self.per_image(other), self.per_image("index"))

    @property
    def planning_share(self) -> float:
        return self.planning_seconds / statistics.median(self.per_image("index"))

    def missed(self) -> list[str]:
        """The bars that are not met."""
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
    reading: Mapping[str, int],
    **canvas: Any,
) -> Loader:
    """What a run does."""
    counted = Counted(source)
    start = functools.partial(
        iterate_batches,
        counted,
        sampler,
        start=0,
        stop=1 + timed_batches + AHEAD,
        num_devices=1,
        # More threads than batches would have nothing to do.
        prefetch_batches=max(PREFETCH, reading["num_threads"]),
        **reading,
        **canvas,
    )
    # A worker counts its own reads, which nobody sees here.
    source = None if reading.get("num_workers") else counted
    return Loader(start, timed_batches, source)


class OfSizes:
    """Samples of one sampler in batches as large as those of another."""

    def __init__(self, chosen: Sampler, sizes: Sampler):
        self.batch_max = sizes.batch_max
        self._chosen, self._sizes = chosen, sizes

    def __getitem__(self, k: int) -> np.ndarray:
        return self._chosen[k][: len(self._sizes[k])]


def by_discarding(
    source: Any, pair: Pair, timed_batches: int, num_threads: int, **canvas: Any
) -> Loader:
    """The paper's own way, in as many threads, each with batches of its own."""
    counted = Counted(source)

    def load(k: int) -> Batch:
        samples = read_until_enough(counted, pair, canvas["ignore_label"], k)
        ids = np.arange(len(samples))
        return load_batch(InMemory(samples), ids, batch_size=pair.batch_max, **canvas)

    options = grain.ReadOptions(
        num_threads=num_threads, prefetch_buffer_size=max(PREFETCH, num_threads)
    )
    seeds = grain.MapDataset.range(1 + timed_batches + AHEAD)
    batches = seeds.map(load).to_iter_dataset(options)
    return Loader(lambda: batches, timed_batches, counted)


def read_until_enough(
    source: Any, pair: Pair, ignore_label: int, seed: int
) -> list[dict[str, Any]]:
    """Samples of one batch, as a loader finds them that has no index.

    It loads until the batch holds `batch_cl` distinct classes. With `batch_max` samples
    that do not, it discards them and starts again.
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
    """Samples that `read_until_enough` reads per sample that it keeps, estimated."""
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
    """A source of samples that were read already."""

    split = "read"


class Files(Sequence):
    """The image and label files of a split as a source, for torch."""

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
    num_workers: int,
    **canvas: Any,
) -> Loader | None:
    """Torch's loader with these batches; None where torch is not installed."""
    try:
        from torch.utils.data import DataLoader
    except ImportError:
        return None

    batches = DataLoader(
        Files(root),
        batch_sampler=[sampler[k].tolist() for k in range(1 + timed_batches + AHEAD)],
        collate_fn=functools.partial(_collate, canvas),
        num_workers=num_workers,
        # To fork a process that has JAX's threads can deadlock, and to spawn one takes
        # seconds, so they stay from call to call.
        multiprocessing_context="spawn" if num_workers else None,
        persistent_workers=num_workers > 0,
    )

    def start() -> Iterator[Batch]:
        for batch in batches:
            yield {name: tensor.numpy() for name, tensor in batch.items()}

    return Loader(start, timed_batches)


def _collate(canvas: Mapping[str, Any], samples: list[dict[str, Any]]) -> Any:
    import torch

    batch = load_batch(InMemory(samples), np.arange(len(samples)), **canvas)
    # Tensors, because these go from a worker through shared memory.
    return {name: torch.from_numpy(array) for name, array in batch.items()}

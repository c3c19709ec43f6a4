"""Ways to load batches, their reads counted and their seconds taken."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
from PIL import Image

from segloss.data import Batch, Sampler, iterate_batches, load_batch
from segloss.train.step import prefetch_to_devices


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
        start: makes an iterator of batches.
        source: what it reads; None where that cannot be counted.
        timed_images: loaded while the watch ran.
        reads_per_image: samples decoded per sample that a batch holds.
    """

    start: Callable[[], Iterable[Batch]]
    source: Counted | None = None
    timed_images: int = 0
    reads_per_image: float | None = None

    def run(self, watch: Stopwatch) -> None:
        """Brings all batches to the devices; the first, and what starts, untimed."""
        sizes = []

        def noted(batches: Iterable[Batch]) -> Iterator[Batch]:
            for batch in batches:
                sizes.append(int(batch["sample_valid"].sum()))
                yield batch

        with watch.paused():
            before = len(self.source.read) if self.source else 0
            batches = prefetch_to_devices(noted(self.start()), ahead=0)
            jax.block_until_ready(next(batches))
        for batch in batches:
            jax.block_until_ready(batch)
        self.timed_images = sum(sizes[1:])
        if self.source:
            self.reads_per_image = (len(self.source.read) - before) / sum(sizes)


def by_sampler(
    source: Any,
    sampler: Sampler,
    num_batches: int,
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
        stop=num_batches,
        num_devices=1,
        **reading,
        **canvas,
    )
    # A worker counts its own reads, which nobody sees here.
    return Loader(start, None if reading.get("num_workers") else counted)


class OfSizes:
    """Samples of one sampler in batches as large as those of another."""

    def __init__(self, chosen: Sampler, sizes: Sampler):
        self.batch_max = sizes.batch_max
        self._chosen, self._sizes = chosen, sizes

    def __getitem__(self, k: int) -> np.ndarray:
        return self._chosen[k][: len(self._sizes[k])]


def by_discarding(
    source: Any, pair: Pair, num_batches: int, num_threads: int, **canvas: Any
) -> Loader:
    """The paper's own way, in as many threads, each with batches of its own."""
    counted = Counted(source)

    def load(k: int) -> Batch:
        samples = read_until_enough(counted, pair, canvas["ignore_label"], k)
        ids = np.arange(len(samples))
        return load_batch(InMemory(samples), ids, batch_size=pair.batch_max, **canvas)

    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=4)
    batches = grain.MapDataset.range(num_batches).map(load).to_iter_dataset(options)
    return Loader(lambda: batches, counted)


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
    ids: Sequence[Sequence[int]],
    num_workers: int,
    **canvas: Any,
) -> Loader | None:
    """Torch's loader with these batches; None where torch is not installed."""
    try:
        from torch.utils.data import DataLoader
    except ImportError:
        return None

    def start() -> Iterator[Batch]:
        batches = DataLoader(
            Files(root),
            batch_sampler=ids,
            collate_fn=functools.partial(_collate, canvas),
            num_workers=num_workers,
            # To fork a process that has JAX's threads can deadlock.
            multiprocessing_context="spawn" if num_workers else None,
        )
        for batch in batches:
            yield {name: tensor.numpy() for name, tensor in batch.items()}

    return Loader(start)


def _collate(canvas: Mapping[str, Any], samples: list[dict[str, Any]]) -> Any:
    import torch

    batch = load_batch(InMemory(samples), np.arange(len(samples)), **canvas)
    # Tensors, because these go from a worker through shared memory.
    return {name: torch.from_numpy(array) for name, array in batch.items()}

"""Speed of loading Balance-batch through the class index, against other loaders.

python -m benchmarks.data
python -m benchmarks.data --pairs=9,8 --images=200 --rounds=5 --output=data.md

For each pair (batch_max, batch_cl), the loaders bring about the same number of images
of one data set to the device. They take turns, so that load on the machine affects all
of them equally; a ratio is the median over the rounds, with the lowest and the highest:

- index: `BalanceBatch`, which reads only the samples planned from the class index;
- random: `RandomBatch`, always `batch_max` images; then the same loader with the batch
  sizes of "index", padded in the same way;
- discard: the paper's procedure, which reads samples until a batch has enough classes
  and discards batches that do not reach them. If it would read too many samples, the
  number of reads is estimated;
- torch: torch's `DataLoader` over the same files with the batches of "index" as
  `batch_sampler`, and one worker per thread of the others. Skipped without torch.

Threads and workers are running before the timer starts and after it stops. "Decoded"
is the number of samples read per image in a batch. "Planning" is the time to plan an
epoch relative to loading it; "start" is the time to create the sampler, once. The
second table compares ways to read ahead, with the random loader.
"""

import dataclasses
import functools
import itertools
import math
import os
import re
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import app, flags
from rich.table import Table

from benchmarks.environment import command, publish, versions
from benchmarks.loaders import (
    Loader,
    Measured,
    OfSizes,
    Pair,
    Stopwatch,
    by_discarding,
    by_sampler,
    by_torch,
    reads_of_discarding,
)
from benchmarks.timing import interleave, ratio
from segloss import cli
from segloss.console import make_progress
from segloss.data import BalanceBatch, Dataset, Loading, RandomBatch, open_dataset
from segloss.errors import SeglossError
from segloss.report import make_table

CAMVID = flags.DEFINE_string(
    "camvid", "../shared/data/camvid", "CamVid in the `folder` format."
)
VOC = flags.DEFINE_string(
    "voc",
    "../shared/data/voc_sample/VOC2012",
    "VOC2012 folder of a VOCdevkit, or a part of it.",
)
PAIRS = flags.DEFINE_multi_string(
    "pairs", ["9,2-12", "4,2-6", "6,2-8"], "batch_max,batch_cl or batch_max,first-last."
)
IMAGES = flags.DEFINE_integer("images", 96, "Images per call.", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 3, "Timings per loader.", lower_bound=1)
THREADS = flags.DEFINE_integer("threads", 2, "Reading threads.", lower_bound=0)
MOST_READS = flags.DEFINE_float(
    "most_reads", 20.0, "Skip discarding above this many reads per image."
)
OUTPUT = flags.DEFINE_string("output", None, "Markdown file to write.")

OTHERS = ("random", "random of these sizes", "discard", "torch")
READING = (
    *({"num_threads": n, "num_workers": 0} for n in (0, 1, 2, 4)),
    *({"num_threads": 1, "num_workers": n} for n in (1, 2)),
)
PACKAGES = ("jax", "grain", "array_record", "pillow", "torch")


@dataclasses.dataclass(frozen=True)
class Data:
    """A prepared data set, and the folder of the files of its training split."""

    dataset: Dataset
    root: Path

    @functools.cached_property
    def presence(self):
        return self.dataset.class_index("train").presence()

    @functools.cached_property
    def loading(self) -> Loading:
        return Loading(
            canvas_hw=self.dataset.max_hw,
            ignore_label=self.dataset.ignore_label,
            num_classes=self.dataset.num_classes,
            num_threads=THREADS.value,
        )


def prepare(name: str, source: Path, scratch: Path) -> Data:
    """Opens training images as a dataset, through links in the folder `scratch`.

    They are those of CamVid, or the available part of VOC's train_aug; `source` is the
    folder of the original files.
    """
    root = scratch / name
    train = root / "train"
    if name == "CamVid":
        train.parent.mkdir()
        train.symlink_to((source / "train").resolve())
        classes = (source / "classes.txt").read_text().splitlines()
        # The last class is void.
        lines, ignore_label = classes[:11], 11
    else:
        ids = (source / "ImageSets/Segmentation/train_aug.txt").read_text().split()
        for kind, folder, suffix in (
            ("images", "JPEGImages", "jpg"),
            ("labels", "SegmentationClassAug", "png"),
        ):
            (train / kind).mkdir(parents=True)
            for stem in ids:
                path = source.resolve() / folder / f"{stem}.{suffix}"
                (train / kind / path.name).symlink_to(path)
        lines, ignore_label = [f"{k} class{k}" for k in range(21)], 255
    (root / "classes.txt").write_text("\n".join(lines))
    dataset = open_dataset(
        "folder", root=root, ignore_label=ignore_label, data_dir=scratch
    )
    return Data(dataset, train)


def measure(data: Data, pair: Pair, watch: Stopwatch) -> Measured:
    """Times the loaders with one pair of `batch_max` and `batch_cl`.

    Raises:
        ValueError: if no `batch_max` images have `batch_cl` classes.
    """
    presence = data.presence
    start = time.perf_counter()
    sampler = BalanceBatch(presence, **pair._asdict())
    start_seconds = time.perf_counter() - start
    mean_size, planning_seconds = plan(sampler)
    source = data.dataset.source("train")
    num_batches = math.ceil(IMAGES.value / mean_size)
    random = RandomBatch(presence, batch_max=pair.batch_max)
    reads = {"discard": reads_of_discarding(presence, pair)}
    loaders = {
        "index": by_sampler(source, sampler, num_batches, data.loading),
        "random": by_sampler(
            source,
            random,
            math.ceil(IMAGES.value / pair.batch_max),
            data.loading,
        ),
        "random of these sizes": by_sampler(
            source, OfSizes(random, sampler), num_batches, data.loading
        ),
    }
    if reads["discard"] <= MOST_READS.value:
        loaders["discard"] = by_discarding(source, pair, num_batches, data.loading)
    torch = by_torch(data.root, sampler, num_batches, data.loading)
    if torch is not None:
        loaders["torch"] = torch
    seconds = time_loaders(loaders, watch)
    reads |= {k: v.reads_per_image for k, v in loaders.items() if v.source}
    return Measured(
        mean_size=mean_size,
        images={name: loader.timed_images for name, loader in loaders.items()},
        seconds=seconds,
        reads=reads,
        start_seconds=start_seconds,
        planning_seconds=planning_seconds,
    )


def plan(sampler: BalanceBatch, epochs: int = 3) -> tuple[float, float]:
    """Returns the mean images per batch, and the seconds per image to plan an epoch."""
    seconds, sizes = [], []
    for epoch in range(1, 1 + epochs):
        first = epoch * sampler.batches_per_epoch
        start = time.perf_counter()
        sampler[first]
        seconds.append(time.perf_counter() - start)
        batches = range(first, first + sampler.batches_per_epoch)
        sizes += [len(sampler[k]) for k in batches]
    images_per_epoch = sum(sizes) / epochs
    return statistics.mean(sizes), statistics.median(seconds) / images_per_epoch


def time_loaders(
    loaders: Mapping[Any, Loader], watch: Stopwatch
) -> dict[Any, list[float]]:
    calls = {k: functools.partial(v.run, watch) for k, v in loaders.items()}
    return interleave(calls, ROUNDS.value, clock=watch)


def loader_table(measured: Mapping[tuple[str, Pair], Measured | str]) -> Table:
    """Makes the table of loaders, with a row for each data set and pair.

    Where `measured` has an error message, the row shows it instead of numbers.
    """
    numbers = ("mean batch", "decoded: index", "discard", "images/s: index")
    numbers += (*(f"x {other}" for other in OTHERS), "planning", "start, ms")
    table = make_table(["data", "batch_max, batch_cl"], numbers, ["bars met"])
    for (name, pair), result in measured.items():
        cells = [name, f"{pair.batch_max}, {pair.batch_cl}"]
        if isinstance(result, str):
            table.add_row(*cells, *[""] * 10, result)
            continue
        was_run = "discard" in result.seconds
        others = [result.speed_over(other) for other in OTHERS]
        missed = result.missed()
        table.add_row(
            *cells,
            f"{result.mean_size:.2f}",
            f"{result.reads['index']:.2f}",
            f"{'' if was_run else '~'}{result.reads['discard']:.2f}",
            f"{1 / statistics.median(result.per_image('index')):.0f}",
            *("" if other is None else str(other) for other in others),
            f"{result.planning_share:.2%}",
            f"{1e3 * result.start_seconds:.0f}",
            f"no: {'; '.join(missed)}" if missed else "yes",
        )
    return table


def compare_reading(name: str, data: Data, watch: Stopwatch, table: Table) -> None:
    """Times random batches with each number of threads and workers in `READING`.

    Adds a row for each to `table`.
    """
    sampler = RandomBatch(data.presence, batch_max=9)
    num_batches = math.ceil(IMAGES.value / 9)
    source = data.dataset.source("train")
    loaders = {
        tuple(reading.values()): by_sampler(
            source, sampler, num_batches, dataclasses.replace(data.loading, **reading)
        )
        for reading in READING
    }
    seconds = time_loaders(loaders, watch)
    for (threads, workers), times in seconds.items():
        images = loaders[threads, workers].timed_images
        table.add_row(
            name,
            str(threads),
            str(workers),
            f"{images / statistics.median(times):.0f}",
            str(ratio(seconds[1, 0], times)),
        )


def parse_pairs(texts: list[str]) -> list[Pair]:
    pairs = []
    for text in texts:
        if not (match := re.fullmatch(r"([1-9]\d*),([1-9]\d*)(?:-(\d+))?", text)):
            raise app.UsageError(
                f"--pairs must have the form 9,8 or 9,2-12, got {text!r}."
            )
        batch_max, first, last = (int(x) if x else None for x in match.groups())
        pairs += [Pair(batch_max, cl) for cl in range(first, (last or first) + 1)]
    return pairs


def find_data(scratch: Path) -> Iterator[tuple[str, Data]]:
    for name, flag in (("CamVid", CAMVID), ("VOC sample", VOC)):
        source = Path(flag.value)
        if source.is_dir():
            yield name, prepare(name, source, scratch)
        else:
            print(f"{name} is not at {source}; set --{flag.name} to its folder.")


def describe() -> str:
    """Returns a text with the run's command, machine and versions."""
    return (
        f"{command('benchmarks.data')}\n\n{IMAGES.value} images per call, median of "
        f"{ROUNDS.value} rounds, {THREADS.value} threads (torch: workers) on "
        f"{len(os.sched_getaffinity(0))} CPUs; {versions(PACKAGES)}."
    )


def main(argv: list[str]) -> None:
    pairs = parse_pairs(PAIRS.value)
    watch, measured = Stopwatch(), {}
    columns = ("threads", "workers", "images/s", "x one thread")
    reading = make_table(["data"], columns)
    with (
        tempfile.TemporaryDirectory() as scratch,
        make_progress(transient=True) as progress,
    ):
        found = dict(find_data(Path(scratch)))
        task = progress.add_task("", total=len(found) * (len(pairs) + 1))
        for (name, data), pair in itertools.product(found.items(), pairs):
            progress.update(
                task, description=f"{name} {pair.batch_max},{pair.batch_cl}"
            )
            try:
                measured[name, pair] = measure(data, pair, watch)
            except SeglossError as error:
                measured[name, pair] = f"cannot be satisfied: {error}"
            progress.advance(task)
        for name, data in found.items():
            progress.update(task, description=f"{name}, reading ahead")
            compare_reading(name, data, watch, reading)
            progress.advance(task)
    publish([loader_table(measured), reading], describe(), OUTPUT.value)


if __name__ == "__main__":
    cli.run(main)

"""Cost of keeping classes in training crops, and of one large image among small ones.

python -m benchmarks.windows --output=windows.md
python -m benchmarks.windows --table=keeping --images=400 --rounds=15

A window is the part of an image that a random scale and crop needs. The first table
compares the loader of Balance-batch with and without `augment.keep_classes`, on CamVid
and on the VOC sample: images per second, and windows drawn per image. The loaders take
turns. The second table loads images of 48 x 48 in training crops, and trains a small
U-Net on them, with and without one image of 2000 x 3000 among them: images per second,
and the peak memory of the process. Each of these runs has a process of its own, and the
dataset is prepared in another one before.
"""

import functools
import json
import math
import multiprocessing
import re
import shutil
import statistics
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from PIL import Image
from rich.table import Table

from benchmarks.data import CAMVID, IMAGES, OUTPUT, ROUNDS, VOC, Data, prepare
from benchmarks.environment import command, publish, versions
from benchmarks.loaders import Loader, Stopwatch, by_sampler
from benchmarks.timing import interleave, ratio
from configs import folder
from segloss import cli
from segloss.data import (
    BalanceBatch,
    ClassSets,
    Loading,
    RandomBatch,
    Windows,
    count_in_crops,
    open_dataset,
)
from segloss.report import make_table
from segloss.train import train

CROPS = {"CamVid": (256, 256), "VOC sample": (321, 321)}
PAIRS = ((9, 8), (4, 4))
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5)
LEAST_OF_PLAIN = 0.95
# Images in the second table, and how often each is loaded.
COUNTS, EPOCHS, LARGE_ROUNDS = {"load": 2_000, "train": 200}, 3, 5
TABLES = flags.DEFINE_multi_enum(
    "table", ["keeping", "large"], ["keeping", "large"], "A table to make."
)
PACKAGES = ("grain", "array_record", "numpy", "pillow")


def loaders_of(
    name: str, data: Data, pair: tuple[int, int]
) -> tuple[dict[bool, Loader], float]:
    """Returns the loaders without (False) and with (True) kept classes.

    `pair` is (batch_max, batch_cl). Also returns the mean number of windows drawn per
    image if classes are kept.
    """
    index = data.dataset.class_index("train")
    samples = ClassSets.from_counts(index.pixel_counts).samples_per_class()
    rare_first = tuple(np.argsort(samples, kind="stable").tolist())
    loaders, tries = {}, 1.0
    for keep in (False, True):
        windows = Windows(
            crop_hw=CROPS[name], scales=SCALES, keep_classes=keep, rare_first=rare_first
        )
        planned = data.dataset.class_index("train", windows) if keep else index
        batch_max, batch_cl = pair
        sampler = BalanceBatch(
            planned.presence(), batch_max=batch_max, batch_cl=batch_cl
        )
        loading = Loading(
            canvas_hw=windows.canvas_hw(data.dataset.max_hw),
            ignore_label=data.dataset.ignore_label,
            num_classes=data.dataset.num_classes,
            windows=windows,
        )
        mean_size = np.mean([len(sampler[k]) for k in range(50)])
        source = data.dataset.source("train")
        loaders[keep] = by_sampler(
            source, sampler, math.ceil(IMAGES.value / mean_size), loading
        )
        tries = count_in_crops(
            source,
            sampler,
            windows,
            range(50),
            num_classes=data.dataset.num_classes,
            ignore_label=data.dataset.ignore_label,
        ).tries
    return loaders, tries


def keeping_table(scratch: Path) -> Table:
    """Times the loaders with and without kept classes, and makes their table."""
    table = make_table(
        ("data", "batch_max, batch_cl"),
        ("images/s without", "with", "windows drawn an image", "x without"),
        ("bar met",),
    )
    for name, flag in (("CamVid", CAMVID), ("VOC sample", VOC)):
        data = prepare(name, Path(flag.value), scratch)
        for pair in PAIRS:
            loaders, tries = loaders_of(name, data, pair)
            watch = Stopwatch()
            calls = {k: functools.partial(v.run, watch) for k, v in loaders.items()}
            seconds = interleave(calls, ROUNDS.value, clock=watch)
            speeds = {
                k: v.timed_images / np.array(seconds[k]) for k, v in loaders.items()
            }
            against = ratio((1 / speeds[False]).tolist(), (1 / speeds[True]).tolist())
            table.add_row(
                name,
                ", ".join(map(str, pair)),
                f"{statistics.median(speeds[False]):.0f}",
                f"{statistics.median(speeds[True]):.0f}",
                f"{tries:.2f}",
                str(against),
                "yes" if against.median >= LEAST_OF_PLAIN else "no",
            )
    return table


def write_images(root: Path, count: int, *, large: bool) -> None:
    """Writes `count` training images of 48 x 48 and their labels to the folder `root`.

    If `large` is True, the last image has 2000 x 3000 pixels.
    """
    rng = np.random.default_rng(0)
    sizes = [(48, 48)] * (count - large) + [(2000, 3000)] * large
    root.mkdir(parents=True)
    (root / "classes.txt").write_text("0 ground\n1 thing\n")
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (root / split / kind).mkdir(parents=True)
    for i, (h, w) in enumerate(sizes):
        image = rng.integers(0, 256, (h // 4, w // 4, 3), np.uint8).repeat(4, 0)
        Image.fromarray(image.repeat(4, 1)).save(root / f"train/images/{i}.jpg")
        labels = np.zeros((h, w), np.uint8)
        labels[: h // 2, : w // 2] = 1
        Image.fromarray(labels).save(root / f"train/labels/{i}.png")
    for path in ("images/0.jpg", "labels/0.png"):
        shutil.copy(root / "train" / path, root / "val" / path)


def prepare_small(root: Path, count: int, *, large: bool) -> None:
    """Writes `count` images to `root`, and a dataset with its class index next to it.

    If `large` is True, one image has 2000 x 3000 pixels.
    """
    write_images(root, count, large=large)
    open_dataset("folder", root=root, data_dir=root.parent).class_index("train")


def use_small(work: str, root: Path) -> tuple[float, float]:
    """Does `work`, "load" or "train", on the images in `root`.

    Returns images per second, and the peak memory of this process in MiB.
    """
    speed = {"load": load, "train": train_unet}[work](root, root.parent)
    status = Path("/proc/self/status").read_text()
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
    return speed, int(peak) / 1024


def alone(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls a function in a new process, so its peak memory is that of this work."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args, **kwargs).result()


def load(root: Path, scratch: Path) -> float:
    """Loads the images in `root` in crops of 48 x 48; returns images per second."""
    dataset = open_dataset("folder", root=root, data_dir=scratch)
    presence = dataset.class_index("train").presence()
    windows = Windows(crop_hw=(48, 48))
    loading = Loading(
        canvas_hw=windows.canvas_hw(dataset.max_hw),
        ignore_label=255,
        num_classes=2,
        windows=windows,
    )
    sampler = RandomBatch(presence, batch_max=8)
    batches = EPOCHS * len(presence) // 8
    loader = by_sampler(dataset.source("train"), sampler, batches, loading)
    watch = Stopwatch()
    start = watch()
    loader.run(watch)
    return loader.timed_images / (watch() - start)


def train_unet(root: Path, scratch: Path) -> float:
    """Trains the U-Net of `configs/folder.py` for 60 steps on the images in `root`.

    Returns the mean images per second, without the time to compile.
    """
    config = folder.get_config().unlock()
    config.data.update(root=str(root), data_dir=str(scratch), crop_hw=(48, 48))
    config.sampler.batch_max = 8
    config.schedule.warmup_steps = 10
    config.total_steps = config.evaluate_every_steps = 60
    config.evaluate.update(split="val", final_split="val")
    with tempfile.TemporaryDirectory(dir=scratch) as run:
        train(config, run)
        lines = Path(run, "metrics.jsonl").read_text().splitlines()
    speeds = [json.loads(line).get("images_per_second") for line in lines]
    # The first is measured while the step is compiled.
    return statistics.mean([speed for speed in speeds if speed][1:])


def large_table() -> Table:
    """Measures small images without and with a large one, and makes their table."""
    numbers = ("images/s", "x without", "peak memory, MB", "more, MB")
    table = make_table(("work", "images"), numbers)
    for work, count in COUNTS.items():
        found = {False: [], True: []}
        with tempfile.TemporaryDirectory() as scratch:
            roots = {large: Path(scratch, str(large), "root") for large in found}
            for large, root in roots.items():
                alone(prepare_small, root, count, large=large)
            for _ in range(LARGE_ROUNDS):
                for large, root in roots.items():
                    found[large].append(alone(use_small, work, root))
        plain, plain_peak = np.array(found[False]).T
        for large, pairs in found.items():
            speed, peak = np.array(pairs).T
            table.add_row(
                work,
                f"{count - large} of 48x48" + ", 1 of 2000x3000" * large,
                f"{np.median(speed):.0f}",
                str(ratio((1 / plain).tolist(), (1 / speed).tolist())) if large else "",
                f"{np.median(peak):.0f}",
                f"{np.median(peak - plain_peak):+.0f}" if large else "",
            )
    return table


def main(argv: list[str]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        makers = {"keeping": lambda: keeping_table(Path(scratch)), "large": large_table}
        tables = [makers[name]() for name in TABLES.value]
    notes = (
        f"{command('benchmarks.windows')}\n\n{IMAGES.value} images per call, median of "
        f"{ROUNDS.value} rounds, in the second table of {LARGE_ROUNDS}; "
        f"{versions(PACKAGES)}."
    )
    publish(tables, notes, OUTPUT.value)


if __name__ == "__main__":
    cli.run(main)

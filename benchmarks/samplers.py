"""Speed and memory of the samplers when they choose batches on a synthetic class index.

python -m benchmarks.samplers
python -m benchmarks.samplers --samples=10000000 --classes=150 --rounds=1

The index is a memory-mapped array on disk with the pixel counts of each class in each
sample, like a real class index. Each sampler plans in its own process, on one core.
Speeds are per second of CPU time, as the median over epochs: the samples in the index,
and the samples that are put into batches. The peak memory is that of the process,
including pages of the mapped file but without the imports.
"""

import importlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from absl import flags
from rich.console import Console

from benchmarks.synthetic_index import CASES, write_index
from segloss import cli
from segloss.data import SAMPLERS, ClassIndex, ClassSets
from segloss.registry import bind
from segloss.report import make_table

SAMPLES = flags.DEFINE_integer(
    "samples", 10_000_000, "Number in the index.", lower_bound=1
)
CLASSES = flags.DEFINE_integer("classes", 21, "Number in the index.", lower_bound=13)
ROUNDS = flags.DEFINE_integer("rounds", 3, "Epochs planned.", lower_bound=1)
ONLY = flags.DEFINE_string("only", None, "Measure only this sampler, in this process.")
INDEX = flags.DEFINE_string("index", None, "Class index to use instead.")


def peak_mib() -> float:
    """Returns the peak memory of this process in MiB.

    `getrusage` cannot be used, since its value includes the parent's peak.
    """
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) / 1024


def measure(label: str, path: Path, rounds: int) -> dict[str, float]:
    """Measures the sampler `CASES[label]` on the class index at `path`.

    Returns CPU seconds to pack the index and to create the sampler; samples per second
    put into batches ("used") and in the index ("seen"); peak memory in MiB; and samples
    in batches per sample ("share").
    """
    importlib.import_module(
        "segloss.data.samplers.kernels"
    )  # import numba before measuring
    fields = dict(CASES[label])
    name = fields.pop("name")
    before = peak_mib()
    index = ClassIndex(np.load(path, mmap_mode="r"), "synthetic")
    start = time.process_time()
    sets = ClassSets.from_counts(index.pixel_counts)
    packing = time.process_time() - start
    shares = sets.samples_per_class()
    make = bind("sampler", SAMPLERS, name, fields, class_pixels=shares)
    make(ClassSets(sets.words[:20_000], sets.num_classes))  # compiles
    start = time.process_time()
    sampler = make(sets)
    setup = time.process_time() - start
    speeds = []
    for epoch in range(1, rounds + 1):
        start = time.process_time()
        used = len(sampler._make_plan(epoch).ids)
        seconds = time.process_time() - start
        speeds.append((used / seconds, len(sets) / seconds))
    return dict(
        packing=packing,
        setup=setup,
        used=statistics.median(s for s, _ in speeds),
        seen=statistics.median(s for _, s in speeds),
        mib=peak_mib() - before,
        share=used / len(sets),
    )


def main(argv: list[str]) -> None:
    """Prints a table with a row per sampler, or with `--only` the figures as JSON."""
    if ONLY.value:
        print(json.dumps(measure(ONLY.value, Path(INDEX.value), ROUNDS.value)))
        return
    speeds = ("M samples/s", "M dealt/s", "dealt per sample")
    table = make_table(["sampler"], (*speeds, "set-up s", "peak MiB"))
    with tempfile.TemporaryDirectory() as directory:
        path = Path(INDEX.value or f"{directory}/index.npy")
        if not INDEX.value:
            write_index(path, SAMPLES.value, CLASSES.value)
        for label in CASES:
            flag = [f"--only={label}", f"--index={path}", f"--rounds={ROUNDS.value}"]
            run = [sys.executable, "-m", "benchmarks.samplers", *flag]
            printed = subprocess.run(run, check=True, capture_output=True, text=True)
            row = json.loads(printed.stdout.splitlines()[-1])
            table.add_row(
                label,
                f"{row['seen'] / 1e6:.2f}",
                f"{row['used'] / 1e6:.2f}",
                f"{row['share']:.2f}",
                f"{row['setup']:.1f}",
                f"{row['mib']:.0f}",
            )
    table.title = (
        f"{SAMPLES.value:,} samples, {CLASSES.value} classes, batch_max=9, batch_cl=8 "
        f"unless stated; {os.cpu_count()} cores; packing took {row['packing']:.1f} s"
    )
    Console(width=120).print(table)


if __name__ == "__main__":
    cli.run(main)

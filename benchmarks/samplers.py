"""Speed and memory of the samplers when they choose batches on a synthetic class index.

python -m benchmarks.samplers
python -m benchmarks.samplers --samples=10000000 --classes=150 --rounds=1

The index is a memory-mapped array on disk with the pixel counts of each class in each
sample, like a real class index. Each sampler plans in its own process, on one core.
Speeds are per second of CPU time, as the median over epochs: the samples in the index,
and the samples that are put into batches. The peak memory is that of the sampler and
its plans, without the imports. The mapped file is closed before; its pages are not
counted.
"""

import os
import tempfile
from pathlib import Path

from absl import flags
from rich.console import Console

from benchmarks.planning import measure_apart
from benchmarks.synthetic_index import CASES, write_index
from segloss import cli
from segloss.report import make_table

SAMPLES = flags.DEFINE_integer(
    "samples", 10_000_000, "Number in the index.", lower_bound=1
)
CLASSES = flags.DEFINE_integer("classes", 21, "Number in the index.", lower_bound=13)
ROUNDS = flags.DEFINE_integer("rounds", 3, "Epochs planned.", lower_bound=1)
INDEX = flags.DEFINE_string("index", None, "Class index to use instead.")


def main(argv: list[str]) -> None:
    """Prints a table with a row per sampler."""
    speeds = ("M samples/s", "M dealt/s", "dealt per sample")
    table = make_table(["sampler"], (*speeds, "set-up s", "peak MiB"))
    with tempfile.TemporaryDirectory() as directory:
        path = Path(INDEX.value or f"{directory}/index.npy")
        if not INDEX.value:
            write_index(path, SAMPLES.value, CLASSES.value)
        for label in CASES:
            row = measure_apart(label, path, ROUNDS.value)
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

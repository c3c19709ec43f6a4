"""Time and memory of the class index and the samplers for very large datasets.

python -m benchmarks.large_index
python -m benchmarks.large_index --samples=1000000 --samples=10000000

For each number of samples, a synthetic class index is written, and every sampler plans
with it in its own process, as in `benchmarks.samplers`. Figures for `--target` samples
are extrapolated: those of the largest index that was measured, times the ratio of the
numbers of samples. The bytes per sample of all sizes are shown, so that it can be seen
whether memory is proportional. Needs twice the size of the largest index on disk.
"""

import tempfile
from pathlib import Path

from absl import flags

from benchmarks.environment import command, publish, versions
from benchmarks.planning import Row, index_table, measure_apart, sampler_table
from benchmarks.synthetic_index import CASES, write_index
from segloss import cli

SAMPLES = flags.DEFINE_multi_integer(
    "samples",
    [10_000_000, 100_000_000],
    "Numbers of samples to measure.",
    lower_bound=1,
)
TARGET = flags.DEFINE_integer("target", 10**9, "Extrapolate to this many samples.")
CLASSES = flags.DEFINE_integer("classes", 21, "Number of classes.", lower_bound=13)
OUTPUT = flags.DEFINE_string("output", None, "Markdown file to write.")

SAMPLERS = [label for label in CASES if ", " not in label]
PACKAGES = ("numpy", "numba")


def measure(num_samples: int) -> dict[str, Row]:
    """Measures every sampler with an index of `num_samples` samples.

    The figures are those of `benchmarks.planning.measure`, and the bytes of the file.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index.npy"
        write_index(path, num_samples, CLASSES.value)
        disk = path.stat().st_size
        return {
            label: measure_apart(label, path, rounds=1) | {"disk": disk}
            for label in SAMPLERS
        }


def main(argv: list[str]) -> None:
    measured = {n: measure(n) for n in sorted(SAMPLES.value)}
    tables = [make(measured, TARGET.value) for make in (index_table, sampler_table)]
    notes = (
        f"{command('benchmarks.large_index')}\n\n{CLASSES.value} classes, batch_max=9, "
        f"batch_cl=8, CPU time of one core; {versions(PACKAGES)}."
    )
    publish(tables, notes, OUTPUT.value)


if __name__ == "__main__":
    cli.run(main)

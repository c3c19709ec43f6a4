"""Images per second that chips need, and CPU cores that load them.

python -m benchmarks.input_rate --steps=runs/steps
python -m benchmarks.input_rate --steps=runs/steps --utilisation=0.5 --images=400

The rate of a chip follows from the FLOPs of a training step that
`benchmarks.compiled_steps` compiled, with images of at most 500x500 pixels, at the
stated share of the chip's peak arithmetic. It is compared with the most that the peak
arithmetic and the memory bandwidth of the chip allow.

A core is measured with segloss's own loader and random batches of 9 images: reading,
decoding and placing them in arrays on JAX's CPU device. The images per second of CPU
time of the whole process hold for a core that does nothing else. The median of the
rounds is shown.
"""

import collections
import dataclasses
import json
import math
import statistics
import tempfile
import time
from pathlib import Path

import jax
from absl import flags

from benchmarks.data import IMAGES, OUTPUT, ROUNDS, Data, find_data
from benchmarks.environment import command, publish, versions
from benchmarks.rates import rate_table
from segloss import cli
from segloss.data import RandomBatch, iterate_batches
from segloss.report import make_table

STEPS = flags.DEFINE_string("steps", "runs/steps", "Results of compiled_steps.")
UTILISATION = flags.DEFINE_float(
    "utilisation", 0.4, "Share of peak arithmetic.", lower_bound=0.01, upper_bound=1
)

BATCH = 9
PACKAGES = ("jax", "grain", "array_record", "numpy", "pillow")


def images_per_cpu_second(data: Data, num_images: int, rounds: int) -> float:
    """Measures how many images a core loads per second, as the median of the rounds."""
    sampler = RandomBatch(data.presence, batch_max=BATCH)
    loading = dataclasses.replace(data.loading, num_threads=1)
    stop = math.ceil(num_images / BATCH)
    speeds = []
    for _ in range(rounds + 1):  # the first fills caches
        start = time.process_time()
        batches = iterate_batches(
            data.dataset.source("train"),
            sampler,
            loading,
            start=0,
            stop=stop,
            num_devices=1,
        )
        placed = (jax.block_until_ready(jax.device_put(batch)) for batch in batches)
        collections.deque(placed, maxlen=0)
        speeds.append(stop * sampler.batch_min / (time.process_time() - start))
    return statistics.median(speeds[1:])


def main(argv: list[str]) -> None:
    steps = [json.loads(path.read_text()) for path in Path(STEPS.value).glob("*.json")]
    steps.sort(key=lambda step: (step["network"], step["chip"], step["chips"]))
    with tempfile.TemporaryDirectory() as scratch:
        cores = {
            name: images_per_cpu_second(data, IMAGES.value, ROUNDS.value)
            for name, data in find_data(Path(scratch))
        }
    measured = make_table(["data"], ["images/s of a core"])
    for name, speed in cores.items():
        measured.add_row(name, f"{speed:.0f}")
    notes = (
        f"{command('benchmarks.input_rate')}\n\n{IMAGES.value} images per round, "
        f"median of {ROUNDS.value} rounds; {versions(PACKAGES)}."
    )
    rates = rate_table(steps, cores, UTILISATION.value)
    publish([measured, rates], notes, OUTPUT.value)


if __name__ == "__main__":
    cli.run(main)

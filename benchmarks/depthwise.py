"""Time of depthwise convolutions, forward and with both gradients.

python -m benchmarks.depthwise
python -m benchmarks.depthwise --rounds=9 --output=depthwise.md

The layers are those of EfficientNet-Lite0 for 9 images of 256x256. "grouped" is
`lax.conv_general_dilated`. "shifted, autodiff" is our forward pass with the derivative
that JAX makes of it. Times are CPU seconds of all threads of the process, which the
load of the machine changes less than wall time. `benchmarks.compiled` has the same
layers for a TPU and a GPU.
"""

import functools
import statistics
import time

import jax
import numpy as np
from absl import flags
from rich.table import Table

from benchmarks.environment import command, device, publish, versions
from benchmarks.layer_rows import (
    AUTODIFF,
    GROUPED,
    LAYERS,
    OURS,
    Layer,
    candidates,
    input_shapes,
    step,
)
from benchmarks.timing import interleave, keep_freed_memory, ratio
from segloss import cli
from segloss.report import make_table

ROUNDS = flags.DEFINE_integer("rounds", 5, "Timings per candidate.", lower_bound=1)
OUTPUT = flags.DEFINE_string("output", None, "Markdown file to write.")


def measure(layer: Layer) -> dict[tuple[str, str], list[float]]:
    """Returns the CPU seconds of each round by ("forward" or "step", candidate)."""
    rng = np.random.default_rng(0)
    arrays = [
        jax.device_put(rng.standard_normal(shape.shape, np.float32))
        for shape in input_shapes(layer, "float32")
    ]
    calls = {}
    for who, conv in candidates(layer).items():
        for what, function, count in (
            ("forward", conv, 2),
            ("step", functools.partial(step, conv), 3),
        ):
            compiled = jax.jit(function).lower(*arrays[:count]).compile()
            calls[what, who] = functools.partial(_run, compiled, arrays[:count])
    return interleave(calls, ROUNDS.value, clock=time.process_time)


def _run(compiled: jax.stages.Compiled, arrays: list[jax.Array]) -> None:
    jax.block_until_ready(compiled(*arrays))


def add_rows(table: Table, layer: Layer) -> None:
    seconds = measure(layer)
    for what in ("forward", "step"):
        ours = seconds[what, OURS]
        peers = [(ratio(seconds[what, who], ours)) for who in (GROUPED, AUTODIFF)]
        milliseconds = f"{1e3 * statistics.median(ours):.0f}"
        table.add_row(str(layer), what, milliseconds, *map(str, peers))


def main(argv: list[str]) -> None:
    keep_freed_memory()
    columns = ("ours, CPU ms", f"{GROUPED}: x ours", f"{AUTODIFF}: x ours")
    table = make_table(["layer", "pass"], columns)
    for layer in LAYERS:
        add_rows(table, layer)
    notes = (
        f"{command('benchmarks.depthwise')}\n\n9 images, float32, median of "
        f"{ROUNDS.value} rounds on {device()}; {versions(['jax'])}."
    )
    publish([table], notes, OUTPUT.value)


if __name__ == "__main__":
    cli.run(main)

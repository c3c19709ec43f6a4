"""Time and memory of every loss and its gradient, compared with optax and keras.

Runs on the available device. `make bench-compiled` compares the memory traffic of the
losses compiled for TPUs and a GPU, without the chips.

python -m benchmarks.losses
python -m benchmarks.losses --only='dice|tversky' --dtype=float32 --rounds=5
python -m benchmarks.losses --shape=16x512x512x21 --output=losses.md

Each loss is compiled as value and gradient with respect to the logits. All losses and
peers take turns in one process, so that load on the machine affects all of them
equally; a ratio is the median over the rounds, with the lowest and the highest. Freed
memory is reused, as in a training step. Peers are optax and, if installed, keras (on
JAX). The bars are 1.05 times the time of the fastest peer, and the temporary memory of
the peer with the least.

The floor is the time to move the necessary bytes (read logits and labels in the forward
and in the backward pass, write the gradient) at the speed at which XLA copies the
logits. Temporary memory is what XLA reports in addition to inputs and outputs.
"""

import itertools
import statistics
from collections.abc import Mapping, Sequence

from absl import flags
from rich.table import Table

from benchmarks.candidates import COPY, OURS, Candidate, Key, make_candidates
from benchmarks.environment import command, device, publish, versions
from benchmarks.loss_rows import make_rows, parse_shape, pick
from benchmarks.timing import interleave, keep_freed_memory, ratio
from segloss import cli
from segloss.console import make_progress
from segloss.report import make_table

SHAPE = flags.DEFINE_string(
    "shape", "4x321x321x21", "Shape of the logits: batch, spatial sizes, classes."
)
DTYPE = flags.DEFINE_multi_enum(
    "dtype",
    ["float32", "bfloat16"],
    ["float32", "bfloat16", "float16"],
    "Of the logits.",
)
ROUNDS = flags.DEFINE_integer("rounds", 9, "Timings per candidate.", lower_bound=1)
CALLS = flags.DEFINE_integer(
    "calls",
    1,
    "Calls timed together; larger values hide the launch cost on a GPU.",
    lower_bound=1,
)
ONLY = flags.DEFINE_string("only", "", "Regular expression that selects losses.")
LIST = flags.DEFINE_bool(
    "list", False, "List the losses and their peers without timing."
)
OUTPUT = flags.DEFINE_string("output", None, "Markdown file to write.")

PACKAGES = ("jax", "optax", "keras")
# Limit of our time, relative to the fastest peer.
TIME_BAR = 1.05


def time_all(candidates: Mapping[Key, Candidate]) -> dict[Key, list[float]]:
    calls = {key: candidate.call for key, candidate in candidates.items()}
    with make_progress(transient=True) as progress:
        task = progress.add_task("", total=len(calls) * (ROUNDS.value + 1))

        def show(key: Key) -> None:
            progress.update(task, description=" ".join(key), advance=1)

        seconds = interleave(calls, ROUNDS.value, on_call=show)
    return {key: [t / CALLS.value for t in times] for key, times in seconds.items()}


def loss_table(
    names: Sequence[str],
    dtypes: Sequence[str],
    candidates: Mapping[Key, Candidate],
    seconds: Mapping[Key, list[float]],
) -> Table:
    """Makes the table with a row for each loss and dtype.

    Ratios are our time divided by the floor, or by that of the fastest peer.
    """
    table = make_table(
        ["dtype", "loss"],
        ["ms", "floor ms", "x floor", "memory x logits"],
        ["ours / fastest peer", "least memory", "bars met"],
    )
    for dtype, name in itertools.product(dtypes, names):
        ours = candidates[dtype, name, OURS]
        times = seconds[dtype, name, OURS]
        scale = ours.floor_bytes / candidates[COPY].floor_bytes
        floor = [scale * t for t in seconds[COPY]]
        against, memory, missed = compare(dtype, name, candidates, seconds)
        table.add_row(
            dtype,
            name,
            milliseconds(times),
            milliseconds(floor),
            str(ratio(times, floor)),
            f"{ours.memory:.2f}",
            against,
            memory,
            "no: " + "; ".join(missed) if missed else "yes",
        )
    return table


def compare(
    dtype: str,
    name: str,
    candidates: Mapping[Key, Candidate],
    seconds: Mapping[Key, list[float]],
) -> tuple[str, str, list[str]]:
    """Returns the fastest peer, the peer with the least memory, and the missed bars.

    Each peer is a text: its name, and our time divided by its time, or its memory.
    """
    ours = (dtype, name, OURS)
    peers = [key for key in candidates if key[:2] == ours[:2] and key != ours]
    if not peers:
        return "", "", []
    fastest = min(peers, key=lambda key: statistics.median(seconds[key]))
    smallest = min(peers, key=lambda key: candidates[key].memory)
    time, memory = ratio(seconds[ours], seconds[fastest]), candidates[smallest].memory
    missed = []
    if time.median > TIME_BAR:
        missed.append(f"{fastest[2]} {time.median:.2f} > {TIME_BAR}")
    if candidates[ours].memory > memory:
        missed.append(f"memory {candidates[ours].memory:.2f} > {memory:.2f}")
    return f"{fastest[2]} {time}", f"{smallest[2]} {memory:.2f}", missed


def milliseconds(times: Sequence[float]) -> str:
    return f"{1e3 * statistics.median(times):.3g}"


def describe(bytes_per_second: float) -> str:
    """Returns a text with the run's command, device, copy speed and versions."""
    return (
        f"{command('benchmarks.losses')}\n\n{SHAPE.value}, median of {ROUNDS.value} "
        f"rounds on {device()}, copying {bytes_per_second / 1e9:.1f} GB/s; "
        f"{versions(PACKAGES)}.\n"
    )


def main(argv: list[str]) -> None:
    shape = parse_shape(SHAPE.value)
    rows = pick(make_rows(shape[-1]), ONLY.value)
    if LIST.value:
        for name, row in rows.items():
            print(name + (f": {', '.join(row.peers)}" if row.peers else ""))
        return
    keep_freed_memory()
    candidates, failures = make_candidates(rows, shape, DTYPE.value, calls=CALLS.value)
    seconds = time_all(candidates)
    table = loss_table(list(rows), DTYPE.value, candidates, seconds)
    speed = candidates[COPY].floor_bytes / statistics.median(seconds[COPY])
    notes = describe(speed) + "".join(f"\n- {failure}" for failure in failures)
    publish([table], notes, OUTPUT.value)


if __name__ == "__main__":
    cli.run(main)

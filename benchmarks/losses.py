"""Time and memory of every loss and its gradient, against peers and the machine.

python -m benchmarks.losses
python -m benchmarks.losses --only='dice|tversky' --dtype=float32 --rounds=5
python -m benchmarks.losses --shape=16x512x512x21 --output=losses.md

Each loss is compiled as value and gradient with respect to the logits. All losses and
peers take turns in one process, so that a busy machine slows all of them alike; a ratio
is the median over the rounds, with the lowest and the highest. Peers are what is
installed of optax, keras (on JAX), torch, segmentation_models_pytorch and MONAI.

The floor is what the machine needs for the bytes: logits and labels read forward and
again backward, the gradient written, at the speed at which XLA copies as many logits
into a new array. Temporary memory is what XLA says it takes beside inputs and outputs.
"""

import contextlib
import functools
import itertools
import os
import platform
import re
import shlex
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import app, flags
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.jax_candidates import Row, make_inputs, make_rows
from benchmarks.timing import interleave, ratio
from benchmarks.torch_peers import torch_peers
from segloss.report import markdown_table

SHAPE = flags.DEFINE_string(
    "shape", "4x321x321x21", "Of the logits: batch, spatial sizes, classes."
)
DTYPE = flags.DEFINE_multi_enum(
    "dtype", ["float32", "bfloat16"], ["float32", "bfloat16", "float16"], "Of logits."
)
ROUNDS = flags.DEFINE_integer("rounds", 9, "How often each is timed.", lower_bound=1)
CALLS = flags.DEFINE_integer(
    "calls",
    1,
    "Calls that are timed together; more hide the cost of a launch on a GPU.",
    lower_bound=1,
)
THREADS = flags.DEFINE_integer(
    "torch_threads", None, "None is one for each CPU; XLA takes all.", lower_bound=1
)
ONLY = flags.DEFINE_string("only", "", "A regular expression that picks losses.")
LIST = flags.DEFINE_bool("list", False, "List the losses and their peers, time none.")
OUTPUT = flags.DEFINE_string("output", None, "A markdown file to write.")

PACKAGES = ("jax", "optax", "keras", "torch", "segmentation_models_pytorch", "monai")


class Candidate(NamedTuple):
    """Something to time.

    Attributes:
        call: does the work `CALLS` times, and returns when it is done.
        library: "ours", "jax" or "torch".
        memory: temporary, in multiples of the logits; None where it is not known.
        floor_bytes: what has to be read and written.
    """

    call: Callable[[], object]
    library: str
    memory: float | None = None
    floor_bytes: int = 0


Key = tuple[str, str, str]  # dtype, row, and "ours" or the name of the peer
OURS = "ours"
COPY: Key = ("float32", "copy", OURS)


def jax_candidate(library: str, loss: Callable, logits: Any, labels: Any) -> Candidate:
    step = jax.jit(jax.value_and_grad(loss)).lower(logits, labels).compile()

    def call() -> None:
        for _ in range(CALLS.value):
            outputs = step(logits, labels)
        jax.block_until_ready(outputs)

    memory = step.memory_analysis().temp_size_in_bytes / logits.nbytes
    label_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(labels))
    return Candidate(call, library, memory, 3 * logits.nbytes + 2 * label_bytes)


def copy_candidate(logits: Any) -> Candidate:
    copy = jax.jit(lambda x: x + 1)

    def call() -> None:
        for _ in range(CALLS.value):
            output = copy(logits)
        output.block_until_ready()

    return Candidate(call, "ours", floor_bytes=2 * logits.nbytes)


def torch_candidate(loss: Callable, logits: Any, labels: Any) -> Candidate:
    import torch

    def call() -> None:
        for _ in range(CALLS.value):
            torch.autograd.grad(loss(logits, labels), logits)
        if logits.is_cuda:
            torch.cuda.synchronize()

    call()  # raises now if it cannot
    return Candidate(call, "torch")


def to_torch(kind: str, logits: Any, labels: Any, dtype: str) -> tuple[Any, Any]:
    """Logits that want a gradient, and labels, with the channels first."""
    import torch

    def convert(array: Any) -> Any:
        tensor = torch.from_numpy(array)
        channels = kind != "binary" and array.ndim == logits.ndim
        return tensor.movedim(-1, 1).contiguous() if channels else tensor

    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    scores = convert(logits).to(device, getattr(torch, dtype)).requires_grad_()
    labels = convert(labels)
    return scores, labels.to(
        device, scores.dtype if labels.is_floating_point() else int
    )


def make_candidates(
    rows: Mapping[str, Row], shape: tuple[int, ...], dtypes: Sequence[str]
) -> tuple[dict[Key, Candidate], list[str]]:
    """What to time, a row's beside each other, and in words what fails."""
    inputs, of_torch = make_inputs(shape), usable_torch_peers()

    @functools.cache
    def on_device(kind: str, dtype: str) -> tuple[Any, Any]:
        logits, labels = inputs[kind]
        return jnp.asarray(logits, dtype), jax.device_put(labels)

    @functools.cache
    def in_torch(kind: str, dtype: str) -> tuple[Any, Any]:
        return to_torch(kind, *inputs[kind], dtype)

    candidates = {COPY: copy_candidate(on_device("ids", "float32")[0])}
    failures = []

    def add(key: Key, make: Callable[..., Candidate], *arguments: Any) -> None:
        try:
            candidates[key] = make(*arguments)
        except Exception as error:  # a peer may fail in any way
            if key[2] == OURS:
                raise
            reason = str(error).strip().splitlines() or [type(error).__name__]
            failures.append(f"{key[2]} has no {key[1]} of {key[0]}: {reason[0]}")

    with Progress(transient=True) as progress:
        task = progress.add_task("", total=len(dtypes) * len(rows))
        for dtype, (name, row) in itertools.product(dtypes, rows.items()):
            progress.update(task, description=f"{name}, {dtype}: compile", advance=1)
            arrays = on_device(row.inputs, dtype)
            add((dtype, name, OURS), jax_candidate, "ours", row.loss, *arrays)
            for peer, loss in row.peers.items():
                add((dtype, name, peer), jax_candidate, "jax", loss, *arrays)
            for peer, loss in of_torch.get(name, {}).items():
                arrays = in_torch(row.inputs, dtype)
                add((dtype, name, peer), torch_candidate, loss, *arrays)
    return candidates, failures


def usable_torch_peers() -> dict[str, dict[str, Callable]]:
    """None where torch cannot use the kind of device that JAX uses."""
    peers = torch_peers()
    if not peers:
        return {}
    import torch

    torch.set_num_threads(THREADS.value or len(os.sched_getaffinity(0)))
    if jax.default_backend() == "gpu" and not torch.cuda.is_available():
        return {}
    return peers if jax.default_backend() in ("cpu", "gpu") else {}


def time_all(candidates: Mapping[Key, Candidate]) -> dict[Key, list[float]]:
    calls = {key: candidate.call for key, candidate in candidates.items()}
    with Progress(transient=True) as progress:
        task = progress.add_task("", total=len(calls) * (ROUNDS.value + 1))

        def show(key: Key) -> None:
            progress.update(task, description=" ".join(key), advance=1)

        seconds = interleave(calls, ROUNDS.value, on_call=show)
    return {key: [t / CALLS.value for t in times] for key, times in seconds.items()}


def make_table(
    rows: Mapping[str, Row],
    dtypes: Sequence[str],
    candidates: Mapping[Key, Candidate],
    seconds: Mapping[Key, list[float]],
) -> Table:
    """A row for each loss and dtype; a ratio is our time over the other's."""
    table = Table("loss", "dtype")
    for column in ("ms", "floor ms", "x floor", "memory x logits"):
        table.add_column(column, justify="right")
    for column in ("ours / fastest in JAX", "ours / fastest in torch", "bars met"):
        table.add_column(column)
    for dtype, (name, row) in itertools.product(dtypes, rows.items()):
        ours = candidates[dtype, name, OURS]
        times = seconds[dtype, name, OURS]
        scale = ours.floor_bytes / candidates[COPY].floor_bytes
        floor = [scale * t for t in seconds[COPY]]
        missed = []
        if row.memory_bar is not None and ours.memory > row.memory_bar:
            missed.append(f"memory {ours.memory:.2f} > {row.memory_bar}")
        cells = []
        for library, bar in (("jax", row.jax_bar), ("torch", row.torch_bar)):
            fastest = fastest_peer(library, dtype, name, candidates, seconds)
            if fastest is None:
                cells.append("")
                continue
            against = ratio(times, seconds[fastest])
            memory = candidates[fastest].memory
            detail = "" if memory is None else f", memory {memory:.2f}"
            cells.append(f"{fastest[2]} {against}{detail}")
            if against.median > bar:
                missed.append(f"{fastest[2]} {against.median:.2f} > {bar:.2f}")
        if row.own_bar is not None:
            other, bar = row.own_bar
            against = ratio(times, seconds[dtype, other, OURS])
            if against.median > bar:
                missed.append(f"{other} {against.median:.2f} > {bar:.2f}")
        table.add_row(
            name,
            dtype,
            milliseconds(times),
            milliseconds(floor),
            str(ratio(times, floor)),
            f"{ours.memory:.2f}",
            *cells,
            "no: " + "; ".join(missed) if missed else "yes",
        )
    return table


def fastest_peer(
    library: str,
    dtype: str,
    name: str,
    candidates: Mapping[Key, Candidate],
    seconds: Mapping[Key, list[float]],
) -> Key | None:
    peers = [
        key
        for key, candidate in candidates.items()
        if key[:2] == (dtype, name) and candidate.library == library
    ]
    return min(peers, key=lambda key: statistics.median(seconds[key]), default=None)


def milliseconds(times: Sequence[float]) -> str:
    return f"{1e3 * statistics.median(times):.3g}"


def describe() -> str:
    """The command, the device and the versions."""
    device = jax.devices()[0]
    versions = [f"python {platform.python_version()}"]
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions.append(f"{package} {metadata.version(package)}")
    command = shlex.join(["python", "-m", "benchmarks.losses", *sys.argv[1:]])
    return (
        f"`{command}`\n\n{SHAPE.value}, median of {ROUNDS.value} rounds on one "
        f"{device.device_kind} ({device.platform}), "
        f"{len(os.sched_getaffinity(0))} CPUs; {', '.join(versions)}.\n"
    )


def parse_shape(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){2,4}", text):
        raise app.UsageError(f"--shape must read as 4x321x321x21, got {text!r}.")
    return tuple(int(size) for size in text.split("x"))


def pick(rows: Mapping[str, Row], pattern: str) -> dict[str, Row]:
    """The rows that match, and those that they are measured against."""
    picked = {name for name in rows if re.search(pattern, name)}
    picked |= {rows[name].own_bar[0] for name in picked if rows[name].own_bar}
    if not picked:
        raise app.UsageError(f"--only={pattern} picks none of {', '.join(rows)}.")
    return {name: row for name, row in rows.items() if name in picked}


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}; flags start with --.")
    shape = parse_shape(SHAPE.value)
    rows = pick(make_rows(shape[-1]), ONLY.value)
    if LIST.value:
        of_torch = torch_peers()
        for name, row in rows.items():
            peers = [*row.peers, *of_torch.get(name, {})]
            print(name + (f": {', '.join(peers)}" if peers else ""))
        return
    candidates, failures = make_candidates(rows, shape, DTYPE.value)
    table = make_table(rows, DTYPE.value, candidates, time_all(candidates))
    notes = describe() + "".join(f"\n- {failure}" for failure in failures)
    Console().print(table, notes)
    if OUTPUT.value is not None:
        Path(OUTPUT.value).write_text(f"{markdown_table(table)}\n{notes}\n")


if __name__ == "__main__":
    app.run(main)

"""Compiled losses of segloss and peer libraries, ready to time."""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.loss_rows import Row, make_inputs
from segloss.console import make_progress


class Candidate(NamedTuple):
    """A function to time.

    Attributes:
        call: does the work, and returns when it is complete.
        memory: temporary memory as a multiple of the size of the logits; None if
            unknown.
        floor_bytes: least number of bytes that must be read and written.
    """

    call: Callable[[], object]
    memory: float | None = None
    floor_bytes: int = 0


Key = tuple[str, str, str]  # dtype, row, and "ours" or the name of the peer
OURS = "ours"
COPY: Key = ("float32", "copy", OURS)


def loss_candidate(calls: int, loss: Callable, logits: Any, labels: Any) -> Candidate:
    step = jax.jit(jax.value_and_grad(loss)).lower(logits, labels).compile()

    def call() -> None:
        for _ in range(calls):
            outputs = step(logits, labels)
        jax.block_until_ready(outputs)

    memory = step.memory_analysis().temp_size_in_bytes / logits.nbytes
    label_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(labels))
    return Candidate(call, memory, 3 * logits.nbytes + 2 * label_bytes)


def copy_candidate(calls: int, logits: Any) -> Candidate:
    copy = jax.jit(lambda x: x + 1)

    def call() -> None:
        for _ in range(calls):
            output = copy(logits)
        output.block_until_ready()

    return Candidate(call, floor_bytes=2 * logits.nbytes)


def make_candidates(
    rows: Mapping[str, Row],
    shape: tuple[int, ...],
    dtypes: Sequence[str],
    *,
    calls: int,
) -> tuple[dict[Key, Candidate], list[str]]:
    """Compiles each loss and its peers as value and gradient.

    Returns the candidates, including a copy of the logits, and a message for each peer
    that fails. A candidate makes `calls` calls.
    """
    inputs = make_inputs(shape)

    @functools.cache
    def on_device(kind: str, dtype: str) -> tuple[Any, Any]:
        logits, labels = inputs[kind]
        return jnp.asarray(logits, dtype), jax.device_put(labels)

    candidates = {COPY: copy_candidate(calls, on_device("ids", "float32")[0])}
    failures = []

    def add(key: Key, loss: Callable, *arrays: Any) -> None:
        try:
            candidates[key] = loss_candidate(calls, loss, *arrays)
        except Exception as error:  # a peer may raise any exception
            if key[2] == OURS:
                raise
            reason = str(error).strip().splitlines() or [type(error).__name__]
            failures.append(f"{key[2]} fails on {key[1]} ({key[0]}): {reason[0]}")

    with make_progress(transient=True) as progress:
        task = progress.add_task("", total=len(dtypes) * len(rows))
        for dtype, (name, row) in itertools.product(dtypes, rows.items()):
            progress.update(task, description=f"{name}, {dtype}: compile", advance=1)
            arrays = on_device(row.inputs, dtype)
            for who, loss in {OURS: row.loss, **row.peers}.items():
                add((dtype, name, who), loss, *arrays)
    return candidates, failures

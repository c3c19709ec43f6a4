"""Compiled losses and peers, ready to be timed."""

import functools
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from rich.progress import Progress

from benchmarks.loss_rows import Row, make_inputs
from benchmarks.torch_peers import torch_peers


class Candidate(NamedTuple):
    """Something to time.

    Attributes:
        call: does the work, and returns when it is done.
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


def jax_candidate(
    library: str, calls: int, loss: Callable, logits: Any, labels: Any
) -> Candidate:
    step = jax.jit(jax.value_and_grad(loss)).lower(logits, labels).compile()

    def call() -> None:
        for _ in range(calls):
            outputs = step(logits, labels)
        jax.block_until_ready(outputs)

    memory = step.memory_analysis().temp_size_in_bytes / logits.nbytes
    label_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(labels))
    return Candidate(call, library, memory, 3 * logits.nbytes + 2 * label_bytes)


def copy_candidate(calls: int, logits: Any) -> Candidate:
    copy = jax.jit(lambda x: x + 1)

    def call() -> None:
        for _ in range(calls):
            output = copy(logits)
        output.block_until_ready()

    return Candidate(call, "ours", floor_bytes=2 * logits.nbytes)


def torch_candidate(calls: int, loss: Callable, logits: Any, labels: Any) -> Candidate:
    import torch

    def call() -> None:
        for _ in range(calls):
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
    rows: Mapping[str, Row],
    shape: tuple[int, ...],
    dtypes: Sequence[str],
    *,
    calls: int,
    torch_threads: int | None,
) -> tuple[dict[Key, Candidate], list[str]]:
    """What to time, a row's beside each other, and in words what fails."""
    inputs, of_torch = make_inputs(shape), usable_torch_peers(torch_threads)

    @functools.cache
    def on_device(kind: str, dtype: str) -> tuple[Any, Any]:
        logits, labels = inputs[kind]
        return jnp.asarray(logits, dtype), jax.device_put(labels)

    @functools.cache
    def in_torch(kind: str, dtype: str) -> tuple[Any, Any]:
        return to_torch(kind, *inputs[kind], dtype)

    candidates = {COPY: copy_candidate(calls, on_device("ids", "float32")[0])}
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
            add((dtype, name, OURS), jax_candidate, "ours", calls, row.loss, *arrays)
            for peer, loss in row.peers.items():
                add((dtype, name, peer), jax_candidate, "jax", calls, loss, *arrays)
            for peer, loss in of_torch.get(name, {}).items():
                arrays = in_torch(row.inputs, dtype)
                add((dtype, name, peer), torch_candidate, calls, loss, *arrays)
    return candidates, failures


def usable_torch_peers(threads: int | None) -> dict[str, dict[str, Callable]]:
    """None where torch cannot use the kind of device that JAX uses."""
    peers = torch_peers()
    if not peers:
        return {}
    import torch

    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    if jax.default_backend() == "gpu" and not torch.cuda.is_available():
        return {}
    return peers if jax.default_backend() in ("cpu", "gpu") else {}

"""Training steps to time: segloss, torch, and a matrix product for reference."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from benchmarks.timing import ratio
from segloss.data import Batch
from segloss.devices import AXIS, map_over_devices, replicate, shard
from segloss.losses import make_loss
from segloss.models import make_model
from segloss.report import make_table
from segloss.train import step as steps
from segloss.train.optimizers import constant, sgd
from segloss.train.step import make_state

NUM_CLASSES = 21
OURS = "segloss"
MATMUL = ("", "matmul")


class Candidate(NamedTuple):
    """A training step to time.

    Attributes:
        call: runs a fixed number of steps, and returns when they are complete.
        memory: peak memory in bytes; None if unknown.
    """

    call: Callable[[], object]
    memory: int | None


Key = tuple[str, str]  # network and implementation


def make_batch(size: int, batch: int) -> Batch:
    rng = np.random.default_rng(0)
    shape = (batch, size, size)
    return Batch(
        images=rng.integers(0, 256, (*shape, 3), np.uint8),
        labels=rng.integers(0, NUM_CLASSES, shape, np.uint8),
        valid=np.ones(shape, bool),
        sample_valid=np.ones(batch, bool),
    )


def as_they_are(keys, images, labels, valid):
    """Replaces augmentation: scales images to [0, 1] and changes nothing else."""
    return images / 255, labels, valid


def our_step(
    name: str, batch: Batch, *, dtype: str, calls: int, frozen: str | None = None
) -> tuple[Candidate, float]:
    """Returns a candidate of `calls` segloss steps, and the FLOPs of one step.

    `frozen` is a regular expression for the parameters to freeze.
    """
    model = make_model(name, num_classes=NUM_CLASSES, dtype=dtype, axis_name=AXIS)
    groups = [dict(match=frozen, frozen=True)] if frozen else ()
    rate = constant(10**9, learning_rate=1e-3)
    optimizer = sgd(rate, weight_decay=5e-4, groups=groups)
    devices = jax.devices()[:1]
    step = map_over_devices(
        steps.train_step,
        donate_first=True,
        devices=devices,
        model=model,
        loss=make_loss("softmax_cross_entropy"),
        optimizer=optimizer,
        augment=as_they_are,
        num_classes=NUM_CLASSES,
    )
    state = make_state(model, optimizer, seed=0, image_hw=batch["images"].shape[1:3])
    state = replicate(state, devices)
    batch = jax.device_put(shard(batch, 1))
    lowered = step.lower(state, batch)
    compiled = lowered.compile()
    planned = compiled.memory_analysis()
    memory = (
        planned.argument_size_in_bytes
        + planned.output_size_in_bytes
        - planned.alias_size_in_bytes
        + planned.temp_size_in_bytes
    )

    def call() -> None:
        nonlocal state
        for _ in range(calls):
            state, scalars = compiled(state, batch)
        jax.block_until_ready((state, scalars))

    return Candidate(call, memory), lowered.cost_analysis()["flops"]


def torch_step(
    name: str, batch: Batch, *, dtype: str, calls: int, compiled: bool
) -> Candidate:
    from benchmarks import torch_networks

    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    before = torch_networks.allocated_bytes(device)
    step = torch_networks.make_step(
        torch_networks.NETWORKS[name](NUM_CLASSES),
        batch["images"],
        batch["labels"],
        dtype=dtype,
        device=device,
        compiled=compiled,
    )

    def call() -> None:
        for _ in range(calls):
            step()
        torch_networks.await_device(device)

    call()  # raises here if the step does not work
    memory = torch_networks.peak_bytes(step, device)
    return Candidate(call, None if memory is None else memory - before)


def matmul(dtype: str, calls: int) -> tuple[Candidate, float]:
    """Returns a candidate of `calls` large matrix products, and the FLOPs of one.

    Their speed stands in for the peak of an unknown device.
    """
    size = 2048 if jax.default_backend() == "cpu" else 8192
    x = jnp.ones((size, size), dtype)
    multiply = jax.jit(jnp.matmul)

    def call() -> None:
        for _ in range(calls):
            product = multiply(x, x)
        product.block_until_ready()

    return Candidate(call, None), 2.0 * size**3


def make_candidates(
    names: list[str],
    batch: Batch,
    *,
    dtype: str,
    calls: int,
    torch_compile: bool,
    frozen: Sequence[str] = (),
) -> tuple[dict[Key, Candidate], dict[Key, float], list[str]]:
    """Returns the steps to time, the FLOPs of each, and a message per failure.

    Torch's step is compiled if `torch_compile` is True and this works, else eager. For
    each regular expression of `frozen`, our step also runs with the parameters frozen
    that it matches.
    """
    candidates, flops, failures = {}, {}, []
    options = dict(dtype=dtype, calls=calls)
    for name in names:
        for match in (None, *frozen):
            key = (name, f"{OURS}, {match} frozen" if match else OURS)
            candidates[key], flops[key] = our_step(name, batch, **options, frozen=match)
        ways = {"torch, compiled": True, "torch, eager": False}
        for way, compiled in ways.items():
            if compiled and not torch_compile:
                continue
            try:
                peer = torch_step(name, batch, **options, compiled=compiled)
            except Exception as error:  # a peer may raise any exception
                reason = str(error).strip().splitlines() or [type(error).__name__]
                failures.append(f"{way} fails on {name}: {reason[0]}")
                continue
            candidates[name, way] = peer
            flops[name, way] = flops[name, OURS]
            break
    return candidates, flops, failures


def step_table(
    candidates: Mapping[Key, Candidate],
    seconds: Mapping[Key, list[float]],
    flops: Mapping[Key, float],
    *,
    batch_size: int,
    peak: float,
) -> Table:
    """Makes the table with a row for each step; `x ours` is its time divided by ours.

    `peak` is the device's FLOP/s.
    """
    numbers = ("ms", "images/s", "peak GB", "TFLOP", "share of peak", "x ours")
    table = make_table(["network", "step of"], numbers)
    for (name, way), candidate in candidates.items():
        if (name, way) == MATMUL:
            continue
        times = seconds[name, way]
        median = statistics.median(times)
        memory = candidate.memory
        table.add_row(
            name,
            way,
            f"{1e3 * median:.4g}",
            f"{batch_size / median:.3g}",
            "" if memory is None else f"{memory / 1e9:.2f}",
            f"{flops[name, way] / 1e12:.3g}",
            f"{flops[name, way] / median / peak:.1%}",
            "" if way == OURS else str(ratio(times, seconds[name, OURS])),
        )
    return table

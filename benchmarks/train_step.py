"""Speed and memory of the pmapped training step, against torch on the same device.

python -m benchmarks.train_step
python -m benchmarks.train_step --size=65 --batch=2 --models=unet --rounds=3
python -m benchmarks.train_step --batch=16 --calls=5 --output=train_step.md

The step is that of `segloss.train` on one device: a batch of images that are there
already, cross-entropy, SGD with momentum; augmentation, which torch would leave to its
loader, is left out. Its peers are torchvision's DeepLab v3 and the same U-Net, channels
last, under `torch.compile` where that works. All take turns in one process.

FLOPs are those that XLA counts in the step before it optimises it, and of a peer the
same, because it computes the same. Their share of the peak is by the vendor's figure
(`PEAK_FLOPS`), or, where a device has none here, by the rate of a large matrix product
that takes its turn with the others. Memory is, of ours, what XLA plans for the step,
arguments included; of torch, what tensors took at most, which it only counts on GPUs.
"""

import os
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from rich.console import Console
from rich.table import Table

from benchmarks.environment import command, versions
from benchmarks.timing import interleave, keep_freed_memory, ratio
from segloss.data import Batch
from segloss.losses import make_loss
from segloss.models import make_model
from segloss.report import markdown_table
from segloss.train.optimizers import constant, sgd
from segloss.train.step import AXIS, make_state, pmap_train_step, replicate, shard

MODELS = flags.DEFINE_multi_enum(
    "models", ["unet", "deeplab_v3"], ["unet", "deeplab_v3"], "Networks."
)
SIZE = flags.DEFINE_integer("size", 513, "Height and width of images.", lower_bound=1)
BATCH = flags.DEFINE_integer("batch", 8, "Images of a step.", lower_bound=2)
DTYPE = flags.DEFINE_enum(
    "dtype",
    None,
    ["float32", "bfloat16"],
    "Of the computation; None is bfloat16, but on CPU float32.",
)
ROUNDS = flags.DEFINE_integer("rounds", 9, "How often each is timed.", lower_bound=1)
CALLS = flags.DEFINE_integer("calls", 1, "Steps timed together.", lower_bound=1)
COMPILE = flags.DEFINE_bool("torch_compile", True, "False leaves torch eager.")
OUTPUT = flags.DEFINE_string("output", None, "A markdown file to write.")

NUM_CLASSES = 21
PACKAGES = ("jax", "flax", "optax", "torch", "torchvision")
OURS = "segloss"
MATMUL = ("", "matmul")
# Dense matrix products per second by `device_kind`, from the vendors' data sheets.
PEAK_FLOPS = {
    "bfloat16": {
        "NVIDIA A100-SXM4-40GB": 312e12,
        "NVIDIA A100-SXM4-80GB": 312e12,
        "NVIDIA H100 80GB HBM3": 989e12,
        "NVIDIA H200": 989e12,
        "NVIDIA L4": 121e12,
        "TPU v4": 275e12,
        "TPU v5 lite": 197e12,
        "TPU v5p": 459e12,
        "TPU v6 lite": 918e12,
    },
}


class Candidate(NamedTuple):
    """A training step to time.

    Attributes:
        call: takes so many steps, and returns when they are done.
        memory: bytes at its peak; None where it is not known.
    """

    call: Callable[[], object]
    memory: int | None


Key = tuple[str, str]  # network, and who computes it


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
    """In place of augmentation."""
    return images / 255, labels, valid


def our_step(
    name: str, batch: Batch, *, dtype: str, calls: int
) -> tuple[Candidate, float]:
    """The step on one device, and its FLOPs."""
    model = make_model(name, num_classes=NUM_CLASSES, dtype=dtype, axis_name=AXIS)
    optimizer = sgd(constant(10**9, learning_rate=1e-3), weight_decay=5e-4)
    devices = jax.devices()[:1]
    step = pmap_train_step(
        devices,
        model=model,
        loss=make_loss("softmax_cross_entropy"),
        optimizer=optimizer,
        augment=as_they_are,
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

    call()  # raises now if it cannot
    memory = torch_networks.peak_bytes(step, device)
    return Candidate(call, None if memory is None else memory - before)


def matmul(dtype: str, calls: int) -> tuple[Candidate, float]:
    """A large matrix product and its FLOPs, for devices whose peak is not known."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
    x = jnp.ones((size, size), dtype)
    multiply = jax.jit(jnp.matmul)

    def call() -> None:
        for _ in range(calls):
            product = multiply(x, x)
        product.block_until_ready()

    return Candidate(call, None), 2.0 * size**3


def make_candidates(
    names: list[str], batch: Batch, *, dtype: str, calls: int, torch_compile: bool
) -> tuple[dict[Key, Candidate], dict[str, float], list[str]]:
    """What to time, the FLOPs of each network, and in words what fails."""
    candidates, flops, failures = {}, {}, []
    options = dict(dtype=dtype, calls=calls)
    for name in names:
        candidates[name, OURS], flops[name] = our_step(name, batch, **options)
        ways = {"torch, compiled": True, "torch, eager": False}
        for way, compiled in ways.items():
            if compiled and not torch_compile:
                continue
            try:
                peer = torch_step(name, batch, **options, compiled=compiled)
            except Exception as error:  # a peer may fail in any way
                reason = str(error).strip().splitlines() or [type(error).__name__]
                failures.append(f"{way} has no {name}: {reason[0]}")
                continue
            candidates[name, way] = peer
            break
    return candidates, flops, failures


def make_table(
    candidates: Mapping[Key, Candidate],
    seconds: Mapping[Key, list[float]],
    flops: Mapping[str, float],
    *,
    batch_size: int,
    peak: float,
) -> Table:
    """A row for each step; `x ours` is how many times as long as ours it takes."""
    table = Table("network", "step of")
    for column in ("ms", "images/s", "peak GB", "TFLOP", "share of peak", "x ours"):
        table.add_column(column, justify="right")
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
            f"{flops[name] / 1e12:.3g}",
            f"{flops[name] / median / peak:.1%}",
            "" if way == OURS else str(ratio(times, seconds[name, OURS])),
        )
    return table


def describe(dtype: str, peak: float, source: str) -> str:
    """The command, the device, its peak, and the versions."""
    device = jax.devices()[0]
    return (
        f"{command('benchmarks.train_step')}\n\n{BATCH.value} images of "
        f"{SIZE.value}x{SIZE.value}, {dtype}, median of {ROUNDS.value} rounds on one "
        f"{device.device_kind} ({device.platform}), {len(os.sched_getaffinity(0))} "
        f"CPUs; peak {peak / 1e12:.3g} TFLOP/s {source}; {versions(PACKAGES)}.\n"
    )


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}; flags start with --.")
    # The other library needs memory of the same device.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    logging.set_verbosity(logging.WARNING)
    keep_freed_memory()
    dtype = DTYPE.value or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    candidates, flops, failures = make_candidates(
        MODELS.value,
        make_batch(SIZE.value, BATCH.value),
        dtype=dtype,
        calls=CALLS.value,
        torch_compile=COMPILE.value,
    )
    peak = PEAK_FLOPS.get(dtype, {}).get(jax.devices()[0].device_kind)
    if peak is None:
        candidates[MATMUL], product = matmul(dtype, CALLS.value)
    calls = {key: candidate.call for key, candidate in candidates.items()}
    seconds = {
        key: [t / CALLS.value for t in times]
        for key, times in interleave(calls, ROUNDS.value).items()
    }
    source = "by its data sheet"
    if peak is None:
        peak = product / statistics.median(seconds[MATMUL])
        source = "by a matrix product"
    table = make_table(candidates, seconds, flops, batch_size=BATCH.value, peak=peak)
    notes = describe(dtype, peak, source) + "".join(f"\n- {x}" for x in failures)
    width = None if sys.stdout.isatty() else 200
    Console(width=width).print(table, notes, soft_wrap=True)
    if OUTPUT.value is not None:
        Path(OUTPUT.value).write_text(f"{markdown_table(table)}\n{notes}\n")


if __name__ == "__main__":
    app.run(main)

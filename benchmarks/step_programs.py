"""Lowers a training step for chips, and measures its memory and communication.

Bytes on the wire are the bytes that each chip sends in a ring all-reduce: `2 (n - 1) /
n` times the size of the arrays summed over n chips. They are split into gradients,
BatchNorm statistics (and their gradients), and the sums of the losses.
"""

import functools
import re
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from benchmarks import hlo
from segloss.data import Window, augment
from segloss.devices import AXIS
from segloss.losses import compound_loss
from segloss.models import make_model
from segloss.report import make_table
from segloss.train.optimizers import constant, sgd
from segloss.train.step import make_state, train_step

NETWORKS = {"unet": 512, "deeplab_v3": 513, "segnet": 512}
NUM_CLASSES = 21
CANVAS = 500  # pixels, the side of the largest images in PASCAL VOC
# Kinds of sums over the chips, by a part of the names of their operations.
KINDS = {
    "_moments": "BatchNorm",
    "loss": "losses",
    "gradients": "gradients",
    "metrics": "metrics",
}
_COLLECTIVE = re.compile(
    r"(all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-start)?$"
)


def lower_step(
    devices: list[jax.Device], network: str, *, size: int, batch: int, **hyperparameters
) -> jax.stages.Lowered:
    """Lowers the training step of `network` for all `devices`, without any array.

    Crops have `size` x `size` pixels, and each device has `batch` of them. Further
    `hyperparameters` are those of the network.
    """
    model = make_model(
        network,
        num_classes=NUM_CLASSES,
        dtype="bfloat16",
        axis_name=AXIS,
        **hyperparameters,
    )
    optimizer = sgd(constant(10**9, learning_rate=1e-2), weight_decay=5e-4, clip_norm=5)
    terms = [
        (1.0, "softmax_cross_entropy", {}),
        (1.0, "soft_dice", dict(classes="present")),
    ]
    step = functools.partial(
        train_step,
        model=model,
        loss=compound_loss(terms),
        optimizer=optimizer,
        augment=functools.partial(augment, crop_hw=(size, size)),
        num_classes=NUM_CLASSES,
    )
    mesh = jax.sharding.Mesh(np.array(devices), (AXIS,))
    rows = batch * len(devices)
    state = jax.eval_shape(
        functools.partial(make_state, model, optimizer, seed=0, image_hw=(size, size))
    )
    shape = jax.ShapeDtypeStruct
    pair = shape((rows, 2), jnp.int32)
    batch = dict(
        images=shape((rows, CANVAS, CANVAS, 3), jnp.uint8),
        labels=shape((rows, CANVAS, CANVAS), jnp.uint8),
        valid=shape((rows, CANVAS, CANVAS), bool),
        sample_valid=shape((rows,), bool),
        window=Window(shape((rows,), jnp.int32), pair, pair, pair),
    )
    specs = jax.P(), jax.P(AXIS)

    def place(tree: Any, spec: jax.P) -> Any:
        sharding = jax.NamedSharding(mesh, spec)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
        )

    # The step averages the gradients itself; `check_vma` would sum them in addition.
    mapped = jax.shard_map(
        step, mesh=mesh, in_specs=specs, out_specs=jax.P(), check_vma=False
    )
    inputs = map(place, (state, batch), specs)
    return jax.jit(mapped, donate_argnums=0).lower(*inputs)


def collectives(text: str) -> dict[str, dict[str, int]]:
    """Counts the collectives in a compiled step, given as HLO text.

    Returns "counts", by operation such as all-reduce, and "num_bytes" of their operands
    by kind: a value of `KINDS`, or "other".
    """
    counts, num_bytes = Counter(), Counter()
    for computation in hlo.parse(text).computations.values():
        for instruction in computation.values():
            if match := _COLLECTIVE.match(instruction.opcode):
                counts[match[1]] += 1
                types = [computation[name].type for name in instruction.operands]
                for kind, type_ in zip(_kinds(instruction), types, strict=True):
                    # Without the padding of TPU tiles.
                    num_bytes[kind] += hlo.bytes_of(re.sub(r":T\([^}]*", "", type_))
    return dict(counts=dict(counts), num_bytes=dict(num_bytes))


def _kinds(instruction: hlo.Instruction) -> list[str]:
    """Returns the kind of each operand of a collective: a value of `KINDS`, or "other".

    XLA merges collectives and names the result after all of them, or after only one.
    """
    name = re.search(r'op_name="([^"]*)"', instruction.attributes)
    names = re.sub(r".*/\((.*:.*)\)$", r"\1", name[1]).split(":") if name else [""]
    if len(names) != len(instruction.operands):
        names = names[:1] * len(instruction.operands)
    return [
        next((kind for part, kind in KINDS.items() if part in name), "other")
        for name in names
    ]


def measure(
    lowered: jax.stages.Lowered, flops: Callable[[], float]
) -> tuple[dict[str, Any], str]:
    """Compiles the step; returns the compiler's figures and the compiled HLO text.

    Args:
        lowered: the step.
        flops: returns the number of operations; called if the compiler does not report
            them.
    """
    start = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - start
    text = compiled.as_text()
    summed = collectives(text)
    if "other" in summed["num_bytes"]:
        # XLA for GPUs concatenates sums, which then have no names.
        apart = lowered.compile(dict(xla_gpu_all_reduce_combine_threshold_bytes=0))
        summed |= dict(num_bytes=collectives(apart.as_text())["num_bytes"])
    planned = compiled.memory_analysis()
    costs = compiled.cost_analysis() or {}  # the GPU compiler reports none
    arguments = planned.argument_size_in_bytes
    results = planned.output_size_in_bytes - planned.alias_size_in_bytes
    return dict(
        peak_bytes=arguments + results + planned.temp_size_in_bytes,
        argument_bytes=arguments,
        temporary_bytes=planned.temp_size_in_bytes,
        flops=costs.get("flops") or flops(),
        traffic_bytes=costs.get("bytes accessed")
        or hlo.traffic(hlo.parse(text)).num_bytes,
        collectives=summed,
        compile_seconds=seconds,
    ), text


def ring_bytes(num_bytes: float, num_chips: int) -> float:
    """Bytes that each of n chips sends in a ring all-reduce of `num_bytes` bytes."""
    return 2 * (num_chips - 1) / num_chips * num_bytes


def program_table(results: list[dict[str, Any]]) -> Table:
    """Makes a table of results of `measure`, with a row for each step."""
    columns = ("memory, GB", "TFLOP", "traffic, GB", "FLOP/byte", "collectives")
    wires = ("gradients", "BatchNorm", "losses")
    columns += (*(f"wire: {kind}, MB" for kind in wires), "losses' share")
    table = make_table(["network", "chips (hosts)"], columns)
    for result in results:
        num_chips = result["chips"]
        talk = result["collectives"]
        wire = Counter(
            {k: ring_bytes(n, num_chips) for k, n in talk["num_bytes"].items()}
        )
        total = sum(wire.values())
        table.add_row(
            f"{result['network']} {result['size']}x{result['size']}",
            f"{result['chip']}: {num_chips} ({result['hosts']})",
            f"{result['peak_bytes'] / 1e9:.2f}",
            f"{result['flops'] / 1e12:.2f}",
            f"{result['traffic_bytes'] / 1e9:.1f}",
            f"{result['flops'] / result['traffic_bytes']:.0f}",
            str(sum(talk["counts"].values())),
            *(f"{wire[kind] / 1e6:.3g}" for kind in wires),
            f"{wire['losses'] / total:.1e}" if total else "",
        )
    return table

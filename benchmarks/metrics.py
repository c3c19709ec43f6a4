"""Time of the counts that metrics compute on the device, compared with other libraries.

python -m benchmarks.metrics
python -m benchmarks.metrics --shape=4x1024x2048 --classes=19 --rounds=5

All candidates take turns in one process, so that load on the machine affects all of
them equally; a ratio is the median over the rounds, with the lowest and the highest.
Our functions take int32 (or uint8, where stated); NumPy and torchmetrics take their
default, int64. "Unchecked" is torchmetrics with `validate_args=False`. torchmetrics is
skipped if it is not installed.
"""

import functools
import os
import statistics
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from rich.console import Console

from benchmarks.timing import interleave, keep_freed_memory, ratio
from segloss import cli, metrics
from segloss.report import make_table

SHAPE = flags.DEFINE_string("shape", "8x513x513", "Shape of the labels: batch, sizes.")
CLASSES = flags.DEFINE_integer("classes", 21, "Number of classes.", lower_bound=2)
ROUNDS = flags.DEFINE_integer("rounds", 15, "Timings per candidate.", lower_bound=1)

PEERS = ("torchmetrics", "torchmetrics, unchecked", "NumPy bincount")
VOID = 255


def make_inputs(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns predicted class ids, labels, and a boolean array of valid pixels.

    Labels form squares; 90 % of the predictions are right, and 95 % of pixels valid.
    """
    rng = np.random.default_rng(0)
    rows = rng.integers(0, CLASSES.value, (shape[0], *(1 + n // 32 for n in shape[1:])))
    for axis, size in enumerate(shape[1:], start=1):
        rows = rows.repeat(32, axis).take(range(size), axis)
    guesses = rng.integers(0, CLASSES.value, shape)
    predicted = np.where(rng.random(shape) < 0.9, rows, guesses)
    return predicted, rows, rng.random(shape) < 0.95


def our_candidates(
    predicted: np.ndarray, labels: np.ndarray, valid: np.ndarray
) -> dict[tuple[str, str], Callable[[], object]]:
    count = functools.partial(metrics.confusion_matrix, num_classes=CLASSES.value)
    near = functools.partial(metrics.boundary_confusion, num_classes=CLASSES.value)
    ids = jnp.asarray(predicted, jnp.int32), jnp.asarray(labels, jnp.int32)
    small = jnp.asarray(predicted, jnp.uint8), jnp.asarray(labels, jnp.uint8)
    where = jnp.asarray(valid)
    logits = jax.random.normal(jax.random.key(0), (*labels.shape, CLASSES.value))
    calls = {
        ("confusion matrix", "ours"): (count, *ids),
        ("confusion matrix", "ours, uint8"): (count, *small),
        ("confusion matrix", "ours, per image"): (jax.vmap(count), *ids),
        ("with void", "ours"): (count, *ids, where),
        ("with void", "ours, per image"): (jax.vmap(count), *ids, where),
        ("calibration", "ours"): (metrics.calibration_counts, 3 * logits, ids[1]),
        ("boundary", "ours"): (near, *ids),
    }
    return {key: _compiled(*call) for key, call in calls.items()}


def _compiled(function: Callable, *arrays: jax.Array) -> Callable[[], object]:
    compiled = jax.jit(function).lower(*arrays).compile()
    return lambda: jax.block_until_ready(compiled(*arrays))


def numpy_candidates(
    predicted: np.ndarray, labels: np.ndarray, valid: np.ndarray
) -> dict[tuple[str, str], Callable[[], object]]:
    classes = CLASSES.value

    def count(predicted: np.ndarray, labels: np.ndarray) -> np.ndarray:
        cell = (labels * classes + predicted).ravel()
        return np.bincount(cell, minlength=classes**2)

    return {
        ("confusion matrix", PEERS[2]): lambda: count(predicted, labels),
        ("with void", PEERS[2]): lambda: count(predicted[valid], labels[valid]),
    }


def torch_candidates(
    predicted: np.ndarray, labels: np.ndarray, valid: np.ndarray
) -> dict[tuple[str, str], Callable[[], object]]:
    try:
        import torch
    except ImportError:
        return {}
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    # torchmetrics imports torchvision. PyPI's torchvision defines its operators only
    # with CUDA, and its import fails unless these two are declared.
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, operator):
            library.define(f"{operator}(Tensor a, Tensor b, float c) -> Tensor")
    try:
        from torchmetrics.functional import classification
    except ImportError:
        return {}

    void = torch.from_numpy(np.where(valid, labels, VOID))
    predicted, labels = torch.from_numpy(predicted), torch.from_numpy(labels)
    logits = 3 * torch.randn(labels.shape[0], CLASSES.value, *labels.shape[1:])
    count = functools.partial(
        classification.multiclass_confusion_matrix, num_classes=CLASSES.value
    )
    calibrate = functools.partial(
        classification.multiclass_calibration_error, num_classes=CLASSES.value
    )
    candidates = {}
    for name, checked in zip(PEERS, (True, False), strict=False):
        how = dict(validate_args=checked)
        candidates |= {
            ("confusion matrix", name): functools.partial(
                count, predicted, labels, **how
            ),
            ("with void", name): functools.partial(
                count, predicted, void, ignore_index=VOID, **how
            ),
            ("calibration", name): functools.partial(calibrate, logits, labels, **how),
        }
    return candidates


def main(argv: list[str]) -> None:
    """Times all functions and prints a table of milliseconds and ratios."""
    keep_freed_memory()
    inputs = make_inputs(tuple(map(int, SHAPE.value.split("x"))))
    candidates = our_candidates(*inputs) | numpy_candidates(*inputs)
    candidates |= torch_candidates(*inputs)
    seconds = interleave(candidates, ROUNDS.value)

    table = make_table(["counts", "by"], ["ms", *(f"/ {peer}" for peer in PEERS)])
    table.title = f"{SHAPE.value}, {CLASSES.value} classes"
    for (what, by), times in sorted(seconds.items(), key=lambda item: item[0][0]):
        others = [seconds.get((what, peer)) for peer in PEERS]
        ratios = (str(ratio(times, other)) if other else "" for other in others)
        table.add_row(what, by, f"{1e3 * statistics.median(times):.1f}", *ratios)
    Console(width=140).print(table)


if __name__ == "__main__":
    cli.run(main)

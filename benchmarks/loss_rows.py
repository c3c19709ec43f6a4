"""Rows of the loss benchmarks: our losses and their counterparts in optax and keras.

Every loss is a function `(logits, labels) -> scalar` of channels-last logits. It
computes other inputs, such as one-hot labels, from the labels.
"""

import functools
import os
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax.losses
from absl import app

from segloss import losses

VOID = 255

Loss = Callable[..., jax.Array]
T = TypeVar("T")


class Row(NamedTuple):
    """One of our losses and its peers.

    Attributes:
        loss: our loss.
        inputs: kind of its inputs, a key of the result of `make_inputs`.
        peers: counterparts, by library: "optax" and "keras".
    """

    loss: Loss
    inputs: str = "ids"
    peers: Mapping[str, Loss] = MappingProxyType({})


def make_inputs(shape: tuple[int, ...], seed: int = 0) -> dict[str, tuple[Any, Any]]:
    """Returns random (logits, labels) for each kind of labels.

    Logits are float32 and mostly correct. "ids" are class ids in square regions; the
    first class covers more than half of the pixels. "void" adds void pixels, "tags" are
    one-hot labels, "binary" the logits and tags of the first class only, "distances"
    ids with a distance per class.
    """
    rng = np.random.default_rng(seed)
    *pixels, num_classes = shape
    coarse = [pixels[0], *(-(-size // 16) for size in pixels[1:])]
    ids = rng.integers(0, num_classes, coarse) * (rng.random(coarse) < 0.4)
    for axis, size in enumerate(pixels[1:], 1):
        ids = ids.repeat(16, axis).take(range(size), axis)
    ids = ids.astype(np.int32)
    void = np.where(rng.random(pixels) < 0.05, VOID, ids).astype(np.int32)
    tags = np.eye(num_classes, dtype=np.float32)[ids]
    logits = rng.standard_normal(shape, np.float32) + 3 * tags
    distances = rng.normal(0, 20, shape).astype(np.float32)
    return {
        "ids": (logits, ids),
        "void": (logits, void),
        "tags": (logits, tags),
        "binary": (logits[..., 0].copy(), tags[..., 0].copy()),
        "distances": (logits, (ids, distances)),
    }


def input_shapes(
    shape: tuple[int, ...], dtype: str
) -> dict[str, tuple[jax.ShapeDtypeStruct, Any]]:
    """Returns the shapes and dtypes of `make_inputs`, to compile without running."""
    logits = jax.ShapeDtypeStruct(shape, dtype)
    scores = jax.ShapeDtypeStruct(shape[:-1], dtype)
    ids = jax.ShapeDtypeStruct(shape[:-1], jnp.int32)
    reals = jax.ShapeDtypeStruct(shape, jnp.float32)
    return {
        "ids": (logits, ids),
        "void": (logits, ids),
        "tags": (logits, reals),
        "binary": (scores, jax.ShapeDtypeStruct(shape[:-1], jnp.float32)),
        "distances": (logits, (ids, reals)),
    }


def ours(name: str, **hyperparameters: Any) -> Loss:
    return losses.make_loss(name, **hyperparameters)


def ours_with_void(name: str) -> Loss:
    loss = losses.make_loss(name)
    return lambda logits, labels: loss(logits, labels, labels != VOID)


def _boundary(logits: jax.Array, labels: tuple[jax.Array, jax.Array]) -> jax.Array:
    return losses.boundary_loss(logits, labels[0], distances=labels[1])


def _penalty(num_classes: int) -> np.ndarray:
    return (1 - np.eye(num_classes)).astype(np.float32)


def _mean(loss: Loss, **options: Any) -> Loss:
    return lambda logits, labels: loss(logits, labels, **options).mean()


def _of_one_hot(loss: Loss, **options: Any) -> Loss:
    def of_ids(logits, labels):
        targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
        return loss(logits, targets, **options).mean()

    return of_ids


def _optax_void(logits, labels):
    valid = labels != VOID
    labels = jnp.where(valid, labels, 0)
    loss = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.where(valid, loss, 0).sum() / valid.sum()


def _optax_log_cosh(logits, labels):
    return jnp.log(jnp.cosh(_of_one_hot(optax.losses.dice_loss)(logits, labels)))


def _optax_focal_tversky(logits, labels):
    options = dict(alpha=0.3, beta=0.7, reduction="none")
    targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return (optax.losses.dice_loss(logits, targets, **options) ** 0.75).mean()


@functools.cache
def keras_losses() -> dict[str, Loss]:
    """Returns the losses of keras by a short name; empty if keras is not installed."""
    os.environ.setdefault("KERAS_BACKEND", "jax")
    try:
        from keras import losses as keras
    except ImportError:
        return {}

    def of_probs(loss):
        return lambda logits, targets: loss(targets, jax.nn.softmax(logits))

    def of_logits(loss):
        return lambda logits, labels: loss(labels, logits)

    axes = dict(axis=(0, 1, 2))
    from_logits = dict(from_logits=True)
    return {
        "cross_entropy": of_logits(keras.SparseCategoricalCrossentropy(**from_logits)),
        "void": of_logits(
            keras.SparseCategoricalCrossentropy(ignore_class=VOID, **from_logits)
        ),
        "binary": of_logits(keras.BinaryCrossentropy(**from_logits)),
        "focal": _of_one_hot(
            of_logits(keras.CategoricalFocalCrossentropy(**from_logits))
        ),
        "binary focal": of_logits(
            keras.BinaryFocalCrossentropy(apply_class_balancing=True, **from_logits)
        ),
        "dice": _of_one_hot(of_probs(keras.Dice(**axes))),
        "tversky": _of_one_hot(of_probs(keras.Tversky(alpha=0.3, beta=0.7, **axes))),
    }


def make_rows(num_classes: int) -> dict[str, Row]:
    """Returns all rows of the loss benchmarks, by name."""

    def keras(name: str) -> dict[str, Loss]:
        return {"keras": keras_losses()[name]} if keras_losses() else {}

    def dice(**options: Any) -> dict[str, Loss]:
        return {"optax": _of_one_hot(optax.losses.dice_loss, **options)}

    entropy = _mean(optax.losses.softmax_cross_entropy_with_integer_labels)
    sigmoid = {"optax": _mean(optax.losses.sigmoid_binary_cross_entropy)}
    weighted = dict(fp_weight=0.3, fn_weight=0.7)
    tversky = dice(alpha=0.3, beta=0.7) | keras("tversky")
    return {
        "softmax_cross_entropy": Row(
            ours("softmax_cross_entropy"),
            peers={"optax": entropy} | keras("cross_entropy"),
        ),
        "softmax_cross_entropy void": Row(
            ours_with_void("softmax_cross_entropy"),
            "void",
            {"optax": _optax_void} | keras("void"),
        ),
        "softmax_cross_entropy weights": Row(
            ours(
                "softmax_cross_entropy",
                class_weights=tuple(1.0 + i for i in range(num_classes)),
                normalize_by="weights",
            ),
        ),
        "sigmoid_cross_entropy": Row(
            ours("sigmoid_cross_entropy"), "tags", sigmoid | keras("binary")
        ),
        "normalized_sigmoid_cross_entropy": Row(
            ours("normalized_sigmoid_cross_entropy"), "tags"
        ),
        "gated_sigmoid_cross_entropy": Row(ours("gated_sigmoid_cross_entropy"), "tags"),
        "focal_loss": Row(ours("focal_loss"), peers=keras("focal")),
        "sigmoid_focal_loss": Row(
            ours("sigmoid_focal_loss"),
            "tags",
            {"optax": _mean(optax.losses.sigmoid_focal_loss, alpha=0.25)}
            | keras("binary focal"),
        ),
        "poly_loss": Row(
            ours("poly_loss"),
            peers={
                "optax": _of_one_hot(optax.losses.poly_loss_cross_entropy, epsilon=1.0)
            },
        ),
        "top_k_cross_entropy": Row(ours("top_k_cross_entropy")),
        "log_bilinear_loss": Row(
            ours("log_bilinear_loss", penalty=_penalty(num_classes))
        ),
        "soft_dice": Row(ours("soft_dice"), peers=dice() | keras("dice")),
        "soft_dice linear": Row(
            ours("soft_dice", denominator="linear"),
            peers=dice() | keras("dice"),
        ),
        "soft_dice void": Row(ours_with_void("soft_dice"), "void"),
        "soft_iou": Row(ours("soft_iou"), peers=dice(alpha=1.0, beta=1.0)),
        "tversky": Row(ours("tversky", **weighted), peers=tversky),
        "focal_tversky": Row(
            ours("focal_tversky", **weighted),
            peers={"optax": _optax_focal_tversky},
        ),
        "generalized_dice": Row(
            ours("generalized_dice"),
            peers={"optax": _of_one_hot(optax.losses.multiclass_generalized_dice_loss)},
        ),
        "log_cosh_dice": Row(ours("log_cosh_dice"), peers={"optax": _optax_log_cosh}),
        "lovasz_softmax": Row(ours("lovasz_softmax")),
        "lovasz_softmax bins": Row(ours("lovasz_softmax", bins=1000)),
        "lovasz_hinge": Row(ours("lovasz_hinge"), "binary"),
        "boundary_loss": Row(_boundary, "distances"),
        "soft_cldice": Row(ours("soft_cldice")),
    }


def parse_shape(text: str) -> tuple[int, ...]:
    """Parses the flag `--shape`, a shape of logits such as 4x321x321x21."""
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){2,4}", text):
        raise app.UsageError(f"--shape must have the form 4x321x321x21, got {text!r}.")
    return tuple(int(size) for size in text.split("x"))


def pick(rows: Mapping[str, T], pattern: str) -> dict[str, T]:
    """Selects the rows with names that match `pattern`, the value of `--only`."""
    try:
        picked = {name for name in rows if re.search(pattern, name)}
    except re.error as error:
        raise app.UsageError(f"--only={pattern}: {error}.") from None
    if not picked:
        raise app.UsageError(f"--only={pattern} picks none of {', '.join(rows)}.")
    return {name: row for name, row in rows.items() if name in picked}

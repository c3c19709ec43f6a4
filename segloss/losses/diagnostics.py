"""Who gets the gradient: what a loss makes of the imbalance of a batch.

All work for any loss `(logits, labels, valid=None)`. Where labels are class ids, a
pixel belongs to its class. Where they have the shape of the logits (binary,
multi-label) there are two classes, 0 the negatives and 1 the positives, whose label is
at least 1/2.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Real

from segloss.jitting import jit
from segloss.losses.check import check_arrays
from segloss.losses.numerics import safe_divide
from segloss.losses.reduce import (
    mean_over_pixels,
    sum_over_devices,
    valid_or_all,
)
from segloss.losses.softmax import one_hot

Logits = Float[Array, "b *rest_of_logits"]
Labels = Real[Array, "b *rest"] | Bool[Array, "b *rest"]
Loss = Callable[..., Float[Array, ""]]

# In float32 a softmax or sigmoid of this is as good as certain, and its log finite.
_CERTAIN = 20.0


@jit("num_classes", "axis_name")
def pixel_share(
    labels: Labels,
    valid: Bool[Array, "..."] | None = None,
    *,
    num_classes: int,
    axis_name: str | None = None,
) -> Float[Array, " {num_classes}"]:
    """Share of each class in the valid pixels; zeros where there is none.

    Args:
        labels: class ids, or values in `[0, 1]` of negatives and positives.
        valid: True where a pixel counts, broadcastable to `labels`; None is all.
        num_classes: number of classes; 2 where labels are no class ids.
        axis_name: mapped device axis whose devices share one batch.
    """
    ones = jnp.ones(labels.shape)
    return _share(ones, labels, valid, num_classes, axis_name)


@jit("loss", "num_classes", "axis_name")
def gradient_share(
    loss: Loss,
    logits: Logits,
    labels: Labels,
    valid: Bool[Array, "..."] | None = None,
    *,
    num_classes: int,
    axis_name: str | None = None,
) -> Float[Array, " {num_classes}"]:
    """Share of each class in the attention: in the L1 norm of d loss / d logits.

    `g_c = sum over the pixels i of class c of |d loss / d z_i|_1`, over the sum of all
    g. The shares sum to 1; a class without a pixel has 0, and all have 0 where the
    gradient is 0. A factor on the loss changes nothing.

    Args:
        loss: takes `(logits, labels, valid)`, and `axis_name` where that is given here;
            each new function is compiled.
        logits: what the model says, in any float type; the gradient is float32.
        labels: class ids, or values in `[0, 1]` of negatives and positives.
        valid: True where a pixel counts, broadcastable to `labels`; None is all.
        num_classes: number of classes; 2 where labels are no class ids.
        axis_name: mapped device axis whose devices share one batch.

    Raises:
        ValueError: if `num_classes` or an array's shape or type does not fit.
    """
    _check("gradient_share", logits, labels, valid, num_classes)
    _, norms = _value_and_norms(loss, logits, labels, valid, axis_name)
    return _share(norms, labels, valid, num_classes, axis_name)


class Explanation(NamedTuple):
    """What `explain` found; printed, it is a table.

    Attributes:
        loss: value of the loss.
        pixel_share: share of each class in the valid pixels.
        loss_share: how much smaller the loss, as a share of it, if the pixels of the
            class, and only they, were predicted with certainty.
        gradient_share: share of each class in the L1 norm of the gradient.
        gradient_scale: that norm over the one of unweighted cross-entropy. SGD takes
            steps so much larger; Adam divides it out.
    """

    loss: Float[Array, ""]
    pixel_share: Float[Array, " c"]
    loss_share: Float[Array, " c"]
    gradient_share: Float[Array, " c"]
    gradient_scale: Float[Array, ""]

    def table(self, class_names: Sequence[str] | None = None) -> str:
        """The shares in percent, a line for each class that has a pixel.

        Raises:
            ValueError: if there is not one name for each class.
        """
        names = class_names
        if names is None:
            names = [str(c) for c in range(len(self.pixel_share))]
        if len(names) != len(self.pixel_share):
            raise ValueError(
                f"Explanation: class_names must be {len(self.pixel_share)} names, "
                f"got {len(names)}."
            )
        width = max(len("class"), *map(len, names))
        shares = (self.pixel_share, self.loss_share, self.gradient_share)
        lines = [f"{'class':{width}}  {'pixels':>8}  {'loss':>8}  {'gradient':>8}"]
        lines += [
            f"{name:{width}}  " + "  ".join(f"{x:8.2%}" for x in row)
            for name, *row in zip(names, *map(np.asarray, shares), strict=True)
            if row[0] > 0
        ]
        lines += [
            f"loss {self.loss:.4f}, gradient {self.gradient_scale:.3g} times that of "
            "unweighted cross-entropy"
        ]
        return "\n".join(lines)

    __str__ = table


@jit("loss", "num_classes")
def explain(
    loss: Loss,
    logits: Logits,
    labels: Labels,
    valid: Bool[Array, "..."] | None = None,
    *,
    num_classes: int,
) -> Explanation:
    """Per class, its share in the pixels, in the loss and in the gradient.

    The share of class c in the loss is `(L - L_c) / L`, where L_c is the loss after the
    pixels of class c are predicted with certainty (logits of +-20) and all others left
    alone. Where the loss is a sum over pixels, over whatever divisor, it is exactly the
    share of the class's pixels in that sum. Of a loss of regions it says what being
    right on those pixels would save: the shares need not sum to 1, because one pixel
    is an error of two regions, and a class may cost without having a pixel. Under label
    smoothing, which punishes certainty, they are smaller, or negative; a pixel whose
    label lies between 0 and 1 is predicted as it is labelled, which may cost as well.

    It takes one gradient, and one evaluation of the loss per class.

    Args:
        loss: takes `(logits, labels, valid)`; each new function is compiled.
        logits: what the model says, in any float type; the gradient is float32.
        labels: class ids, or values in `[0, 1]` of negatives and positives.
        valid: True where a pixel counts, broadcastable to `labels`; None is all.
        num_classes: number of classes; 2 where labels are no class ids.

    Raises:
        ValueError: if `num_classes` or an array's shape or type does not fit.
    """
    _check("explain", logits, labels, valid, num_classes)
    logits = logits.astype(jnp.float32)
    value, norms = _value_and_norms(loss, logits, labels, valid)
    certain = _certain_logits(labels, logits.shape)
    of_class = _in_shape_of(logits, _class_ids(labels))

    def saved_by(c: Array) -> Array:
        return value - loss(jnp.where(of_class == c, certain, logits), labels, valid)

    saved = jax.lax.map(saved_by, jnp.arange(num_classes))
    total = jnp.where(valid_or_all(labels.shape, valid), norms, 0.0).sum()
    return Explanation(
        loss=value,
        pixel_share=pixel_share(labels, valid, num_classes=num_classes),
        loss_share=safe_divide(saved, jnp.broadcast_to(value, saved.shape)),
        gradient_share=_share(norms, labels, valid, num_classes),
        gradient_scale=safe_divide(total, _cross_entropy_norm(logits, labels, valid)),
    )


def _are_ids(labels: Labels) -> bool:
    return jnp.issubdtype(labels.dtype, jnp.integer)


def _class_ids(labels: Labels) -> Array:
    return labels if _are_ids(labels) else (labels >= 0.5).astype(jnp.int32)


def _in_shape_of(logits: Array, per_pixel: Array) -> Array:
    """What is known of each pixel, with as many axes as the logits."""
    return jnp.expand_dims(per_pixel, range(per_pixel.ndim, logits.ndim))


def _certain_logits(labels: Labels, shape: tuple[int, ...]) -> Array:
    if _are_ids(labels):
        return jnp.where(one_hot(labels, shape[-1]), _CERTAIN, -_CERTAIN)
    targets = labels.astype(jnp.float32)
    logits = jnp.log(targets) - jnp.log1p(-targets)
    return jnp.clip(logits, -_CERTAIN, _CERTAIN)


def _value_and_norms(
    loss: Loss,
    logits: Array,
    labels: Labels,
    valid: Array | None,
    axis_name: str | None = None,
) -> tuple[Array, Array]:
    """The loss, and the L1 norm of each pixel's gradient with respect to the logits."""
    shared = {} if axis_name is None else {"axis_name": axis_name}
    # Cast first: the gradient of a mean over many pixels is nothing in float16.
    logits = logits.astype(jnp.float32)
    value, grads = jax.value_and_grad(loss)(logits, labels, valid, **shared)
    norms = jnp.abs(grads).sum(range(labels.ndim, grads.ndim))
    # The gradient of a loss that is NaN need not be.
    return value, jnp.where(jnp.isnan(value), jnp.nan, norms)


def _cross_entropy_norm(logits: Array, labels: Labels, valid: Array | None) -> Array:
    """L1 norm of the gradient of unweighted cross-entropy, a mean over pixels."""
    if _are_ids(labels):
        targets = one_hot(labels, logits.shape[-1])
        misses = jnp.abs(jax.nn.softmax(logits) - targets).sum(axis=-1)
    else:
        misses = jnp.abs(jax.nn.sigmoid(logits) - labels)
    return mean_over_pixels(misses, valid)


def _share(
    amounts: Array,
    labels: Labels,
    valid: Array | None,
    num_classes: int,
    axis_name: str | None = None,
) -> Array:
    """Each class's part of an amount per pixel; zeros where there is nothing."""
    amounts = jnp.where(valid_or_all(labels.shape, valid), amounts, 0.0)
    of_class = one_hot(_class_ids(labels), num_classes)
    by_class = jnp.where(of_class, amounts[..., None], 0.0).sum(range(labels.ndim))
    # Not the sum of `by_class`, which would pass over a pixel whose label is no class.
    by_class, total = sum_over_devices((by_class, amounts.sum()), axis_name)
    return safe_divide(by_class, jnp.broadcast_to(total, by_class.shape))


def _check(
    name: str, logits: Array, labels: Labels, valid: Array | None, num_classes: int
) -> None:
    ids = _are_ids(labels)
    check_arrays(name, logits, labels, valid, multi_label=not ids)
    wanted = logits.shape[-1] if ids else 2
    if num_classes != wanted:
        whose = "the logits' last axis" if ids else "negatives and positives"
        raise ValueError(
            f"{name}: num_classes must be {wanted}, {whose}, got {num_classes}."
        )

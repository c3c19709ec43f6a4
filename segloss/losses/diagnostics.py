"""Diagnostics: how a loss distributes its value and gradient over the classes.

All functions accept any loss `(logits, labels, valid=None)`. If labels are class ids,
each pixel belongs to the class of its label. If labels have the shape of the logits
(binary or multi-label), each element is one of two classes: 1 (positive) if its label
is at least 1/2, else 0 (negative).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Real

from segloss.errors import SeglossError
from segloss.jitting import jit
from segloss.losses.check import check_arrays, check_label_values
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

# A softmax or sigmoid of this logit is 1 in float32, and its logarithms are finite.
_CERTAIN = 20.0


@jit("num_classes", "axis_name")
def pixel_share(
    labels: Labels,
    valid: Bool[Array, "..."] | None = None,
    *,
    num_classes: int,
    axis_name: str | None = None,
) -> Float[Array, " {num_classes}"]:
    """Fraction of the valid pixels in each class; zeros if no pixel is valid.

    Args:
        labels: class ids; or binary labels in `[0, 1]`, where an element belongs to
            class 1 if its label is at least 1/2, else to class 0.
        valid: True where a pixel counts, broadcastable to `labels`; None means all.
        num_classes: number of classes; 2 for binary labels.
        axis_name: name of a pmap or shard_map axis; counts the pixels of all its
            devices.
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
    """Share of each class in the L1 norm of the gradient d loss / d logits.

    `g_c / sum_k g_k`, where `g_c` is the sum of `|d loss / d z_i|_1` over the pixels i
    labelled c and `z_i` is the logits of pixel i. The shares sum to 1; a class without
    pixels has share 0. If the gradient is 0, all shares are 0. Scaling the loss does
    not change the shares.

    >>> import jax.numpy as jnp
    >>> from segloss.losses import softmax_cross_entropy
    >>> logits = jnp.log(jnp.array([[[0.5, 0.5], [0.25, 0.75]]]))  # [1, 2 pixels, 2]
    >>> labels = jnp.array([[0, 1]])  # norms: 1/2 + 1/2 and 1/4 + 1/4
    >>> share = gradient_share(softmax_cross_entropy, logits, labels, num_classes=2)
    >>> print([f"{x:.4f}" for x in share])
    ['0.6667', '0.3333']

    Args:
        loss: function of `(logits, labels, valid)`, and of `axis_name` if that is not
            None. Each new function triggers a compilation.
        logits: model outputs of any float type; the gradient is computed in float32.
        labels: class ids; or binary labels in `[0, 1]`, one per logit, where an element
            belongs to class 1 if its label is at least 1/2, else to class 0.
        valid: True where a pixel counts, broadcastable to `labels`; None means all.
        num_classes: number of classes; 2 for binary labels.
        axis_name: name of a pmap or shard_map axis; the shares cover the pixels of all
            its devices.

    Raises:
        ValueError: if `num_classes`, or an array's shape or type, is wrong.
    """
    _check("gradient_share", logits, labels, valid, num_classes)
    _, norms = _value_and_norms(loss, logits, labels, valid, axis_name)
    return _share(norms, labels, valid, num_classes, axis_name)


class Explanation(NamedTuple):
    """Result of `explain`; `print` shows it as a table.

    Attributes:
        loss: value of the loss.
        pixel_share: fraction of the valid pixels in each class.
        loss_share: relative drop in loss if the logits of the class's pixels were
            replaced by near-perfect predictions.
        gradient_share: share of each class's pixels in the L1 norm of the gradient with
            respect to the logits.
        gradient_scale: L1 norm of that gradient relative to the one of unweighted
            cross-entropy. SGD takes steps in proportion to it; Adam normalises it away.
    """

    loss: Float[Array, ""]
    pixel_share: Float[Array, " c"]
    loss_share: Float[Array, " c"]
    gradient_share: Float[Array, " c"]
    gradient_scale: Float[Array, ""]

    def table(self, class_names: Sequence[str] | None = None) -> str:
        """Formats the shares in percent, one line per class that has pixels.

        `class_names` are the names of all classes, in order; None shows class ids. The
        last line shows `loss` and `gradient_scale`.

        Raises:
            ValueError: if the number of names is not the number of classes.
        """
        names = class_names
        if names is None:
            names = [str(c) for c in range(len(self.pixel_share))]
        if len(names) != len(self.pixel_share):
            raise SeglossError(
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


def explain(
    loss: Loss,
    logits: Logits,
    labels: Labels,
    valid: Bool[Array, "..."] | None = None,
    *,
    num_classes: int,
) -> Explanation:
    """Computes the share of each class in the pixels, the loss and the gradient.

    The loss share of class c is `(L - L_c) / L`, where L_c is the loss after replacing
    the logits of the pixels of class c by near-perfect predictions (logits of +-20).

    - For a sum or mean over pixels it is the share of the class's pixels in the sum.
    - For a region-based loss such as Dice the shares need not sum to 1: a wrong pixel
      counts as an error of two classes, and an absent class can still add to the loss.
    - With label smoothing, which penalises confident predictions, the shares are
      smaller and can be negative.
    - An element whose binary label is between 0 and 1 gets the logit that predicts
      this label. Its loss there need not be 0.

    This computes one gradient, and the loss once more per class.

    >>> import jax.numpy as jnp
    >>> from segloss.losses import softmax_cross_entropy
    >>> logits = jnp.log(jnp.array([[[0.5, 0.5], [0.25, 0.75]]]))  # [1, 2 pixels, 2]
    >>> labels = jnp.array([[0, 1]])  # losses: log 2 and log 4/3
    >>> print(explain(softmax_cross_entropy, logits, labels, num_classes=2))
    class    pixels      loss  gradient
    0        50.00%    70.67%    66.67%
    1        50.00%    29.33%    33.33%
    loss 0.4904, gradient 1 times that of unweighted cross-entropy

    Args:
        loss: function of `(logits, labels, valid)`. Each new function triggers a
            compilation.
        logits: model outputs of any float type; the gradient is computed in float32.
        labels: class ids; or binary labels in `[0, 1]`, one per logit, where an element
            belongs to class 1 if its label is at least 1/2, else to class 0.
        valid: True where a pixel counts, broadcastable to `labels`; None means all.
        num_classes: number of classes; 2 for binary labels.

    Raises:
        ValueError: if `num_classes`, or an array's shape or type, is wrong. Also if a
            valid label is no class or, of a mask, outside `[0, 1]`: the reason why the
            losses are NaN. Under `jax.jit` values are unknown and are not checked.
    """
    _check("explain", logits, labels, valid, num_classes)
    check_label_values("explain", labels, valid, num_classes)
    return _explain(loss, logits, labels, valid, num_classes=num_classes)


@jit("loss", "num_classes")
def _explain(
    loss: Loss,
    logits: Logits,
    labels: Labels,
    valid: Bool[Array, "..."] | None,
    *,
    num_classes: int,
) -> Explanation:
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
    """Appends axes of size 1 to `per_pixel` until it has the rank of the logits."""
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
    """Returns the loss, and the L1 norm of the gradient at each pixel's logits.

    If the loss is NaN, so are the norms.
    """
    shared = {} if axis_name is None else {"axis_name": axis_name}
    # Cast first: in float16 the gradient of a mean over many pixels underflows to 0.
    logits = logits.astype(jnp.float32)
    value, grads = jax.value_and_grad(loss)(logits, labels, valid, **shared)
    norms = jnp.abs(grads).sum(range(labels.ndim, grads.ndim))
    # The gradient of a NaN loss can be finite, which would hide the NaN.
    return value, jnp.where(jnp.isnan(value), jnp.nan, norms)


def _cross_entropy_norm(logits: Array, labels: Labels, valid: Array | None) -> Array:
    """Mean over valid pixels of the L1 norm of `d cross-entropy / d logits`.

    The cross-entropy is unweighted; it is binary for labels that are not class ids.
    """
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
    """Returns each class's share of the sum of `amounts`; zeros if the sum is 0.

    `amounts` holds one value per pixel, or per element for binary labels.
    """
    amounts = jnp.where(valid_or_all(labels.shape, valid), amounts, 0.0)
    of_class = one_hot(_class_ids(labels), num_classes)
    by_class = jnp.where(of_class, amounts[..., None], 0.0).sum(range(labels.ndim))
    # Not the sum of `by_class`, which would omit pixels with labels out of range.
    by_class, total = sum_over_devices((by_class, amounts.sum()), axis_name)
    return safe_divide(by_class, jnp.broadcast_to(total, by_class.shape))


def _check(
    name: str, logits: Array, labels: Labels, valid: Array | None, num_classes: int
) -> None:
    ids = _are_ids(labels)
    check_arrays(name, logits, labels, valid, multi_label=not ids)
    wanted = logits.shape[-1] if ids else 2
    if num_classes != wanted:
        whose = "the logits' last axis" if ids else "negative and positive"
        raise SeglossError(
            f"{name}: num_classes must be {wanted}, {whose}, got {num_classes}."
        )

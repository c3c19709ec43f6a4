"""Losses that compare, class by class, the predicted region with the labelled one.

All are `1 - score` written as `error / size`, each summed over the pixels first. The
two are equal, but a difference of large sums rounds to values below 0 where the
prediction is almost perfect.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from segloss.losses.reduce import (
    SMALLEST_DIVISOR,
    ClassWeights,
    check_arrays,
    check_choice,
    mean_over_classes,
    one_hot,
    safe_divide,
    softmax_parts,
    sum_over_devices,
    valid_or_all,
)

Labels = (
    Integer[Array, " b *spatial"]
    | Float[Array, "b *spatial c"]
    | Bool[Array, "b *spatial c"]
)

_STATIC = ("smooth", "classes", "per_image", "normalize_by", "multi_label", "axis_name")


@functools.partial(jax.jit, static_argnames=("denominator", *_STATIC))
def soft_dice(
    logits: Float[Array, "b *spatial c"],
    labels: Labels,
    valid: Bool[Array, "..."] | None = None,
    *,
    denominator: str = "squared",
    smooth: float | int = 0.0,
    classes: str = "all",
    class_weights: ClassWeights | None = None,
    per_image: bool = False,
    normalize_by: str = "classes",
    multi_label: bool = False,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Multi-class soft Dice loss, each class summed over the whole batch.

    `1 - 2 sum(p t) / (sum(p^2) + sum(t^2))` per class, where p is the probability and
    t is 1 on the class and 0 elsewhere: Eq. 5 of "Balance-batch: An Optimized Method
    for Semantic Segmentation Loss Functions" (Huang, Tang, Su), after Milletari et al.
    2016 (arXiv:1606.04797). Computed as `sum((p - t)^2) / (sum(p^2) + sum(t^2))`.

    Args:
        logits: unnormalised class scores, for a softmax (but see `multi_label`).
        labels: class ids in `[0, c)`; a pixel that is not valid may hold anything. A
            valid pixel whose label is no class makes the loss NaN.
        valid: True where a pixel counts, broadcastable to `labels`; None is all.
        denominator: "squared" as above; "linear" is
            `1 - 2 sum(min(p, t)) / (sum(p) + sum(t))`.
        smooth: added to numerator and denominator of the score, in pixels; 0, or at
            least 1e-18, which float32 can square.
        classes: "all", where with `smooth=0` a class that no label holds costs 1 and
            sends no gradient; "present" leaves such classes out.
        class_weights: of at least 0, for the mean over the classes; None is ones.
        per_image: sum over each image, then average the images that hold a valid
            pixel. Then "present" means in the image.
        normalize_by: "classes" averages the classes; "samples" divides their sum by
            the number m of samples that hold a valid pixel, which is Eq. 5 plus `c/m`.
        multi_label: `labels` are floats in `[0, 1]` or bools in the shape of `logits`,
            and the classes have sigmoids. A class with no valid label is left out.
        axis_name: mapped device axis whose devices share one loss.

    Raises:
        ValueError: if a hyperparameter is none of the above, or an array's shape or
            type does not fit `logits`.
    """
    name = "soft_dice"
    check_choice(name, "denominator", denominator, ("squared", "linear"))
    _check(name, smooth, classes, normalize_by)
    check_arrays(name, logits, labels, valid, class_weights, multi_label=multi_label)

    sums = _class_sums(
        logits,
        labels,
        valid,
        power=2 if denominator == "squared" else 1,
        classes=classes,
        per_image=per_image,
        multi_label=multi_label,
        axis_name=axis_name,
    )
    return mean_over_classes(
        _cost(sums, sums.predicted + sums.labelled, smooth),
        sums.takes_part,
        valid_or_all(labels, valid),
        class_weights=class_weights,
        per_image=per_image,
        normalize_by=normalize_by,
        axis_name=axis_name,
    )


@functools.partial(jax.jit, static_argnames=_STATIC)
def soft_iou(
    logits: Float[Array, "b *spatial c"],
    labels: Labels,
    valid: Bool[Array, "..."] | None = None,
    *,
    smooth: float | int = 0.0,
    classes: str = "all",
    class_weights: ClassWeights | None = None,
    per_image: bool = False,
    normalize_by: str = "classes",
    multi_label: bool = False,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Soft intersection over union loss, each class summed over the whole batch.

    `1 - I / (P + G - I)` per class with `I = sum(min(p, t))`, `P = sum(p)` and
    `G = sum(t)`: Rahman and Wang 2016 (doi:10.1007/978-3-319-50835-1_22). Where t is 0
    or 1, `min(p, t)` is their `p t`; for t between, only the former is best at `p = t`.
    Computed as `sum(|p - t|) / sum(max(p, t))`.

    The arguments, and the errors raised, are those of `soft_dice`.
    """
    name = "soft_iou"
    _check(name, smooth, classes, normalize_by)
    check_arrays(name, logits, labels, valid, class_weights, multi_label=multi_label)

    sums = _class_sums(
        logits,
        labels,
        valid,
        power=1,
        classes=classes,
        per_image=per_image,
        multi_label=multi_label,
        axis_name=axis_name,
    )
    # max(p, t) is (p + t + |p - t|) / 2.
    union = (sums.predicted + sums.labelled + sums.error) / 2
    return mean_over_classes(
        _cost(sums, union, smooth),
        sums.takes_part,
        valid_or_all(labels, valid),
        class_weights=class_weights,
        per_image=per_image,
        normalize_by=normalize_by,
        axis_name=axis_name,
    )


def _check(name: str, smooth: float | int, classes: str, normalize_by: str) -> None:
    check_choice(name, "classes", classes, ("all", "present"))
    check_choice(name, "normalize_by", normalize_by, ("classes", "samples"))
    if smooth != 0 and not SMALLEST_DIVISOR <= smooth < float("inf"):
        raise ValueError(
            f"{name}: smooth must be 0, or at least {SMALLEST_DIVISOR} and finite, "
            f"got {smooth}."
        )


class _ClassSums(NamedTuple):
    """Sums over valid pixels; a row is an image, or the only row the global batch."""

    error: Float[Array, "rows c"]
    predicted: Float[Array, "rows c"]
    labelled: Float[Array, "rows c"]
    takes_part: Bool[Array, "rows c"]


def _class_sums(
    logits: Float[Array, "b *spatial c"],
    labels: Labels,
    valid: Bool[Array, "..."] | None,
    *,
    power: int,
    classes: str,
    per_image: bool,
    multi_label: bool,
    axis_name: str | None,
) -> _ClassSums:
    """Sums of |p - t|^power, p^power and t^power for each class."""
    probs, targets, counted = _regions(logits, labels, valid, multi_label)
    error = jnp.abs(probs - targets)
    axes = range(1 if per_image else 0, logits.ndim - 1)
    sums = [(x**power).sum(axes) for x in (error, probs, targets)]
    sums.append(counted.sum(axes).astype(jnp.float32))
    sums = sums if per_image else sum_over_devices(sums, axis_name)
    error, predicted, labelled, counted = (jnp.atleast_2d(x) for x in sums)
    # Logits gone NaN must not pass for a class that is absent.
    labelled = jnp.where(jnp.isnan(error), jnp.nan, labelled)
    takes_part = labelled != 0 if classes == "present" else counted != 0
    takes_part = jnp.broadcast_to(takes_part, error.shape)
    return _ClassSums(error, predicted, labelled, takes_part)


def _regions(
    logits: Float[Array, "b *spatial c"],
    labels: Labels,
    valid: Bool[Array, "..."] | None,
    multi_label: bool,
) -> tuple[
    Float[Array, "b *spatial c"],
    Float[Array, "b *spatial c"],
    Bool[Array, "b *spatial _"],
]:
    """Probabilities and targets, both 0 where not valid, and where they are valid."""
    valid = valid_or_all(labels, valid)
    if multi_label:
        probs = jax.nn.sigmoid(jnp.where(valid, logits.astype(jnp.float32), 0.0))
        targets = labels.astype(jnp.float32)
        return jnp.where(valid, probs, 0.0), jnp.where(valid, targets, 0.0), valid
    # Not jax.nn.softmax, whose gradient keeps one more array of this size in memory.
    logits, top, total = softmax_parts(logits, labels, valid)
    scale = jnp.where(valid, 1.0 / total, 0.0)
    probs = jnp.exp(logits - top[..., None]) * scale[..., None]
    targets = one_hot(labels, logits.shape[-1]) & valid[..., None]
    return probs, targets.astype(jnp.float32), valid[..., None]


def _cost(
    sums: _ClassSums, size: Float[Array, "rows c"], smooth: float | int
) -> Float[Array, "rows c"]:
    """1 less the score of each class, by the error and the size of its regions."""
    cost = safe_divide(sums.error, size + smooth)
    if smooth == 0:
        # Without gradient, also where the probability underflows to 0/0.
        cost = jnp.where(sums.labelled == 0, 1.0, cost)
    return cost

"""Dice losses, and what is made of them."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from segloss.losses.check import (
    ClassWeights,
    Labels,
    check_arrays,
    check_choice,
    check_smooth,
)
from segloss.losses.numerics import safe_divide
from segloss.losses.overlap import STATIC, overlap_loss
from segloss.losses.reduce import sum_over_devices, valid_or_all
from segloss.losses.regions import RegionSums, region_sums


@functools.partial(jax.jit, static_argnames=("denominator", *STATIC))
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

    Its derivative by p is `-2 (t U - 2 p I) / U^2` with `I = sum(p t)` and U the
    denominator, over the number of classes; finite differences in float64 confirm it.

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
    check_choice("soft_dice", "denominator", denominator, ("squared", "linear"))
    return overlap_loss(
        "soft_dice",
        _dice_cost,
        logits,
        labels,
        valid,
        power=2 if denominator == "squared" else 1,
        smooth=smooth,
        classes=classes,
        class_weights=class_weights,
        per_image=per_image,
        normalize_by=normalize_by,
        multi_label=multi_label,
        axis_name=axis_name,
    )


@functools.partial(jax.jit, static_argnames=("denominator", *STATIC))
def log_cosh_dice(
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
    """`log(cosh(soft_dice))`, which flattens out towards a perfect prediction.

    Jadon 2020 (arXiv:2006.14822), eq. 20. The arguments, and the errors raised, are
    those of `soft_dice`.
    """
    dice = soft_dice(
        logits,
        labels,
        valid,
        denominator=denominator,
        smooth=smooth,
        classes=classes,
        class_weights=class_weights,
        per_image=per_image,
        normalize_by=normalize_by,
        multi_label=multi_label,
        axis_name=axis_name,
    )
    # cosh(x) - 1, which would round to 0 near x = 0.
    return jnp.log1p(2 * jnp.sinh(dice / 2) ** 2)


@functools.partial(jax.jit, static_argnames=("smooth", "multi_label", "axis_name"))
def generalized_dice(
    logits: Float[Array, "b *spatial c"],
    labels: Labels,
    valid: Bool[Array, "..."] | None = None,
    *,
    smooth: float | int = 0.0,
    multi_label: bool = False,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """One Dice score of all classes, each weighed by its size.

    `1 - 2 sum_c w_c I_c / sum_c w_c (P_c + G_c)` with `w_c = 1 / G_c^2`, all over the
    whole batch: Sudre et al. 2017 (arXiv:1707.03237), sec. 2.1. A class that no label
    holds weighs 0. The weights carry no gradient.

    Args:
        logits: unnormalised class scores.
        labels: class ids, or what `multi_label` says.
        valid: True where a pixel counts, broadcastable to `labels`; None is all.
        smooth: added to numerator and denominator of the score, as in `soft_dice`;
            beside weights of 1 over pixels squared, little is much.
        multi_label: classes with sigmoids, labels in `[0, 1]` for each.
        axis_name: mapped device axis whose devices share one loss.

    Raises:
        ValueError: if `smooth` is out of range, or an array does not fit `logits`.
    """
    name = "generalized_dice"
    check_smooth(name, smooth)
    check_arrays(name, logits, labels, valid, multi_label=multi_label)
    valid = valid_or_all(labels, valid)
    sums = region_sums(logits, labels, valid, multi_label=multi_label)
    over, under, hits, labelled = (x[0] for x in sum_over_devices(sums, axis_name))
    weights = jax.lax.stop_gradient(safe_divide(jnp.ones_like(labelled), labelled**2))
    error = (weights * (over + under)).sum()
    size = (weights * (over + hits + labelled)).sum() + smooth
    return safe_divide(error, size)


def _dice_cost(sums: RegionSums, smooth: float | int) -> Float[Array, "rows c"]:
    size = sums.over + sums.hits + sums.labelled
    return safe_divide(sums.over + sums.under, size + smooth)

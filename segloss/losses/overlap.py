"""Losses that compare, class by class, the predicted region with the labelled one.

All are `1 - score` written as `error / size`, each summed over the pixels first. The
two are equal, but a difference of large sums rounds to values below 0 where the
prediction is almost perfect.

Their derivatives are for reverse mode: `jax.grad`, `jax.vjp` and gradients of gradients
work, `jax.jvp` and `jax.jacfwd` do not.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from segloss.losses.check import (
    ClassWeights,
    Labels,
    check_arrays,
    check_choice,
    check_range,
    check_smooth,
)
from segloss.losses.numerics import SMALLEST_DIVISOR, safe_divide
from segloss.losses.reduce import (
    mean_over_classes,
    sum_over_devices,
    valid_or_all,
)
from segloss.losses.regions import RegionSums, region_sums

_STATIC = ("smooth", "classes", "per_image", "normalize_by", "multi_label", "axis_name")

# From the sums of each class, and `smooth`, its cost.
_Cost = Callable[[RegionSums, float | int], Float[Array, "rows c"]]


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
    return _overlap(
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


@functools.partial(jax.jit, static_argnames=("denominator", *_STATIC))
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
    return _overlap(
        "soft_iou",
        functools.partial(_tversky_cost, fp_weight=1, fn_weight=1),
        logits,
        labels,
        valid,
        smooth=smooth,
        classes=classes,
        class_weights=class_weights,
        per_image=per_image,
        normalize_by=normalize_by,
        multi_label=multi_label,
        axis_name=axis_name,
    )


@functools.partial(jax.jit, static_argnames=("fp_weight", "fn_weight", *_STATIC))
def tversky(
    logits: Float[Array, "b *spatial c"],
    labels: Labels,
    valid: Bool[Array, "..."] | None = None,
    *,
    fp_weight: float | int = 0.5,
    fn_weight: float | int = 0.5,
    smooth: float | int = 0.0,
    classes: str = "all",
    class_weights: ClassWeights | None = None,
    per_image: bool = False,
    normalize_by: str = "classes",
    multi_label: bool = False,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Overlap loss that prices false positives and false negatives apart.

    `1 - T` per class with `T = I / (I + fp_weight FP + fn_weight FN)`, where
    `I = sum(min(p, t))`, `FP = sum(p) - I` and `FN = sum(t) - I`: Salehi et al. 2017
    (arXiv:1706.05721), eq. 3 and 4. Weights of 1/2 give the linear soft Dice, of 1 soft
    IoU. More `fn_weight` raises recall, more `fp_weight` precision.

    Args:
        logits: unnormalised class scores.
        labels: class ids, or what `multi_label` says.
        valid: True where a pixel counts, broadcastable to `labels`; None is all.
        fp_weight: of pixels given to a class that is not theirs, at least 0.
        fn_weight: of pixels withheld from their class, above 0, without which it would
            be best to predict nothing.
        smooth: added to numerator and denominator of T.
        classes: as the arguments that follow, and the errors raised, in `soft_dice`.
        class_weights: for the mean over the classes.
        per_image: sum over each image, then average the images.
        normalize_by: "classes" or "samples".
        multi_label: classes with sigmoids, labels in `[0, 1]` for each.
        axis_name: mapped device axis whose devices share one loss.

    Raises:
        ValueError: also if `fp_weight` or `fn_weight` is out of range.
    """
    return _overlap(
        "tversky",
        _checked_tversky_cost("tversky", fp_weight, fn_weight),
        logits,
        labels,
        valid,
        smooth=smooth,
        classes=classes,
        class_weights=class_weights,
        per_image=per_image,
        normalize_by=normalize_by,
        multi_label=multi_label,
        axis_name=axis_name,
    )


@functools.partial(
    jax.jit, static_argnames=("fp_weight", "fn_weight", "gamma", *_STATIC)
)
def focal_tversky(
    logits: Float[Array, "b *spatial c"],
    labels: Labels,
    valid: Bool[Array, "..."] | None = None,
    *,
    fp_weight: float | int = 0.5,
    fn_weight: float | int = 0.5,
    gamma: float | int = 0.75,
    smooth: float | int = 0.0,
    classes: str = "all",
    class_weights: ClassWeights | None = None,
    per_image: bool = False,
    normalize_by: str = "classes",
    multi_label: bool = False,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Tversky loss that turns to the classes still far off, or to those almost right.

    `(1 - T)^gamma` per class, then the mean: Abraham and Khan 2018 (arXiv:1810.07842),
    eq. 4, whose exponent is 1 / gamma. Below 1, gamma steepens the loss near a perfect
    prediction; above 1 it flattens it, as in the focal loss.

    Args:
        logits: unnormalised class scores.
        labels: class ids, or what `multi_label` says.
        valid: True where a pixel counts, broadcastable to `labels`; None is all.
        fp_weight: as `fn_weight` in `tversky`.
        fn_weight: see there.
        gamma: exponent, above 0.
        smooth: as the arguments that follow in `tversky`.
        classes: "all" or "present".
        class_weights: for the mean over the classes.
        per_image: sum over each image, then average the images.
        normalize_by: "classes" or "samples".
        multi_label: classes with sigmoids, labels in `[0, 1]` for each.
        axis_name: mapped device axis whose devices share one loss.

    Raises:
        ValueError: as `tversky`, and if `gamma` is out of range.
    """
    name = "focal_tversky"
    check_range(name, "gamma", gamma, 0, without_low=True)
    tversky_cost = _checked_tversky_cost(name, fp_weight, fn_weight)

    def cost(sums: RegionSums, smooth: float | int) -> Float[Array, "rows c"]:
        linear = tversky_cost(sums, smooth)
        # The slope of a power below 1 is infinite at 0, where there is nothing to do.
        perfect = linear < SMALLEST_DIVISOR
        return jnp.where(perfect, 0.0, jnp.where(perfect, 1.0, linear) ** gamma)

    return _overlap(
        name,
        cost,
        logits,
        labels,
        valid,
        smooth=smooth,
        classes=classes,
        class_weights=class_weights,
        per_image=per_image,
        normalize_by=normalize_by,
        multi_label=multi_label,
        axis_name=axis_name,
    )


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


def _tversky_cost(
    sums: RegionSums,
    smooth: float | int,
    *,
    fp_weight: float | int,
    fn_weight: float | int,
) -> Float[Array, "rows c"]:
    error = fp_weight * sums.over + fn_weight * sums.under
    return safe_divide(error, sums.hits + error + smooth)


def _checked_tversky_cost(
    function: str, fp_weight: float | int, fn_weight: float | int
) -> _Cost:
    check_range(function, "fp_weight", fp_weight, 0)
    check_range(function, "fn_weight", fn_weight, 0, without_low=True)
    return functools.partial(_tversky_cost, fp_weight=fp_weight, fn_weight=fn_weight)


def _overlap(
    name: str,
    cost: _Cost,
    logits: Float[Array, "b *spatial c"],
    labels: Labels,
    valid: Bool[Array, "..."] | None,
    *,
    power: int = 1,
    smooth: float | int,
    classes: str,
    class_weights: ClassWeights | None,
    per_image: bool,
    normalize_by: str,
    multi_label: bool,
    axis_name: str | None,
) -> Float[Array, ""]:
    """The mean over classes of what `cost` makes of their sums."""
    check_choice(name, "classes", classes, ("all", "present"))
    check_choice(name, "normalize_by", normalize_by, ("classes", "samples"))
    check_choice(name, "per_image", per_image, (True, False))
    check_choice(name, "multi_label", multi_label, (True, False))
    check_smooth(name, smooth)
    check_arrays(name, logits, labels, valid, class_weights, multi_label=multi_label)

    valid = valid_or_all(labels, valid)
    sums = region_sums(
        logits,
        labels,
        valid,
        power=power,
        per_image=per_image,
        multi_label=multi_label,
    )
    counted = valid if multi_label else valid[..., None]
    counted = counted.any(range(1 if per_image else 0, valid.ndim - multi_label))
    counted = jnp.atleast_2d(counted).astype(jnp.float32)
    if not per_image:
        sums, counted = sum_over_devices((sums, counted), axis_name)

    costs = cost(sums, smooth)
    if smooth == 0:
        # Without gradient, also where the probability underflows to 0/0. Logits gone
        # NaN must not pass for a class that is absent.
        absent = (sums.labelled == 0) & ~jnp.isnan(sums.over)
        costs = jnp.where(absent, 1.0, costs)
    takes_part = counted > 0
    if classes == "present":
        takes_part &= (sums.labelled != 0) | jnp.isnan(sums.over)
    return mean_over_classes(
        costs,
        jnp.broadcast_to(takes_part, costs.shape),
        valid,
        class_weights=class_weights,
        per_image=per_image,
        normalize_by=normalize_by,
        axis_name=axis_name,
    )

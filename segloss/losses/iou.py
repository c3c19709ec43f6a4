"""Soft IoU, and Tversky's index, which with weights of 1 is the same."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from segloss.losses.check import ClassWeights, Labels, check_range
from segloss.losses.numerics import SMALLEST_DIVISOR, safe_divide
from segloss.losses.overlap import STATIC, Cost, overlap_loss
from segloss.losses.regions import RegionSums


@functools.partial(jax.jit, static_argnames=STATIC)
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
    return overlap_loss(
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


@functools.partial(jax.jit, static_argnames=("fp_weight", "fn_weight", *STATIC))
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
    return overlap_loss(
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
    jax.jit, static_argnames=("fp_weight", "fn_weight", "gamma", *STATIC)
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

    return overlap_loss(
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
) -> Cost:
    check_range(function, "fp_weight", fp_weight, 0)
    check_range(function, "fn_weight", fn_weight, 0, without_low=True)
    return functools.partial(_tversky_cost, fp_weight=fp_weight, fn_weight=fn_weight)

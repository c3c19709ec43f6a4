"""Dice losses and variants."""

from typing import Unpack

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from segloss.jitting import jit
from segloss.losses.check import (
    Labels,
    PixelWeights,
    Scalar,
    check_arrays,
    check_choice,
    check_smooth,
)
from segloss.losses.numerics import safe_divide
from segloss.losses.overlap import OverlapOptions, mean_cost, with_overlap_options
from segloss.losses.reduce import sum_over_devices, valid_or_all
from segloss.losses.regions import RegionSums, region_sums


@with_overlap_options
def soft_dice(
    logits: Float[Array, "b *spatial c"],
    labels: Labels,
    valid: Bool[Array, "..."] | None = None,
    *,
    denominator: str = "squared",
    **options: Unpack[OverlapOptions],
) -> Float[Array, ""]:
    """Multi-class soft Dice loss, from sums of each class over the whole batch.

    `1 - 2 sum(p t) / (sum(p^2) + sum(t^2))` per class, then the mean over classes. The
    sums are over pixels; p is the softmax probability and t is 1 for the labelled
    class, else 0: Eq. 5 of "Balance-batch: An Optimized Method for Semantic
    Segmentation Loss Functions" (Huang, Tang, Su), after Milletari et al. 2016
    (arXiv:1606.04797). Computed as `sum((p - t)^2) / (sum(p^2) + sum(t^2))`.

    The derivative with respect to p is `-2 (t U - 2 p I) / U^2`, divided by the number
    of classes c, where `I = sum(p t)` and U is the denominator; finite differences in
    float64 confirm it. `normalize_by="samples"` divides by the number of samples m
    instead of c, which is Eq. 5 plus the constant `c/m`.

    >>> import jax.numpy as jnp
    >>> logits = jnp.log(jnp.array([[[0.5, 0.5], [0.25, 0.75]]]))  # [1, 2 pixels, 2]
    >>> labels = jnp.array([[0, 1]])
    >>> print(f"{soft_dice(logits, labels):.4f}")  # (5/21 + 5/29) / 2
    0.2053

    Hyperparameters:
        denominator: "squared" for the formula above, or "linear" for
            `1 - 2 sum(min(p, t)) / (sum(p) + sum(t))`.
    """
    how = dict(denominator=denominator, **options)
    return _dice("soft_dice", logits, labels, valid, **how)


@with_overlap_options
def log_cosh_dice(
    logits: Float[Array, "b *spatial c"],
    labels: Labels,
    valid: Bool[Array, "..."] | None = None,
    *,
    denominator: str = "squared",
    **options: Unpack[OverlapOptions],
) -> Float[Array, ""]:
    """Log-cosh Dice loss: `log(cosh(soft_dice))`.

    The Dice loss is averaged over classes first: Jadon 2020 (arXiv:2006.14822), eq. 20.
    Near a perfect prediction the loss is flatter than Dice.

    >>> import jax.numpy as jnp
    >>> logits = jnp.log(jnp.array([[[0.5, 0.5], [0.25, 0.75]]]))  # [1, 2 pixels, 2]
    >>> print(f"{log_cosh_dice(logits, jnp.array([[0, 1]])):.4f}")  # log cosh 0.2053
    0.0209

    Hyperparameters:
        denominator: "squared" for sums of p^2 and t^2 in the denominator of Dice, or
            "linear" for sums of p and t; see `soft_dice`.
    """
    how = dict(denominator=denominator, **options)
    dice = _dice("log_cosh_dice", logits, labels, valid, **how)
    # log1p of cosh(x) - 1 = 2 sinh(x/2)^2: near x = 0, cosh(x) would round to 1.
    return jnp.log1p(2 * jnp.sinh(dice / 2) ** 2)


def _dice(
    name: str,
    logits: Float[Array, "b *spatial c"],
    labels: Labels,
    valid: Bool[Array, "..."] | None,
    *,
    denominator: str,
    **options: Unpack[OverlapOptions],
) -> Float[Array, ""]:
    """Computes `soft_dice`; `name` is the calling loss, for messages."""
    check_choice(name, "denominator", denominator, ("squared", "linear"))

    def cost(sums: RegionSums, smooth: Scalar) -> Float[Array, "rows c"]:
        size = sums.over + sums.hits + sums.labelled
        return safe_divide(sums.over + sums.under, size + smooth)

    power = 2 if denominator == "squared" else 1
    return mean_cost(name, cost, power, logits, labels, valid, **options)


@jit("multi_label", "axis_name", scalars=["smooth"])
def generalized_dice(
    logits: Float[Array, "b *spatial c"],
    labels: Labels,
    valid: Bool[Array, "..."] | None = None,
    *,
    smooth: Scalar = 0.0,
    pixel_weights: PixelWeights | None = None,
    multi_label: bool = False,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Generalized Dice loss: one Dice score over all classes, weighted by inverse size.

    `1 - 2 sum_c w_c I_c / sum_c w_c (P_c + G_c)` with `w_c = 1 / G_c^2`. Per class,
    `P = sum(p)`, `G = sum(t)` and `I = sum(min(p, t))` over the batch; p is the softmax
    probability and t is 1 for the labelled class, else 0: Sudre et al. 2017
    (arXiv:1707.03237), sec. 2.1. A class absent from the labels has weight 0. No
    gradient flows through the weights.

    >>> import jax.numpy as jnp
    >>> logits = jnp.log(jnp.array([[[0.5, 0.5], [0.25, 0.75]]]))  # [1, 2 pixels, 2]
    >>> print(f"{generalized_dice(logits, jnp.array([[0, 1]])):.4f}")  # 1.5 / 4
    0.3750

    Args:
        logits: unnormalised class scores.
        labels: class ids in `[0, c)`, ignored where not valid, or soft labels
            `[b, *spatial, c]`, each class's share of the pixel in `[0, 1]`. A valid
            value outside its range makes the loss NaN.
        valid: True where a pixel counts, broadcastable to `[b, *spatial]`, or with
            `multi_label` to `labels`; None means all.
        smooth: added to numerator and denominator of the Dice score; 0, or at least
            1e-18. The weights are 1 / pixels^2, so even a small `smooth` dominates.
        pixel_weights: factor >= 0 on each pixel's terms of the sums, broadcastable like
            `valid`.
        multi_label: True uses a sigmoid per class; `labels` are then bools or floats in
            `[0, 1]` in the shape of `logits`.
        axis_name: name of a pmap or shard_map axis; the loss covers the pixels of all
            its devices.

    Raises:
        ValueError: if `smooth` is out of range, or an array does not match `logits`.
    """
    name = "generalized_dice"
    check_smooth(name, smooth)
    check_arrays(
        name,
        logits,
        labels,
        valid,
        pixel_weights=pixel_weights,
        multi_label=multi_label,
        soft=True,
    )
    valid = valid_or_all(logits.shape if multi_label else logits.shape[:-1], valid)
    sums = region_sums(
        logits, labels, valid, pixel_weights=pixel_weights, multi_label=multi_label
    )
    over, under, hits, labelled = (x[0] for x in sum_over_devices(sums, axis_name))
    weights = jax.lax.stop_gradient(safe_divide(jnp.ones_like(labelled), labelled**2))
    error = (weights * (over + under)).sum()
    size = (weights * (over + hits + labelled)).sum() + smooth
    return safe_divide(error, size)

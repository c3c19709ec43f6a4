"""Soft IoU and Tversky losses; the Tversky index with weights 1 is the IoU."""

from typing import Unpack

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from segloss.losses.check import Labels, Scalar, check_choice, check_range
from segloss.losses.numerics import SMALLEST_DIVISOR, safe_divide
from segloss.losses.overlap import (
    Cost,
    OverlapOptions,
    mean_cost,
    with_overlap_options,
)
from segloss.losses.regions import RegionSums


@with_overlap_options
def soft_iou(
    logits: Float[Array, "b *spatial c"],
    labels: Labels,
    valid: Bool[Array, "..."] | None = None,
    **options: Unpack[OverlapOptions],
) -> Float[Array, ""]:
    """Soft IoU (Jaccard) loss, from sums of each class over the whole batch.

    `1 - I / (P + G - I)` per class, then the mean over classes. `I = sum(min(p, t))`,
    `P = sum(p)` and `G = sum(t)` are sums over pixels; p is the softmax probability and
    t the label, 0 or 1 or a share: Rahman and Wang 2016
    (doi:10.1007/978-3-319-50835-1_22). They write `p t`, which equals `min(p, t)` for t
    in {0, 1}; for soft labels, only `min(p, t)` makes the loss minimal at `p = t`.
    Computed as `sum(|p - t|) / sum(max(p, t))`.

    >>> import jax.numpy as jnp
    >>> logits = jnp.log(jnp.array([[[0.5, 0.5], [0.25, 0.75]]]))  # [1, 2 pixels, 2]
    >>> print(f"{soft_iou(logits, jnp.array([[0, 1]])):.4f}")  # (3/5 + 1/2) / 2
    0.5500
    """
    cost = _tversky_cost("soft_iou", 1, 1)
    return mean_cost("soft_iou", cost, 1, logits, labels, valid, **options)


@with_overlap_options
def tversky(
    logits: Float[Array, "b *spatial c"],
    labels: Labels,
    valid: Bool[Array, "..."] | None = None,
    *,
    fp_weight: Scalar = 0.5,
    fn_weight: Scalar = 0.5,
    **options: Unpack[OverlapOptions],
) -> Float[Array, ""]:
    """Tversky loss: separate weights for false positives and false negatives.

    `1 - T` per class, then the mean over classes, with
    `T = I / (I + fp_weight FP + fn_weight FN)`. `I = sum(min(p, t))`, `FP = sum(p) - I`
    and `FN = sum(t) - I` are sums over the pixels of the batch; p is the softmax
    probability and t is 1 for the labelled class, else 0: Salehi et al. 2017
    (arXiv:1706.05721), eq. 3 and 4. With `smooth=0`, weights of 1/2 give `soft_dice`
    with `denominator="linear"`; weights of 1 give `soft_iou`. Raise `fn_weight` for
    more recall, `fp_weight` for more precision.

    >>> import jax.numpy as jnp
    >>> logits = jnp.log(jnp.array([[[0.5, 0.5], [0.25, 0.75]]]))  # [1, 2 pixels, 2]
    >>> loss = tversky(logits, jnp.array([[0, 1]]), fp_weight=0.3, fn_weight=0.7)
    >>> print(f"{loss:.4f}")  # (0.425/0.925 + 0.325/1.075) / 2
    0.3809

    Hyperparameters:
        fp_weight: weight of false positives, at least 0.
        fn_weight: weight of false negatives, above 0. At 0, predicting nothing would
            minimise the loss.
    """
    cost = _tversky_cost("tversky", fp_weight, fn_weight)
    return mean_cost("tversky", cost, 1, logits, labels, valid, **options)


@with_overlap_options
def focal_tversky(
    logits: Float[Array, "b *spatial c"],
    labels: Labels,
    valid: Bool[Array, "..."] | None = None,
    *,
    fp_weight: Scalar = 0.5,
    fn_weight: Scalar = 0.5,
    gamma: Scalar = 0.75,
    power_of: str = "classes",
    **options: Unpack[OverlapOptions],
) -> Float[Array, ""]:
    """Focal Tversky loss: the Tversky loss of each class raised to the power gamma.

    The mean over classes of `(1 - T)^gamma`, where `1 - T` is the loss of `tversky`:
    Abraham and Khan 2018 (arXiv:1810.07842), eq. 4, where the exponent is written 1 /
    gamma. For gamma below 1 the loss is steeper near a perfect prediction; above 1 it
    is flatter, like the focal loss.

    >>> import jax.numpy as jnp
    >>> logits = jnp.log(jnp.array([[[0.5, 0.5], [0.25, 0.75]]]))  # [1, 2 pixels, 2]
    >>> loss = focal_tversky(logits, jnp.array([[0, 1]]), gamma=2)
    >>> print(f"{loss:.4f}")  # ((3/7)^2 + (1/3)^2) / 2
    0.1474

    Hyperparameters:
        fp_weight: weight of false positives, at least 0.
        fn_weight: weight of false negatives, above 0.
        gamma: exponent, above 0.
        power_of: "classes" raises each class's loss to the power before averaging, as
            in the paper; "mean" raises the average, as in segmentation_models_pytorch.
    """
    name = "focal_tversky"
    check_range(name, "gamma", gamma, 0, without_low=True)
    check_choice(name, "power_of", power_of, ("classes", "mean"))
    linear = _tversky_cost(name, fp_weight, fn_weight)

    def raised(cost: Float[Array, "..."]) -> Float[Array, "..."]:
        # For gamma < 1 the slope is infinite at cost 0, so the gradient is set to 0.
        perfect = cost < SMALLEST_DIVISOR
        return jnp.where(perfect, 0.0, jnp.where(perfect, 1.0, cost) ** gamma)

    if power_of == "mean":
        return raised(mean_cost(name, linear, 1, logits, labels, valid, **options))
    return mean_cost(
        name,
        lambda sums, smooth: raised(linear(sums, smooth)),
        1,
        logits,
        labels,
        valid,
        **options,
    )


def _tversky_cost(function: str, fp_weight: Scalar, fn_weight: Scalar) -> Cost:
    check_range(function, "fp_weight", fp_weight, 0)
    check_range(function, "fn_weight", fn_weight, 0, without_low=True)

    def cost(sums: RegionSums, smooth: Scalar) -> Float[Array, "rows c"]:
        error = fp_weight * sums.over + fn_weight * sums.under
        return safe_divide(error, sums.hits + error + smooth)

    return cost

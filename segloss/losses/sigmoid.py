"""Binary cross-entropies of independent sigmoids, for binary and multi-label masks.

These losses average over the elements of `labels`: one element per pixel and class.
"""

import numbers

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from segloss.errors import SeglossError
from segloss.jitting import jit
from segloss.losses.check import (
    ClassWeights,
    PixelWeights,
    Scalar,
    SoftLabels,
    check_arrays,
    check_choice,
    check_range,
    check_weights,
)
from segloss.losses.cross_entropy import NORMALIZATIONS
from segloss.losses.numerics import widen
from segloss.losses.reduce import (
    mean_over_pixels,
    nonnegative,
    shares,
    valid_or_all,
)


@jit(
    "normalize_by",
    "axis_name",
    scalars=["pos_weight"],
    checks={"pos_weight": check_weights},
)
def sigmoid_cross_entropy(
    logits: Float[Array, "b *spatial c"],
    labels: SoftLabels,
    valid: Bool[Array, "..."] | None = None,
    *,
    pos_weight: Scalar | ClassWeights | None = None,
    pixel_weights: PixelWeights | None = None,
    normalize_by: str = "pixels",
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Binary cross-entropy of the labels under a sigmoid, in nats; mean over elements.

    `-w t log p - (1 - t) log(1 - p)` for each element t of `labels`, with
    `p = sigmoid(logit)`: the binary case of Eq. 1 of "Balance-batch: An Optimized
    Method for Semantic Segmentation Loss Functions" (Huang, Tang, Su), with a weight
    for positives.

    >>> import jax.numpy as jnp
    >>> logits = jnp.log(jnp.array([[[1 / 3], [1.0]]]))  # p is 1/4 and 1/2
    >>> loss = sigmoid_cross_entropy(logits, jnp.array([[[1.0], [0.0]]]))
    >>> print(f"{loss:.4f}")  # (log 4 + log 2) / 2
    1.0397

    Args:
        logits: unnormalised scores.
        labels: values in `[0, 1]` in the shape of `logits`, ignored where not valid. A
            valid value outside this range, such as 255, makes the loss NaN.
        valid: True where an element counts, broadcastable to `labels`; None means all.
        pos_weight: `w`, one number above 0, or one number >= 0 per class, not all 0.
            None means 1.
        pixel_weights: nonnegative factor on each element's loss, broadcastable to
            `labels`; one weight per pixel has shape `[b, *spatial, 1]`. None means all
            ones. No gradient flows to it.
        normalize_by: divisor of the weighted sum over elements. "pixels" is the number
            of valid elements, "weights" the sum of their weights (`w t + 1 - t` times
            the pixel weight), "samples" the number of samples with a valid element.
        axis_name: name of a pmap or shard_map axis; the loss covers the elements of all
            its devices.

    Raises:
        ValueError: if `pos_weight` or `normalize_by` is invalid, or an array's shape or
            type does not match `logits`.
    """
    name = "sigmoid_cross_entropy"
    check_choice(name, "normalize_by", normalize_by, NORMALIZATIONS)
    if isinstance(pos_weight, numbers.Real | str):
        check_range(name, "pos_weight", pos_weight, 0)
    check_arrays(
        name, logits, labels, valid, pixel_weights=pixel_weights, multi_label=True
    )
    weight = widen(jnp.asarray(1.0 if pos_weight is None else pos_weight))
    weight = nonnegative(weight, weight.dtype)
    if weight.shape not in ((), logits.shape[-1:]):
        raise SeglossError(
            f"{name}: pos_weight must be a number or have shape {logits.shape[-1:]}, "
            f"one per class, got {weight.shape}."
        )
    return _weighted_mean(
        logits,
        labels,
        valid,
        positive=weight,
        pixel_weights=pixel_weights,
        normalize_by=normalize_by,
        axis_name=axis_name,
    )


@jit("weighting", "normalize_by", "axis_name")
def normalized_sigmoid_cross_entropy(
    logits: Float[Array, "b *spatial c"],
    labels: SoftLabels,
    valid: Bool[Array, "..."] | None = None,
    *,
    weighting: str = "complement",
    pixel_weights: PixelWeights | None = None,
    normalize_by: str = "pixels",
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Binary cross-entropy weighted by the frequency of positives in the batch.

    Let f be the mean label, i.e. the fraction of positives, of the valid elements of
    the global batch, and `p = sigmoid(logit)`. For an element t of `labels`,
    "complement" is `-(1 - f) t log p - f (1 - t) log(1 - p)`, the class-balanced
    cross-entropy of Xie and Tu 2015 (arXiv:1504.06375), eq. 2; "inverse" is
    `-(1 / f) t log p - (1 - t) log(1 - p)`. If all elements are positive or all are
    negative, their weight is 1.

    >>> import jax.numpy as jnp
    >>> logits = jnp.zeros((1, 4, 1))  # p is 1/2
    >>> labels = jnp.array([[[1.0], [0.0], [0.0], [0.0]]])  # f is 1/4
    >>> loss = normalized_sigmoid_cross_entropy(logits, labels)
    >>> print(f"{loss:.4f}")  # (3/4 + 3 * 1/4) log 2 / 4
    0.2599

    Args:
        logits: unnormalised scores.
        labels: values in `[0, 1]` in the shape of `logits`, ignored where not valid. A
            valid value outside this range, such as 255, makes the loss NaN.
        valid: True where an element counts, broadcastable to `labels`; None means all.
        weighting: "complement" or "inverse", as above.
        pixel_weights: factor >= 0 on each element's loss, broadcastable to `labels`
            (`[b, *spatial, 1]` for one per pixel); not used in f.
        normalize_by: divisor of the weighted sum: "pixels" is the number of valid
            elements, "weights" the sum of their weights, "samples" the number of
            samples with a valid element.
        axis_name: name of a pmap or shard_map axis; loss and f cover the elements of
            all its devices.

    Raises:
        ValueError: if `weighting` or `normalize_by` is invalid, or an array
            does not match `logits`.
    """
    name = "normalized_sigmoid_cross_entropy"
    check_choice(name, "weighting", weighting, ("complement", "inverse"))
    check_choice(name, "normalize_by", normalize_by, NORMALIZATIONS)
    check_arrays(
        name, logits, labels, valid, pixel_weights=pixel_weights, multi_label=True
    )
    counted = valid_or_all(labels.shape, valid)
    positives = jnp.where(counted, widen(labels), 0.0)
    share = mean_over_pixels(positives, counted, axis_name=axis_name)
    if weighting == "complement":
        positive = jnp.where(share == 1, 1.0, 1 - share)
        negative = jnp.where(share == 0, 1.0, share)
    else:
        positive = 1 / jnp.where(share == 0, 1.0, share)
        negative = 1.0
    return _weighted_mean(
        logits,
        labels,
        valid,
        positive=positive,
        negative=negative,
        pixel_weights=pixel_weights,
        normalize_by=normalize_by,
        axis_name=axis_name,
    )


@jit("axis_name", scalars=["gate_weight", "threshold"])
def gated_sigmoid_cross_entropy(
    logits: Float[Array, "b *spatial c"],
    labels: SoftLabels,
    valid: Bool[Array, "..."] | None = None,
    *,
    gate_weight: Scalar = 5.0,
    threshold: Scalar = 0.5,
    pixel_weights: PixelWeights | None = None,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Binary cross-entropy with another weight where the predicted probability is low.

    `-g (t log p + (1 - t) log(1 - p))` for each element t of `labels`, mean over valid
    elements, with `p = sigmoid(logit)`. The gate g is `gate_weight` if p is below
    `threshold`, else 1, whatever the label is; no gradient flows through g. For g = 1
    this is the binary case of Eq. 1 of "Balance-batch: An Optimized Method for Semantic
    Segmentation Loss Functions" (Huang, Tang, Su).

    >>> import jax.numpy as jnp
    >>> logits = jnp.log(jnp.array([[[1 / 3], [1.0]]]))  # p is 1/4 and 1/2
    >>> loss = gated_sigmoid_cross_entropy(logits, jnp.ones((1, 2, 1)))
    >>> print(f"{loss:.4f}")  # (5 log 4 + log 2) / 2
    3.8123

    Args:
        logits: unnormalised scores.
        labels: values in `[0, 1]` in the shape of `logits`, ignored where not valid. A
            valid value outside this range, such as 255, makes the loss NaN.
        valid: True where an element counts, broadcastable to `labels`; None means all.
        gate_weight: value of g where p is below `threshold`, at least 0.
        threshold: probability in `[0, 1]` with which p is compared.
        pixel_weights: factor >= 0 on each element's loss, broadcastable to `labels`
            (`[b, *spatial, 1]` for one per pixel); the divisor stays the number of
            valid elements.
        axis_name: name of a pmap or shard_map axis; the mean is over the elements of
            all its devices.

    Raises:
        ValueError: if a number is out of range, or an array does not match `logits`.
    """
    name = "gated_sigmoid_cross_entropy"
    check_range(name, "gate_weight", gate_weight, 0)
    check_range(name, "threshold", threshold, 0, 1)
    check_arrays(
        name, logits, labels, valid, pixel_weights=pixel_weights, multi_label=True
    )
    return _weighted_mean(
        logits,
        labels,
        valid,
        gate=(gate_weight, threshold),
        pixel_weights=pixel_weights,
        axis_name=axis_name,
    )


@jit("axis_name", scalars=["gamma", "alpha"])
def sigmoid_focal_loss(
    logits: Float[Array, "b *spatial c"],
    labels: SoftLabels,
    valid: Bool[Array, "..."] | None = None,
    *,
    gamma: Scalar = 2.0,
    alpha: Scalar | None = 0.25,
    pixel_weights: PixelWeights | None = None,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Focal loss of sigmoids: down-weights elements already classified well.

    `-alpha_t (1 - p_t)^gamma log p_t` in nats for each element of `labels`, mean over
    valid elements: Lin et al. 2017 (arXiv:1708.02002), eq. 5. With
    `p = sigmoid(logit)`, p_t is p and alpha_t is alpha for a positive (label 1); they
    are `1 - p` and `1 - alpha` for a negative (label 0). A label t between 0 and 1
    gives t times the loss of a positive plus `1 - t` times that of a negative.

    >>> import jax.numpy as jnp
    >>> logits = jnp.log(jnp.array([[[1 / 3]]]))  # p is 1/4
    >>> loss = sigmoid_focal_loss(logits, jnp.array([[[1.0]]]))
    >>> print(f"{loss:.4f}")  # 1/4 (3/4)^2 log 4
    0.1949

    Args:
        logits: unnormalised scores.
        labels: values in `[0, 1]` in the shape of `logits`, ignored where not valid. A
            valid value outside this range, such as 255, makes the loss NaN.
        valid: True where an element counts, broadcastable to `labels`; None means all.
        gamma: focusing strength, at least 0; 0 gives weighted cross-entropy.
        alpha: weight of positives in `[0, 1]`; None gives positives and negatives the
            weight 1.
        pixel_weights: factor >= 0 on each element's loss, broadcastable to `labels`
            (`[b, *spatial, 1]` for one per pixel); the divisor stays the number of
            valid elements.
        axis_name: name of a pmap or shard_map axis; the mean is over the elements of
            all its devices.

    Raises:
        ValueError: if a number is out of range, or an array does not match `logits`.
    """
    name = "sigmoid_focal_loss"
    check_range(name, "gamma", gamma, 0)
    if alpha is not None:
        check_range(name, "alpha", alpha, 0, 1)
    check_arrays(
        name, logits, labels, valid, pixel_weights=pixel_weights, multi_label=True
    )
    positive, negative = (1.0, 1.0) if alpha is None else (alpha, 1 - alpha)
    return _weighted_mean(
        logits,
        labels,
        valid,
        positive=positive,
        negative=negative,
        gamma=gamma,
        pixel_weights=pixel_weights,
        axis_name=axis_name,
    )


def _weighted_mean(
    logits: Float[Array, "b *spatial c"],
    labels: SoftLabels,
    valid: Bool[Array, "..."] | None,
    *,
    positive: Float[Array, "..."] | float | int = 1.0,
    negative: Float[Array, "..."] | float | int = 1.0,
    gamma: Scalar = 0,
    gate: tuple[Scalar, Scalar] | None = None,
    pixel_weights: PixelWeights | None,
    normalize_by: str = "pixels",
    axis_name: str | None,
) -> Float[Array, ""]:
    """Mean of `-positive t log p - negative (1 - t) log(1 - p)` over the elements.

    t is an element of `labels` and `p = sigmoid(logit)`. `positive` and `negative` are
    numbers, or one number per class. `gamma` multiplies the first term by
    `(1 - p)^gamma` and the second by `p^gamma`. `gate` is a factor and a threshold: the
    factor multiplies both terms where p is below the threshold. The other arguments are
    those of `sigmoid_cross_entropy`.
    """
    valid = valid_or_all(labels.shape, valid)
    logits = jnp.where(valid, widen(logits), 0.0)
    labels = shares(labels, valid, logits.dtype)
    hit, miss, log_hit, log_miss = _sigmoids(logits)
    for_hit, for_miss = (
        jnp.broadcast_to(jnp.asarray(w, logits.dtype), logits.shape) * t
        for w, t in ((positive, labels), (negative, 1 - labels))
    )
    if gate is not None:
        factor, threshold = gate
        factor = jnp.where(hit < threshold, factor, 1.0)
        for_hit, for_miss = (w * lax.stop_gradient(factor) for w in (for_hit, for_miss))
    weights = for_hit + for_miss
    if isinstance(gamma, Array) or gamma != int(gamma):
        for_hit *= jnp.exp(gamma * log_miss)
        for_miss *= jnp.exp(gamma * log_hit)
    elif gamma:
        # On a GPU, XLA recomputes products, but keeps exponentials in memory.
        for_hit *= miss ** int(gamma)
        for_miss *= hit ** int(gamma)
    return mean_over_pixels(
        -for_hit * log_hit - for_miss * log_miss,
        valid,
        normalize_by=normalize_by,
        weights=weights,
        pixel_weights=pixel_weights,
        axis_name=axis_name,
    )


@jax.custom_jvp
def _sigmoids(logits: Float[Array, "*pixels"]) -> tuple[Float[Array, "*pixels"], ...]:
    """Returns p, `1 - p`, `log p` and `log(1 - p)`, where p is the sigmoid of a logit.

    Each is computed without cancellation, so small values stay accurate.
    """
    small = jnp.exp(-jnp.abs(logits))
    larger = 1.0 / (1.0 + small)
    smaller = small * larger
    positive = logits > 0
    hit, miss = (
        jnp.where(positive, *probs) for probs in ((larger, smaller), (smaller, larger))
    )
    # Keep the logarithms finite, because 0 times infinity is NaN.
    log_hit, log_miss = (
        jnp.maximum(jnp.minimum(x, 0.0) - jnp.log1p(small), jnp.finfo(x.dtype).min)
        for x in (logits, -logits)
    )
    return hit, miss, log_hit, log_miss


@_sigmoids.defjvp
def _sigmoids_jvp(primals, tangents):
    (tangent,) = tangents
    hit, miss, log_hit, log_miss = _sigmoids(*primals)
    of_hit = hit * miss * tangent
    slopes = of_hit, -of_hit, miss * tangent, -hit * tangent
    return (hit, miss, log_hit, log_miss), slopes

"""Losses that are a mean over pixels of some function of the softmax.

The label's probability, of which all are made, has a derivative of its own, for
reverse mode: `jax.grad`, `jax.vjp`, gradients of gradients and `jax.jvp` of `jax.grad`
work, but not `jax.jvp` or `jax.jacfwd` of the loss.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Integer

from segloss.losses.check import (
    ClassWeights,
    Penalty,
    check_arrays,
    check_choice,
    check_range,
)
from segloss.losses.numerics import widen
from segloss.losses.reduce import (
    mean_over_pixels,
    sum_over_devices,
    valid_or_all,
    weigh,
)
from segloss.losses.softmax import (
    as_index,
    log_misses,
    log_prob_of_label,
    log_probs,
)

NORMALIZATIONS = ("pixels", "weights", "samples")


@functools.partial(
    jax.jit, static_argnames=("label_smoothing", "normalize_by", "axis_name")
)
def softmax_cross_entropy(
    logits: Float[Array, "b *spatial c"],
    labels: Integer[Array, " b *spatial"],
    valid: Bool[Array, "..."] | None = None,
    *,
    class_weights: ClassWeights | None = None,
    label_smoothing: float | int = 0.0,
    normalize_by: str = "pixels",
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Negative log-likelihood of the labels under a softmax, in nats.

    `-w_y log p_y` per pixel: Eq. 1 of "Balance-batch: An Optimized Method for Semantic
    Segmentation Loss Functions" (Huang, Tang, Su) with `normalize_by="samples"`, which
    sums over the pixels and averages over the m samples. Its derivative by the logit of
    class k is `w_y (p_k - t_k)`, divided likewise, with t 1 on the label, else 0.

    With smoothing s, `(1 - s) w_y (-log p_y) + s / c sum_k w_k (-log p_k)`: Szegedy et
    al. 2016 (arXiv:1512.00567), sec. 7, weighted as `torch.nn.CrossEntropyLoss` does;
    with `normalize_by="weights"` the values are those of torch.

    Args:
        logits: unnormalised class scores.
        labels: class ids in `[0, c)`; a pixel that is not valid may hold anything. A
            valid pixel whose label is no class makes the loss NaN.
        valid: True where a pixel counts, broadcastable to `labels`; None is all.
        class_weights: `w`, a factor of at least 0 per class; None means all ones.
        label_smoothing: s in `[0, 1]`, the share of the target spread evenly.
        normalize_by: "pixels" divides by the number of valid pixels, "weights" by the
            sum of `w_y` over them, "samples" by the number of samples that hold one.
        axis_name: mapped device axis whose devices share one loss.

    Raises:
        ValueError: if `label_smoothing` or `normalize_by` is none of the above, or an
            array's shape or type does not fit `logits`.
    """
    name = "softmax_cross_entropy"
    check_choice(name, "normalize_by", normalize_by, NORMALIZATIONS)
    check_range(name, "label_smoothing", label_smoothing, 0, 1)
    check_arrays(name, logits, labels, valid, class_weights)

    valid = valid_or_all(labels, valid)
    # Once, so that the gradients of its two uses add up before they are rounded.
    if label_smoothing:
        logits = widen(logits)
    loss = weigh(-log_prob_of_label(logits, labels, valid), labels, class_weights)
    if label_smoothing:
        misses = -log_probs(logits, labels, valid)
        if class_weights is not None:
            weights = jnp.asarray(class_weights, misses.dtype)
            misses *= jnp.broadcast_to(weights, misses.shape)
        loss = (1 - label_smoothing) * loss + label_smoothing * misses.mean(axis=-1)
    return mean_over_pixels(
        loss,
        valid,
        normalize_by=normalize_by,
        pixel_weights=weigh(jnp.ones_like(loss), labels, class_weights),
        axis_name=axis_name,
    )


@functools.partial(jax.jit, static_argnames=("gamma", "axis_name"))
def focal_loss(
    logits: Float[Array, "b *spatial c"],
    labels: Integer[Array, " b *spatial"],
    valid: Bool[Array, "..."] | None = None,
    *,
    gamma: float | int = 2.0,
    class_weights: ClassWeights | None = None,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Cross-entropy that fades out the pixels already classified well.

    `-a_y (1 - p_y)^gamma log p_y` in nats, mean over valid pixels: Lin et al. 2017
    (arXiv:1708.02002), eq. 5, with a softmax where the paper has a sigmoid.

    Args:
        logits: unnormalised class scores.
        labels: class ids in `[0, c)`; a pixel that is not valid may hold anything. A
            valid pixel whose label is no class makes the loss NaN.
        valid: True where a pixel counts, broadcastable to `labels`; None is all.
        gamma: focusing strength, at least 0; 0 is plain cross-entropy.
        class_weights: `a` of eq. 5, a factor of at least 0 per class; None is ones.
        axis_name: mapped device axis whose devices share one mean.

    Raises:
        ValueError: if `gamma` is negative, or an array does not fit `logits`.
    """
    name = "focal_loss"
    check_range(name, "gamma", gamma, 0)
    check_arrays(name, logits, labels, valid, class_weights)
    valid = valid_or_all(labels, valid)
    log_prob = log_prob_of_label(logits, labels, valid)
    # Without a floor the gradient is NaN at p == 1 for gamma < 1.
    miss = jnp.maximum(-jnp.expm1(log_prob), jnp.finfo(log_prob.dtype).tiny)
    return mean_over_pixels(
        weigh(-(miss**gamma) * log_prob, labels, class_weights),
        valid,
        axis_name=axis_name,
    )


@functools.partial(jax.jit, static_argnames=("epsilon", "axis_name"))
def poly_loss(
    logits: Float[Array, "b *spatial c"],
    labels: Integer[Array, " b *spatial"],
    valid: Bool[Array, "..."] | None = None,
    *,
    epsilon: float | int = 1.0,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Poly-1: cross-entropy with another weight on its expansion's first term.

    `-log p_y + epsilon (1 - p_y)`, mean over valid pixels: Leng et al. 2022
    (arXiv:2204.12511), sec. 4.

    Args:
        logits: unnormalised class scores.
        labels: class ids in `[0, c)`, as in `softmax_cross_entropy`.
        valid: True where a pixel counts, broadcastable to `labels`; None is all.
        epsilon: added to the coefficient 1 of `1 - p_y`, at least -1.
        axis_name: mapped device axis whose devices share one mean.

    Raises:
        ValueError: if `epsilon` is below -1, or an array does not fit `logits`.
    """
    name = "poly_loss"
    check_range(name, "epsilon", epsilon, -1)
    check_arrays(name, logits, labels, valid)
    valid = valid_or_all(labels, valid)
    log_prob = log_prob_of_label(logits, labels, valid)
    loss = -log_prob - epsilon * jnp.expm1(log_prob)
    return mean_over_pixels(loss, valid, axis_name=axis_name)


@functools.partial(jax.jit, static_argnames=("fraction", "axis_name"))
def top_k_cross_entropy(
    logits: Float[Array, "b *spatial c"],
    labels: Integer[Array, " b *spatial"],
    valid: Bool[Array, "..."] | None = None,
    *,
    fraction: float | int = 0.25,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Cross-entropy of the hardest pixels alone.

    The mean of `-log p_y` over the k valid pixels of the batch where it is largest, k
    being `fraction` of the valid pixels, rounded, and at least 1: Wu et al. 2016
    (arXiv:1605.06885), sec. 3. Pixels that tie for the last places share them.

    Args:
        logits: unnormalised class scores.
        labels: class ids in `[0, c)`, as in `softmax_cross_entropy`.
        valid: True where a pixel counts, broadcastable to `labels`; None is all.
        fraction: share of the valid pixels that counts, in `(0, 1]`.
        axis_name: mapped device axis whose devices share one batch.

    Raises:
        ValueError: if `fraction` is out of range, or an array does not fit `logits`.
    """
    name = "top_k_cross_entropy"
    check_range(name, "fraction", fraction, 0, 1, without_low=True)
    check_arrays(name, logits, labels, valid)
    valid = valid_or_all(labels, valid)
    loss = -log_prob_of_label(logits, labels, valid)

    # The bits of floats that are not negative are in their order, void below them and
    # NaN above.
    bits = lax.bitcast_convert_type(jnp.abs(loss).astype(jnp.float32), jnp.uint32)
    rank = jnp.where(valid, bits + 1, 0)

    def count(where: Bool[Array, " b *spatial"]) -> Int[Array, ""]:
        return sum_over_devices(where.sum(), axis_name)

    k = jnp.maximum(jnp.round(fraction * count(valid)), 1).astype(jnp.int32)

    def raise_bit(i, last):
        higher = last | (jnp.uint32(1 << 31) >> i.astype(jnp.uint32))
        return jnp.where(count(rank >= higher) >= k, higher, last)

    # The largest that k reach, bit by bit: faster than to sort, nothing to gather.
    last = lax.fori_loop(0, 32, raise_bit, jnp.uint32(0))
    share = (k - count(rank > last)) / count(rank == last)
    share = share.astype(loss.dtype)
    weights = jnp.where(rank > last, 1.0, jnp.where(rank == last, share, 0.0))
    return mean_over_pixels(
        weights * loss,
        valid,
        normalize_by="weights",
        pixel_weights=weights,
        axis_name=axis_name,
    )


@functools.partial(jax.jit, static_argnames=("alpha", "axis_name"))
def log_bilinear_loss(
    logits: Float[Array, "b *spatial c"],
    labels: Integer[Array, " b *spatial"],
    valid: Bool[Array, "..."] | None = None,
    *,
    penalty: Penalty,
    alpha: float | int = 0.5,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Cross-entropy beside a price on each kind of confusion.

    `-(1 - alpha) log p_y - alpha sum_k a_yk log(1 - p_k)`, mean over valid pixels:
    Resheff et al. 2017 (arXiv:1704.06062), eq. 3 with eq. 5.

    Args:
        logits: unnormalised class scores.
        labels: class ids in `[0, c)`, as in `softmax_cross_entropy`.
        valid: True where a pixel counts, broadcastable to `labels`; None is all.
        penalty: `a [c, c]`, at least 0: what it costs to see class k (column) where
            the label is y (row). The diagonal is not read.
        alpha: weight of the penalties in `[0, 1]`.
        axis_name: mapped device axis whose devices share one mean.

    Raises:
        ValueError: if `alpha` is out of range, or an array does not fit `logits`.
    """
    name = "log_bilinear_loss"
    check_range(name, "alpha", alpha, 0, 1)
    check_arrays(name, logits, labels, valid)
    classes = logits.shape[-1]
    penalty = jnp.asarray(penalty, jnp.float32)
    if penalty.shape != (classes, classes):
        raise ValueError(
            f"{name}: penalty must have shape {(classes, classes)}, a row per class "
            f"of the label, got {penalty.shape}."
        )
    penalty = jnp.where(jnp.eye(classes, dtype=bool), 0.0, penalty)
    valid = valid_or_all(labels, valid)
    # Once, so that the gradients of its two uses add up before they are rounded.
    logits = widen(logits)
    prices = penalty[as_index(labels, classes)]
    prices = -(prices * log_misses(logits, labels, valid)).sum(axis=-1)
    loss = -(1 - alpha) * log_prob_of_label(logits, labels, valid) + alpha * prices
    return mean_over_pixels(loss, valid, axis_name=axis_name)

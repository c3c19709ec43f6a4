"""Per-pixel softmax losses, averaged over pixels."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from segloss.errors import SeglossError
from segloss.jitting import jit
from segloss.losses.check import (
    ClassWeights,
    Labels,
    Penalty,
    PixelWeights,
    Scalar,
    check_arrays,
    check_choice,
    check_nonnegative,
    check_range,
    check_weights,
)
from segloss.losses.reduce import (
    mean_over_pixels,
    nonnegative,
    shares,
    valid_or_all,
    weight_of_label,
    weight_or_one,
)
from segloss.losses.softmax import log_misses, one_hot, softmax
from segloss.losses.top_k import hardest_pixels

NORMALIZATIONS = ("pixels", "weights", "samples")


@jit(
    "normalize_by",
    "axis_name",
    scalars=["label_smoothing"],
    checks={"class_weights": check_weights},
)
def softmax_cross_entropy(
    logits: Float[Array, "b *spatial c"],
    labels: Labels,
    valid: Bool[Array, "..."] | None = None,
    *,
    class_weights: ClassWeights | None = None,
    pixel_weights: PixelWeights | None = None,
    label_smoothing: Scalar = 0.0,
    normalize_by: str = "pixels",
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Negative log-likelihood of the labels under a softmax, in nats.

    `-w_y log p_y` per pixel, where `p = softmax(logits)` and y is the label: Eq. 1 of
    "Balance-batch: An Optimized Method for Semantic Segmentation Loss Functions"
    (Huang, Tang, Su) with `normalize_by="samples"`, which sums over pixels and averages
    over the m samples. The gradient with respect to the logit of class k is
    `w_y (p_k - t_k)`, with the same divisor; t is 1 for the label and 0 otherwise.

    With label smoothing s and c classes the loss is
    `-(1 - s) w_y log p_y - s / c sum_k w_k log p_k`: Szegedy et al. 2016
    (arXiv:1512.00567), sec. 7. For class ids and `normalize_by="weights"` it equals the
    mean reduction of `torch.nn.CrossEntropyLoss`.

    >>> import jax.numpy as jnp
    >>> logits = jnp.log(jnp.array([[[0.5, 0.5], [0.25, 0.75]]]))  # [1, 2 pixels, 2]
    >>> labels = jnp.array([[0, 255]])
    >>> print(f"{softmax_cross_entropy(logits, labels, labels != 255):.4f}")  # log 2
    0.6931

    Args:
        logits: unnormalised class scores.
        labels: class ids in `[0, c)`, ignored where not valid; a valid pixel with a
            label outside this range makes the loss NaN. Or soft labels
            `[b, *spatial, c]`, as in mixup or distillation: t_k in `[0, 1]` is the
            share of the pixel that belongs to class k, and the loss is
            `-sum_k w_k t_k log p_k`; NaN if a valid t_k is outside this range.
        valid: True where a pixel counts, broadcastable to `[b, *spatial]`; None means
            all.
        class_weights: `w`, a nonnegative factor per class; None means all ones.
        pixel_weights: nonnegative factor on each pixel's loss, broadcastable to
            `[b, *spatial]`, such as U-Net's border weights, or one weight per sample,
            `[b, 1, 1]`. None means all ones. No gradient flows to the weights.
        label_smoothing: s in `[0, 1]`, the share of the target that is spread evenly
            over all classes.
        normalize_by: divisor of the weighted sum over pixels. "pixels" is the number of
            valid pixels, "weights" the sum of their class weights times pixel weights,
            "samples" the number of samples with a valid pixel.
        axis_name: name of a pmap or shard_map axis; the loss covers the pixels of all
            its devices.

    Raises:
        ValueError: if `label_smoothing` or `normalize_by` is invalid, or an
            array's shape or type does not match `logits`.
    """
    name = "softmax_cross_entropy"
    check_choice(name, "normalize_by", normalize_by, NORMALIZATIONS)
    check_range(name, "label_smoothing", label_smoothing, 0, 1)
    check_arrays(
        name,
        logits,
        labels,
        valid,
        class_weights,
        pixel_weights=pixel_weights,
        soft=True,
    )
    loss, weights = _loss_and_weight(
        jnp.negative, logits, labels, valid, class_weights, label_smoothing
    )
    return mean_over_pixels(
        loss,
        valid,
        normalize_by=normalize_by,
        weights=weights,
        pixel_weights=pixel_weights,
        axis_name=axis_name,
    )


@jit("axis_name", scalars=["gamma"], checks={"class_weights": check_weights})
def focal_loss(
    logits: Float[Array, "b *spatial c"],
    labels: Labels,
    valid: Bool[Array, "..."] | None = None,
    *,
    gamma: Scalar = 2.0,
    class_weights: ClassWeights | None = None,
    pixel_weights: PixelWeights | None = None,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Focal loss: cross-entropy that down-weights pixels already classified well.

    `-a_y (1 - p_y)^gamma log p_y` in nats, mean over valid pixels, where y is the label
    and `p = softmax(logits)`: Lin et al. 2017 (arXiv:1708.02002), eq. 5, which has a
    sigmoid instead.

    >>> import jax.numpy as jnp
    >>> logits, labels = jnp.log(jnp.array([[[0.25, 0.75]]])), jnp.array([[0]])
    >>> print(f"{focal_loss(logits, labels):.4f}")  # (3/4)^2 log 4
    0.7798

    Args:
        logits: unnormalised class scores.
        labels: class ids, or soft labels `[b, *spatial, c]`: t_k in `[0, 1]` is the
            share of class k in the pixel, with loss
            `-sum_k a_k t_k (1 - p_k)^gamma log p_k`.
        valid: True where a pixel counts, broadcastable to `[b, *spatial]`; None means
            all.
        gamma: focusing strength, at least 0; 0 gives cross-entropy.
        class_weights: `a` of eq. 5, a nonnegative factor per class; None means all
            ones.
        pixel_weights: factor >= 0 on each pixel's loss, broadcastable to
            `[b, *spatial]`; the divisor stays the number of valid pixels.
        axis_name: name of a pmap or shard_map axis; the mean is over the pixels of all
            its devices.

    Raises:
        ValueError: if `gamma` is negative, or an array does not match `logits`.
    """
    name = "focal_loss"
    check_range(name, "gamma", gamma, 0)
    check_arrays(
        name,
        logits,
        labels,
        valid,
        class_weights,
        pixel_weights=pixel_weights,
        soft=True,
    )

    def focal(log_prob: Float[Array, "..."]) -> Float[Array, "..."]:
        # Without a floor the gradient is NaN at p == 1 for gamma < 1.
        miss = jnp.maximum(-jnp.expm1(log_prob), jnp.finfo(log_prob.dtype).tiny)
        return -(miss**gamma) * log_prob

    loss, _ = _loss_and_weight(focal, logits, labels, valid, class_weights)
    return mean_over_pixels(
        loss, valid, pixel_weights=pixel_weights, axis_name=axis_name
    )


@jit("axis_name", scalars=["epsilon"])
def poly_loss(
    logits: Float[Array, "b *spatial c"],
    labels: Labels,
    valid: Bool[Array, "..."] | None = None,
    *,
    epsilon: Scalar = 1.0,
    pixel_weights: PixelWeights | None = None,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Poly-1 loss: cross-entropy plus `epsilon` times its first polynomial term.

    `-log p_y + epsilon (1 - p_y)`, mean over valid pixels, where y is the label and
    `p = softmax(logits)`: Leng et al. 2022 (arXiv:2204.12511), sec. 4.

    >>> import jax.numpy as jnp
    >>> logits, labels = jnp.log(jnp.array([[[0.25, 0.75]]])), jnp.array([[0]])
    >>> print(f"{poly_loss(logits, labels):.4f}")  # log 4 + 3/4
    2.1363

    Args:
        logits: unnormalised class scores.
        labels: class ids, or soft labels `[b, *spatial, c]`: t_k in `[0, 1]` is the
            share of class k in the pixel, and the loss sums t_k times the loss for
            label k.
        valid: True where a pixel counts, broadcastable to `[b, *spatial]`; None means
            all.
        epsilon: coefficient of the added term, at least -1. Cross-entropy is
            `sum_j (1 - p_y)^j / j`, so the term's total coefficient is `1 + epsilon`.
        pixel_weights: factor >= 0 on each pixel's loss, broadcastable to
            `[b, *spatial]`; the divisor stays the number of valid pixels.
        axis_name: name of a pmap or shard_map axis; the mean is over the pixels of all
            its devices.

    Raises:
        ValueError: if `epsilon` is below -1, or an array does not match `logits`.
    """
    name = "poly_loss"
    check_range(name, "epsilon", epsilon, -1)
    check_arrays(name, logits, labels, valid, pixel_weights=pixel_weights, soft=True)

    def poly(log_prob: Float[Array, "..."]) -> Float[Array, "..."]:
        return -log_prob - epsilon * jnp.expm1(log_prob)

    loss, _ = _loss_and_weight(poly, logits, labels, valid)
    return mean_over_pixels(
        loss, valid, pixel_weights=pixel_weights, axis_name=axis_name
    )


@jit("axis_name", scalars=["fraction"])
def top_k_cross_entropy(
    logits: Float[Array, "b *spatial c"],
    labels: Integer[Array, " b *spatial"],
    valid: Bool[Array, "..."] | None = None,
    *,
    fraction: Scalar = 0.25,
    pixel_weights: PixelWeights | None = None,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Cross-entropy of the hardest pixels only (online hard example mining).

    The mean of `-log p_y` over the k valid pixels of the batch with the largest loss,
    where y is the label and `p = softmax(logits)`: Wu et al. 2016 (arXiv:1605.06885),
    sec. 3. k is `fraction` times the number of valid pixels, rounded, and at least 1.
    If more pixels tie at the k-th largest loss than there are places left, each gets
    the same fraction of a place.

    >>> import jax.numpy as jnp
    >>> logits = jnp.log(jnp.array([[[0.5, 0.5], [0.25, 0.75]]]))  # [1, 2 pixels, 2]
    >>> loss = top_k_cross_entropy(logits, jnp.array([[0, 0]]), fraction=0.5)
    >>> print(f"{loss:.4f}")  # only the second pixel: log 4
    1.3863

    Args:
        logits: unnormalised class scores.
        labels: class ids in `[0, c)`, ignored where not valid; a valid pixel with
            another label makes the loss NaN.
        valid: True where a pixel counts, broadcastable to `labels`; None means all.
        fraction: share of the valid pixels to keep, in `(0, 1]`.
        pixel_weights: factor >= 0 on each pixel's loss, broadcastable to `labels` and
            applied before the largest are chosen; the divisor stays k.
        axis_name: name of a pmap or shard_map axis; the k pixels are chosen among the
            pixels of all its devices.

    Raises:
        ValueError: if `fraction` is out of range, or an array does not match `logits`.
    """
    name = "top_k_cross_entropy"
    check_range(name, "fraction", fraction, 0, 1, without_low=True)
    check_arrays(name, logits, labels, valid, pixel_weights=pixel_weights)
    valid = valid_or_all(labels.shape, valid)
    loss = -softmax(logits, labels, valid).log_prob_of_label()
    loss = jnp.where(valid, loss, 0.0)
    if pixel_weights is not None:
        loss *= weight_or_one(valid, pixel_weights, loss.dtype)
    weights = hardest_pixels(loss, valid, fraction=fraction, axis_name=axis_name)
    return mean_over_pixels(
        weights * loss,
        valid,
        normalize_by="weights",
        weights=weights,
        axis_name=axis_name,
    )


@jit("axis_name", scalars=["alpha"], checks={"penalty": check_nonnegative})
def log_bilinear_loss(
    logits: Float[Array, "b *spatial c"],
    labels: Integer[Array, " b *spatial"],
    valid: Bool[Array, "..."] | None = None,
    *,
    penalty: Penalty,
    alpha: Scalar = 0.5,
    pixel_weights: PixelWeights | None = None,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Cross-entropy plus a penalty for each kind of confusion.

    `-(1 - alpha) log p_y - alpha sum_k a_yk log(1 - p_k)`, mean over valid pixels,
    where y is the label and `p = softmax(logits)`: Resheff et al. 2017
    (arXiv:1704.06062), eq. 3 with eq. 5.

    >>> import jax.numpy as jnp
    >>> logits, labels = jnp.log(jnp.array([[[0.5, 0.5]]])), jnp.array([[0]])
    >>> loss = log_bilinear_loss(logits, labels, penalty=((0, 3), (1, 0)))
    >>> print(f"{loss:.4f}")  # (log 2 + 3 log 2) / 2
    1.3863

    Args:
        logits: unnormalised class scores.
        labels: class ids in `[0, c)`, ignored where not valid; a valid pixel with
            another label makes the loss NaN.
        valid: True where a pixel counts, broadcastable to `labels`; None means all.
        penalty: `a`, nonnegative, shape `[c, c]`: row y, column k is the penalty for
            predicting class k where the label is y. The diagonal is ignored.
        alpha: weight of the penalties against cross-entropy, in `[0, 1]`.
        pixel_weights: factor >= 0 on each pixel's loss, broadcastable to `labels`; the
            divisor stays the number of valid pixels.
        axis_name: name of a pmap or shard_map axis; the mean is over the pixels of all
            its devices.

    Raises:
        ValueError: if `alpha` is out of range, or an array does not match `logits`.
    """
    name = "log_bilinear_loss"
    check_range(name, "alpha", alpha, 0, 1)
    check_arrays(name, logits, labels, valid, pixel_weights=pixel_weights)
    classes = logits.shape[-1]
    penalty = jnp.asarray(penalty, jnp.float32)
    if penalty.shape != (classes, classes):
        raise SeglossError(
            f"{name}: penalty must have shape {(classes, classes)}, a row per class "
            f"of the label, got {penalty.shape}."
        )
    penalty = jnp.where(jnp.eye(classes, dtype=bool), 0.0, penalty)
    parts = softmax(logits, labels, valid_or_all(labels.shape, valid))
    # Select rows by a product with a one-hot: a gather of rows is slow on a TPU.
    prices = jnp.matmul(
        one_hot(parts.labels, classes).astype(penalty.dtype),
        penalty,
        precision=jax.lax.Precision.HIGHEST,
    )
    misses = -log_misses(parts)
    loss = -(1 - alpha) * parts.log_prob_of_label()
    loss += alpha * (prices.astype(misses.dtype) * misses).sum(axis=-1)
    return mean_over_pixels(
        loss, valid, pixel_weights=pixel_weights, axis_name=axis_name
    )


def _loss_and_weight(
    loss_of: Callable[[Float[Array, "..."]], Float[Array, "..."]],
    logits: Float[Array, "b *spatial c"],
    labels: Labels,
    valid: Bool[Array, "..."] | None,
    class_weights: ClassWeights | None = None,
    label_smoothing: Scalar = 0.0,
) -> tuple[Float[Array, " b *spatial"], Float[Array, " b *spatial"] | None]:
    """Returns the class-weighted loss of each pixel, and its class weight.

    For class ids y these are `w_y loss_of(log p_y)` and w_y; the weight is None if
    `class_weights` is None. For soft labels t, and for ids with label smoothing, where
    t is the smoothed target, the loss is `sum_k w_k t_k loss_of(log p_k)`. The weight
    of soft labels is `sum_k w_k t_k`, without label smoothing.
    """
    soft = labels.ndim == logits.ndim
    # Soft labels have no class id; any valid one will do.
    ids = jnp.zeros(labels.shape[:-1], jnp.int32) if soft else labels
    valid = valid_or_all(ids.shape, valid)
    parts = softmax(logits, ids, valid)
    weights = None
    if class_weights is not None and not soft:
        weights = weight_of_label(parts.labels, class_weights, parts.scores.dtype)
    smoothed = isinstance(label_smoothing, Array) or label_smoothing != 0
    if not soft and not smoothed:
        loss = loss_of(parts.log_prob_of_label())
        return loss if weights is None else loss * weights, weights

    targets = labels if soft else one_hot(parts.labels, logits.shape[-1])
    targets = shares(targets, valid[..., None], parts.scores.dtype)
    factors = jnp.ones_like(targets)
    if class_weights is not None:
        factors *= jnp.broadcast_to(
            nonnegative(class_weights, targets.dtype), targets.shape
        )
    if soft:
        weights = (factors * targets).sum(axis=-1)
    targets = (1 - label_smoothing) * targets + label_smoothing / logits.shape[-1]
    # A share of 0 adds nothing, even if the logarithm is infinite; NaN stays NaN.
    counts = targets != 0
    loss = loss_of(jnp.where(counts, parts.log_probs(), 0.0))
    return jnp.where(counts, factors * targets * loss, 0.0).sum(axis=-1), weights

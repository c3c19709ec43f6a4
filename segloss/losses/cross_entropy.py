"""Losses that are a mean over pixels."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from segloss.losses.reduce import (
    ClassWeights,
    check_arrays,
    check_choice,
    log_prob_of_label,
    log_probs,
    mean_over_pixels,
    weigh,
)


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
    sums over the pixels and averages over the m samples.

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
    check_choice(name, "normalize_by", normalize_by, ("pixels", "weights", "samples"))
    if not 0 <= label_smoothing <= 1:
        raise ValueError(
            f"{name}: label_smoothing must be in [0, 1], got {label_smoothing}."
        )
    check_arrays(name, logits, labels, valid, class_weights)

    # Once, so that the gradients of its two uses add up before they are rounded.
    logits = logits.astype(jnp.float32)
    loss = weigh(-log_prob_of_label(logits, labels, valid), labels, class_weights)
    if label_smoothing:
        misses = -log_probs(logits, labels, valid)
        if class_weights is not None:
            weights = jnp.asarray(class_weights, jnp.float32)
            misses *= jnp.broadcast_to(weights, misses.shape)
        loss = (1 - label_smoothing) * loss + label_smoothing * misses.mean(axis=-1)
    return mean_over_pixels(
        loss,
        valid,
        normalize_by=normalize_by,
        pixel_weights=weigh(jnp.ones_like(loss), labels, class_weights),
        axis_name=axis_name,
    )

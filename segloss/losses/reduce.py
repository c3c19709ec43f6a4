"""Reductions shared by all losses: validity, pixel weights, sums and means."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Integer, Real

from segloss.losses.check import ROUNDING, ClassWeights, SoftLabels
from segloss.losses.numerics import safe_divide
from segloss.losses.softmax import at_label


def valid_or_all(
    shape: tuple[int, ...], valid: Bool[Array, "..."] | None
) -> Bool[Array, "..."]:
    """Broadcasts `valid` to `shape`; None gives all True."""
    return jnp.broadcast_to(True if valid is None else valid, shape)


def shares(
    labels: SoftLabels, valid: Bool[Array, "..."], dtype: jnp.dtype
) -> Float[Array, "b *spatial c"]:
    """Masks or soft labels as floats: 0 where not valid.

    A valid value outside `[0, 1]`, such as 255, becomes NaN, so that the loss does. It
    may lie outside by 0.01: resizing and mixing in half precision round 1 upwards.
    """
    targets = jnp.where(valid, labels.astype(dtype), 0.0)
    if labels.dtype == bool:
        return targets
    known = (targets >= -ROUNDING) & (targets <= 1 + ROUNDING)  # False for NaN
    return jnp.where(known, targets, jnp.nan)


def weight_or_one(
    valid: Bool[Array, "*shape"],
    pixel_weights: Real[Array, "..."] | None,
    dtype: jnp.dtype,
) -> Float[Array, "*shape"] | None:
    """Broadcasts `pixel_weights` to the shape of `valid`, with 0 where not valid.

    Returns None if `pixel_weights` is None. No gradient flows to the weights.
    """
    if pixel_weights is None:
        return None
    weights = lax.stop_gradient(jnp.asarray(pixel_weights, dtype))
    return jnp.where(valid, jnp.broadcast_to(weights, valid.shape), 0.0)


def nonnegative(class_weights: ClassWeights, dtype: jnp.dtype) -> Float[Array, " c"]:
    """Class weights as an array, with NaN for negative ones.

    Under `jax.jit` no error can be raised for them.
    """
    weights = jnp.asarray(class_weights, dtype)
    return jnp.where(weights >= 0, weights, jnp.nan)


def weight_of_label(
    labels: Integer[Array, "*pixels"], class_weights: ClassWeights, dtype: jnp.dtype
) -> Float[Array, "*pixels"]:
    """Weight of each pixel's labelled class; 1 where the label is out of range."""
    weights = nonnegative(class_weights, dtype)
    known = (labels >= 0) & (labels < weights.size)
    of_class = jnp.broadcast_to(weights, (*labels.shape, weights.size))
    return jnp.where(known, at_label(of_class, labels), 1.0)


def sum_over_devices(sums: Any, axis_name: str | None) -> Any:
    """Sums each array of a tree over the devices of `axis_name`.

    Returns the tree unchanged if `axis_name` is None.
    """
    return sums if axis_name is None else lax.psum(sums, axis_name)


def sum_over_axes(
    values: Float[Array, "*shape"], axes: Sequence[int] | None = None
) -> Float[Array, "..."]:
    """Sums over `axes` (default all) in two steps, the longest axis first.

    Adding millions of float32 values to a single accumulator would lose precision.
    """
    axes = tuple(range(values.ndim) if axes is None else axes)
    if not axes:
        return values
    longest = max(axes, key=lambda axis: (values.shape[axis], axis))
    # Without the barrier, XLA merges the two sums into one.
    rows = lax.optimization_barrier(values.sum(axis=longest))
    return rows.sum(axis=tuple(a - (a > longest) for a in axes if a != longest))


def count_samples(
    valid: Bool[Array, " b *rest"], axis_name: str | None
) -> Float[Array, ""]:
    """Number of samples with a valid pixel on all devices of `axis_name`."""
    samples = valid.any(axis=range(1, valid.ndim)).sum().astype(jnp.float32)
    return sum_over_devices(samples, axis_name)


def mean_over_pixels(
    loss: Float[Array, " b *spatial"],
    valid: Bool[Array, "..."] | None = None,
    *,
    normalize_by: str = "pixels",
    weights: Float[Array, " b *spatial"] | None = None,
    pixel_weights: Real[Array, "..."] | None = None,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Weighted mean of `loss` over the valid pixels; 0 if no pixel is valid.

    Args:
        loss: loss of each pixel (or of each image, `[b]`).
        valid: True where a pixel counts, broadcastable to `loss`; None is all.
        normalize_by: divisor of the sum. "pixels" is the number of valid pixels,
            "weights" the sum of the valid pixels' `weights` times `pixel_weights`,
            "samples" the number of samples with a valid pixel.
        weights: weight of each pixel, already multiplied into `loss`; None means all
            ones.
        pixel_weights: further weights, broadcastable to `loss` and not yet multiplied
            into it; None means all ones.
        axis_name: name of a pmap or shard_map axis; the mean is over the pixels of all
            its devices.
    """
    valid = valid_or_all(loss.shape, valid)
    if pixel_weights is not None:
        factor = weight_or_one(valid, pixel_weights, loss.dtype)
        weights = factor if weights is None else weights * factor
        # A weight of 0 removes a pixel even if its loss is infinite (0 * inf is NaN).
        loss = jnp.where(factor > 0, loss * factor, 0.0)
    loss = sum_over_axes(jnp.where(valid, loss, 0.0))
    loss = sum_over_devices(loss, axis_name)
    if normalize_by == "samples":
        return safe_divide(loss, count_samples(valid, axis_name))
    if normalize_by == "pixels" or weights is None:
        count = valid.sum().astype(jnp.float32)
    else:
        count = sum_over_axes(jnp.where(valid, weights, 0.0))
    return safe_divide(loss, sum_over_devices(count, axis_name))


def mean_over_classes(
    cost: Float[Array, "rows c"],
    takes_part: Bool[Array, "rows c"],
    valid: Bool[Array, " b *rest"],
    *,
    class_weights: ClassWeights | None,
    per_image: bool,
    normalize_by: str,
    axis_name: str | None,
) -> Float[Array, ""]:
    """Weighted mean of the class costs; 0 if no class takes part.

    Args:
        cost: cost of each class: one row per image if `per_image`, else a single row
            for the batch of all devices.
        takes_part: False leaves a cost out of sum and divisor.
        valid: True where a pixel counts; used to find the images with a valid pixel.
        class_weights: a factor per class; None means all ones.
        per_image: True averages the rows over the images with a valid pixel.
        normalize_by: divisor of each row's sum. "classes" is the sum of the weights
            that take part. "samples" is the number of samples with a valid pixel; with
            `per_image`, the mean over images already divides by it.
        axis_name: name of a pmap or shard_map axis; the images of all its devices are
            averaged.
    """
    weights = jnp.ones(cost.shape[-1:], cost.dtype)
    if class_weights is not None:
        weights = nonnegative(class_weights, cost.dtype)
    weights = jnp.where(takes_part, weights[None], 0.0)
    loss = (jnp.where(takes_part, cost, 0.0) * weights).sum(axis=-1)
    if normalize_by == "classes":
        loss = safe_divide(loss, weights.sum(axis=-1))
    if per_image:
        images = valid.any(axis=range(1, valid.ndim))
        return mean_over_pixels(loss, images, axis_name=axis_name)
    if normalize_by == "samples":
        return safe_divide(loss[0], count_samples(valid, axis_name))
    return loss[0]

"""What all losses share: which pixels count and how much, and the sums over pixels."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Integer, Real

from segloss.losses.check import ClassWeights
from segloss.losses.numerics import safe_divide
from segloss.losses.softmax import at_label


def valid_or_all(
    shape: tuple[int, ...], valid: Bool[Array, "..."] | None
) -> Bool[Array, "..."]:
    """`valid` in this shape."""
    return jnp.broadcast_to(True if valid is None else valid, shape)


def weight_or_one(
    valid: Bool[Array, "*shape"],
    pixel_weights: Real[Array, "..."] | None,
    dtype: jnp.dtype,
) -> Float[Array, "*shape"] | None:
    """`pixel_weights` in the shape of `valid`, 0 where not valid; None stays None.

    They count as constants: no gradient reaches them.
    """
    if pixel_weights is None:
        return None
    weights = lax.stop_gradient(jnp.asarray(pixel_weights, dtype))
    return jnp.where(valid, jnp.broadcast_to(weights, valid.shape), 0.0)


def weight_of_label(
    labels: Integer[Array, "*pixels"], class_weights: ClassWeights, dtype: jnp.dtype
) -> Float[Array, "*pixels"]:
    """The weight of each pixel's class; 1 where the label is no class."""
    weights = jnp.asarray(class_weights, dtype)
    known = (labels >= 0) & (labels < weights.size)
    of_class = jnp.broadcast_to(weights, (*labels.shape, weights.size))
    return jnp.where(known, at_label(of_class, labels), 1.0)


def sum_over_devices(sums: Any, axis_name: str | None) -> Any:
    """A tree of sums over this device's pixels, made sums over all devices'."""
    return sums if axis_name is None else lax.psum(sums, axis_name)


def sum_over_axes(
    values: Float[Array, "*shape"], axes: Sequence[int] | None = None
) -> Float[Array, "..."]:
    """Sums over these axes, or all, in two steps: the longest axis first.

    One by one, millions of values would lose their digits in float32.
    """
    axes = tuple(range(values.ndim) if axes is None else axes)
    if not axes:
        return values
    longest = max(axes, key=lambda axis: (values.shape[axis], axis))
    # Without the barrier XLA makes one sum of the two.
    rows = lax.optimization_barrier(values.sum(axis=longest))
    return rows.sum(axis=tuple(a - (a > longest) for a in axes if a != longest))


def count_samples(
    valid: Bool[Array, " b *rest"], axis_name: str | None
) -> Float[Array, ""]:
    """Number of samples that hold a valid pixel, over all devices: m of the paper."""
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
    """Sum of `loss` over the valid pixels of all devices, divided; 0 if none is valid.

    Args:
        loss: loss of each pixel (or of each image, `[b]`).
        valid: True where a pixel counts, broadcastable to `loss`; None is all.
        normalize_by: what the sum is divided by. "pixels": the number of valid
            pixels. "weights": the sum of the weights of the valid pixels. "samples":
            the number of samples that hold a valid pixel.
        weights: the weight of each pixel that `loss` already holds as a factor; None
            means ones.
        pixel_weights: further weights, broadcastable to `loss`, that `loss` does not
            hold yet; None means ones.
        axis_name: mapped device axis whose devices share one mean.
    """
    valid = valid_or_all(loss.shape, valid)
    if pixel_weights is not None:
        factor = weight_or_one(valid, pixel_weights, loss.dtype)
        weights = factor if weights is None else weights * factor
        # Also where the loss is infinite, a weight of 0 makes it 0.
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
    """Weighted mean of the classes' costs; 0 if none takes part.

    Args:
        cost: a row for each image if `per_image`, else one for the global batch.
        takes_part: False where a cost is left out.
        valid: True where a pixel counts.
        class_weights: a factor per class; None means ones.
        per_image: average the rows over the images that hold a valid pixel.
        normalize_by: what a row's sum is divided by. "classes": the sum of the
            weights that take part. "samples": nothing if `per_image`, whose mean does
            it, else the number of samples that hold a valid pixel.
        axis_name: mapped device axis whose devices share one mean.
    """
    weights = jnp.ones(cost.shape[-1:], cost.dtype)
    if class_weights is not None:
        weights = jnp.asarray(class_weights, cost.dtype)
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

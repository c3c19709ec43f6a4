"""What all losses share: void that does not count, and the one reduction."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer, Real

from segloss.losses.check import ClassWeights
from segloss.losses.numerics import safe_divide, total
from segloss.losses.softmax import as_index


def valid_or_all(
    labels: Real[Array, "*shape"] | Bool[Array, "*shape"],
    valid: Bool[Array, "..."] | None,
) -> Bool[Array, "*shape"]:
    """`valid` in the shape of `labels`."""
    return jnp.broadcast_to(True if valid is None else valid, labels.shape)


def weigh(
    loss: Float[Array, "*pixels"],
    labels: Integer[Array, "*pixels"],
    class_weights: ClassWeights | None,
) -> Float[Array, "*pixels"]:
    """Each pixel's loss times the weight of its label; None weighs all alike."""
    if class_weights is None:
        return loss
    weights = jnp.asarray(class_weights, loss.dtype)
    # A void label may lie outside; what it finds is not counted.
    return loss * weights[as_index(labels, weights.size)]


def sum_over_devices(sums: Any, axis_name: str | None) -> Any:
    """A tree of sums over this device's pixels, made sums over all devices'."""
    return sums if axis_name is None else jax.lax.psum(sums, axis_name)


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
    pixel_weights: Float[Array, " b *spatial"] | None = None,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Sum of `loss` over the valid pixels of all devices, divided; 0 if none is valid.

    Args:
        loss: loss of each pixel (or of each image, `[b]`), already weighted.
        valid: True where a pixel counts, broadcastable to `loss`; None is all.
        normalize_by: what the sum is divided by. "pixels": the number of valid
            pixels. "weights": the sum of their `pixel_weights`. "samples": the
            number of samples that hold a valid pixel.
        pixel_weights: the weights that `loss` holds as factors; None means ones.
        axis_name: mapped device axis whose devices share one mean.
    """
    valid = valid_or_all(loss, valid)
    weight = None
    if pixel_weights is not None:
        weight = total(jnp.where(valid, pixel_weights, 0.0))
    return divide(
        total(jnp.where(valid, loss, 0.0)),
        valid,
        normalize_by=normalize_by,
        weight=weight,
        axis_name=axis_name,
    )


def divide(
    loss: Float[Array, ""],
    valid: Bool[Array, " b *rest"],
    *,
    normalize_by: str,
    weight: Float[Array, ""] | None,
    axis_name: str | None,
) -> Float[Array, ""]:
    """This device's sums, made one mean of all devices': see `mean_over_pixels`."""
    loss = sum_over_devices(loss, axis_name)
    if normalize_by == "samples":
        return safe_divide(loss, count_samples(valid, axis_name))
    if normalize_by == "pixels" or weight is None:
        weight = valid.sum().astype(jnp.float32)
    return safe_divide(loss, sum_over_devices(weight, axis_name))


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

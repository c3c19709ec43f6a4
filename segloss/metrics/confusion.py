"""Confusion counts, on the device."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Integer


@functools.partial(jax.jit, static_argnames="num_classes")
def confusion_matrix(
    predicted: Integer[Array, "*pixels"],
    labels: Integer[Array, "*pixels"],
    valid: Bool[Array, "..."] | None = None,
    *,
    num_classes: int,
) -> Integer[Array, "{num_classes} {num_classes}"]:
    """Pixel counts of one batch: rows are labels, columns are predictions.

    The counts are int32, for at most 2**31 pixels: add batches up on the host in int64.
    `jax.vmap` gives the counts of each image.

    Args:
        predicted: class ids.
        labels: class ids. A pixel whose label or prediction lies outside
            `[0, num_classes)` is not counted.
        valid: True where a pixel counts, broadcastable to `labels`; None is all.
        num_classes: number of classes, at least 1.

    Raises:
        ValueError: if `num_classes` is less than 1, or the shapes do not agree.
    """
    if num_classes < 1:
        raise ValueError(
            f"confusion_matrix: num_classes must be >= 1, got {num_classes}."
        )
    if predicted.shape != labels.shape:
        raise ValueError(
            f"confusion_matrix: predicted must have the shape of labels "
            f"{labels.shape}, got {predicted.shape}."
        )
    # Not in the caller's type: uint8 overflows from 16 classes on.
    predicted, labels = predicted.astype(jnp.int32), labels.astype(jnp.int32)
    counted = jnp.broadcast_to(True if valid is None else valid, labels.shape)
    for ids in (predicted, labels):
        counted &= (ids >= 0) & (ids < num_classes)
    nowhere = num_classes**2
    cell = jnp.where(counted, labels * num_classes + predicted, nowhere)
    counts = jnp.bincount(cell.ravel(), length=nowhere + 1)[:nowhere]
    return counts.reshape(num_classes, num_classes).astype(jnp.int32)

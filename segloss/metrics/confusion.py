"""Confusion matrix, counted on the device."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Integer

from segloss.jitting import jit
from segloss.metrics.pixels import are_classes, check_pixels
from segloss.metrics.sharding import replicated


@jit("num_classes")
def confusion_matrix(
    predicted: Integer[Array, "*pixels"],
    labels: Integer[Array, "*pixels"],
    valid: Bool[Array, "..."] | None = None,
    *,
    num_classes: int,
) -> Integer[Array, "{num_classes} {num_classes}"]:
    """Counts the pixels of each pair of label (row) and prediction (column).

    The counts are int32, for fewer than 2**31 pixels; add up batches on the host in
    int64. For counts per image, use `jax.vmap` over the batch axis.

    >>> import jax.numpy as jnp
    >>> predicted = jnp.array([[0, 2, 2, 1]])
    >>> labels = jnp.array([[0, 1, 2, 255]])  # 255 is not a class
    >>> confusion_matrix(predicted, labels, num_classes=3).tolist()
    [[1, 0, 0], [0, 0, 1], [0, 0, 1]]

    Args:
        predicted: class ids.
        labels: class ids. A pixel with a label or prediction outside
            `[0, num_classes)` is not counted.
        valid: True where a pixel counts, broadcastable to `labels`; None means all.
        num_classes: number of classes, at least 1.

    Raises:
        ValueError: if `num_classes` is less than 1, or an array's shape or type is
            wrong.
    """
    predicted, labels, valid = check_pixels(
        "confusion_matrix", valid, num_classes, predicted=predicted, labels=labels
    )
    # Memory traffic for 8x512x512 pixels of 21 classes, relative to the bytes of the
    # ids: on a TPU v5e 1.0 for the product (its one-hot matrices are fused) and 13 for
    # the scatter; on an H100 33 for the product and 1.0 for the scatter.
    count = functools.partial(
        jax.lax.platform_dependent,
        tpu=functools.partial(_count_by_product, num_classes=num_classes),
        default=functools.partial(_count_by_scatter, num_classes=num_classes),
    )
    return replicated(count, predicted, labels, valid)


def _count_by_product(
    predicted: Integer[Array, "*pixels"],
    labels: Integer[Array, "*pixels"],
    valid: Bool[Array, "*pixels"],
    *,
    num_classes: int,
) -> Integer[Array, "{num_classes} {num_classes}"]:
    # `one_hot` gives zeros for an id that is not a class.
    one_hot = functools.partial(jax.nn.one_hot, num_classes=num_classes, dtype=jnp.int8)
    pixels = tuple(range(labels.ndim))
    return jax.lax.dot_general(
        one_hot(labels) * valid[..., None],
        one_hot(predicted),
        dimension_numbers=((pixels, pixels), ((), ())),
        preferred_element_type=jnp.int32,
    )


def _count_by_scatter(
    predicted: Integer[Array, "*pixels"],
    labels: Integer[Array, "*pixels"],
    valid: Bool[Array, "*pixels"],
    *,
    num_classes: int,
) -> Integer[Array, "{num_classes} {num_classes}"]:
    counted = valid & are_classes(labels, num_classes)
    counted &= are_classes(predicted, num_classes)
    counts = jnp.zeros((num_classes, num_classes), jnp.int32)
    return counts.at[labels, predicted].add(counted.astype(jnp.int32))

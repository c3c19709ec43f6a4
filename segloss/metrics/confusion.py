"""Confusion matrix, counted on the device."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Integer

from segloss.jitting import jit
from segloss.metrics.pixels import are_classes, check_pixels, spoil
from segloss.metrics.sharding import replicated


@jit("num_classes")
def confusion_matrix(
    predicted: Integer[Array, "*pixels"],
    labels: Integer[Array, "*pixels"],
    valid: Bool[Array, "..."] | None = None,
    *,
    num_classes: int,
) -> Integer[Array, "{num_classes} {num_classes+1}"]:
    """Counts the pixels of each pair of label (row) and prediction (column).

    The last column counts predictions that are no class, such as 255 if masks of 0 and
    255 are passed. The scores count them as wrong.

    A valid label that is no class is a mistake that no count can show, so all counts of
    the call become negative: -2**21 each. They stay negative when batches are added up,
    and every score raises an error that says why.

    The counts are int32, for fewer than 2**31 pixels; add up batches on the host in
    int64. For counts per image, use `jax.vmap` over the batch axis.

    >>> import jax.numpy as jnp
    >>> predicted = jnp.array([[0, 2, 255, 1]])  # 255 is not a class
    >>> labels = jnp.array([[0, 1, 2, 255]])
    >>> confusion_matrix(predicted, labels, labels != 255, num_classes=3).tolist()
    [[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]

    Args:
        predicted: class ids.
        labels: class ids in `[0, num_classes)`; ignored where not valid.
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
    counts = replicated(count, predicted, labels, valid)
    # The last row counts the valid labels that are no class.
    return spoil(counts[:-1], counts[-1].any())


def _count_by_product(
    predicted: Integer[Array, "*pixels"],
    labels: Integer[Array, "*pixels"],
    valid: Bool[Array, "*pixels"],
    *,
    num_classes: int,
) -> Integer[Array, "{num_classes+1} {num_classes+1}"]:
    predicted, labels = (_rest_is_last(ids, num_classes) for ids in (predicted, labels))
    one_hot = functools.partial(
        jax.nn.one_hot, num_classes=num_classes + 1, dtype=jnp.int8
    )
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
) -> Integer[Array, "{num_classes+1} {num_classes+1}"]:
    predicted, labels = (_rest_is_last(ids, num_classes) for ids in (predicted, labels))
    counts = jnp.zeros((num_classes + 1, num_classes + 1), jnp.int32)
    return counts.at[labels, predicted].add(valid.astype(jnp.int32))


def _rest_is_last(
    ids: Integer[Array, "*pixels"], num_classes: int
) -> Integer[Array, "*pixels"]:
    """Replaces ids that are no class by `num_classes`."""
    return jnp.where(are_classes(ids, num_classes), ids, num_classes)

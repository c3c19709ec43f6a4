"""Boundary IoU: counts near boundaries on the device, the score on the host."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer

from segloss.errors import SeglossError
from segloss.jitting import jit
from segloss.metrics.confusion import confusion_matrix
from segloss.metrics.pixels import are_classes, check_pixels
from segloss.metrics.scores import iou_per_class
from segloss.metrics.sharding import replicated

DIAGONAL_SHARE = 0.02


@jit("num_classes", "boundary_px")
def boundary_confusion(
    predicted: Integer[Array, " b *spatial"],
    labels: Integer[Array, " b *spatial"],
    valid: Bool[Array, "..."] | None = None,
    *,
    num_classes: int,
    boundary_px: int | None = None,
) -> Integer[Array, "{num_classes+1} {num_classes+1}"]:
    """Confusion matrix of the pixels in boundary bands, for `boundary_iou`.

    The boundary band of a class contains its pixels within `boundary_px` of another
    class or of the outside of the image: `G_d & G` of Cheng et al. 2021
    (arXiv:2103.16562). A step to any of the 8 neighbours (in an image) has distance 1.
    Rows are the labels' bands, columns the predictions'; the last row and the last
    column count pixels outside the bands. The counts are int32; add up batches on the
    host in int64. Predictions that are no class form a region of their own, which is
    always wrong. A valid label that is no class makes all counts negative, as in
    `confusion_matrix`, and `boundary_iou` raises an error that says why.

    >>> import jax.numpy as jnp
    >>> labels = jnp.array([[0, 0, 0, 1, 1, 1]])  # bands 0 . 0 1 . 1
    >>> predicted = jnp.array([[0, 0, 1, 1, 1, 1]])  # bands 0 0 1 . . 1
    >>> boundary_confusion(predicted, labels, num_classes=2, boundary_px=1).tolist()
    [[1, 1, 0], [0, 1, 1], [1, 0, 1]]

    Args:
        predicted: class ids of a batch of images.
        labels: class ids in `[0, num_classes)`; ignored where not valid.
        valid: True where a pixel counts, broadcastable to `labels`; None means all.
            Pixels that are not valid are not counted and do not form a boundary with
            their neighbours, so an image padded with them has no band along the padded
            border.
        num_classes: number of classes, at least 1.
        boundary_px: width of the bands in pixels, at least 1. None means 2 % of the
            diagonal of one image of the batch, padding included, rounded, as in the
            paper.

    Raises:
        ValueError: if `num_classes` or `boundary_px` is less than 1, or an array's
            shape or type is wrong.
    """
    name = "boundary_confusion"
    predicted, labels, valid = check_pixels(
        name, valid, num_classes, predicted=predicted, labels=labels
    )
    if labels.ndim < 2:
        raise SeglossError(
            f"{name}: labels must be a batch of images, got shape {labels.shape}."
        )
    if boundary_px is None:
        boundary_px = max(1, round(DIAGONAL_SHARE * math.hypot(*labels.shape[1:])))
    elif boundary_px < 1:
        raise SeglossError(f"{name}: boundary_px must be >= 1, got {boundary_px}.")

    count = functools.partial(
        _count_bands, num_classes=num_classes, boundary_px=boundary_px
    )
    return replicated(count, predicted, labels, valid)


def boundary_iou(
    confusion: Integer[np.ndarray, "classes_and_none classes_and_none"],
) -> Float[np.ndarray, " c"]:
    """IoU of the boundary bands of each class; NaN for a class without a band.

    `|(G_d & G) & (P_d & P)| / |(G_d & G) | (P_d & P)|`, where G is the labelled and P
    the predicted region, and G_d and P_d are the pixels within distance d of their
    contours: Cheng et al. 2021 (arXiv:2103.16562), sec. 4. Average over classes with
    `np.nanmean`.

    >>> import numpy as np
    >>> confusion = np.array([[2, 1, 0], [0, 1, 1], [1, 0, 1]])  # last: outside bands
    >>> boundary_iou(confusion).round(4).tolist()  # 2/4 and 1/3
    [0.5, 0.3333]

    Args:
        confusion: result of `boundary_confusion`, with an extra last row and column;
            add up batches in int64.
    """
    return iou_per_class(confusion)[:-1]


def _count_bands(
    predicted: Integer[Array, " b *spatial"],
    labels: Integer[Array, " b *spatial"],
    valid: Bool[Array, " b *spatial"],
    *,
    num_classes: int,
    boundary_px: int,
) -> Integer[Array, "{num_classes+1} {num_classes+1}"]:
    banded = []
    for ids in (predicted, labels):
        ids = jnp.where(are_classes(ids, num_classes), ids, num_classes)
        band = _is_near_another(ids, valid, boundary_px, num_classes + 1)
        banded.append(jnp.where(band, ids, num_classes))
    predicted, labels_in_band = banded
    # A label that is no class here is none for `confusion_matrix` either.
    labels = jnp.where(are_classes(labels, num_classes), labels_in_band, -1)
    counts = confusion_matrix(predicted, labels, valid, num_classes=num_classes + 1)
    return counts[:, :-1]


def _is_near_another(
    ids: Integer[Array, " b *spatial"],
    counted: Bool[Array, " b *spatial"],
    radius_px: int,
    outside: int,
) -> Bool[Array, " b *spatial"]:
    """True where the box around a pixel contains at least two ids.

    The box has the side `2 radius_px + 1`. The outside of the image has the id
    `outside`, the largest; pixels that are not `counted` have none. Each pixel has one
    class, so one pass finds the bands of all classes.
    """
    # The smallest id is the negative of the largest -id. Pixels that do not count hold
    # the lowest value and never win. The smallest integer type moves the fewest bytes.
    nothing = -outside - 1
    dtype = np.min_scalar_type(nothing)
    largest, largest_negative = (
        _window_max(
            jnp.where(counted, signed, nothing).astype(dtype), radius_px, outside
        )
        for signed in (ids, -ids)
    )
    return largest != -largest_negative


def _window_max(
    values: Integer[Array, " b *spatial"], radius_px: int, outside: int
) -> Integer[Array, " b *spatial"]:
    """Largest value in the box of side `2 radius_px + 1` centred on each pixel.

    Positions outside the array have the value `outside`.
    """
    smallest = np.array(np.iinfo(values.dtype).min, values.dtype)
    for axis in range(1, values.ndim):
        padding = [(0, 0)] * values.ndim
        padding[axis] = (radius_px, radius_px)
        values = jnp.pad(values, padding, constant_values=outside)
        window = [1] * values.ndim
        window[axis] = 2 * radius_px + 1
        values = jax.lax.reduce_window(
            values, smallest, jax.lax.max, window, [1] * values.ndim, "VALID"
        )
    return values

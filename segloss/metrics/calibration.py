"""Calibration: counts per confidence bin on the device, the score on the host."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer

from segloss.errors import SeglossError
from segloss.jitting import jit
from segloss.metrics.pixels import are_classes, check_counts, check_pixels, spoil
from segloss.metrics.sharding import replicated

MAX_ROW_PIXELS = 4096


class CalibrationCounts(NamedTuple):
    """Sums over the pixels of each confidence bin; add up batches field by field.

    Attributes:
        pixels: number of pixels.
        hits: number of correctly classified pixels.
        confidence: sum of the confidences, i.e. of each pixel's largest probability.
    """

    pixels: Integer[Array | np.ndarray, " bins"]
    hits: Integer[Array | np.ndarray, " bins"]
    confidence: Float[Array | np.ndarray, " bins"]


@jit("bins")
def calibration_counts(
    logits: Float[Array, "*pixels c"],
    labels: Integer[Array, "*pixels"],
    valid: Bool[Array, "..."] | None = None,
    *,
    bins: int = 15,
) -> CalibrationCounts:
    """Counts pixels and correct predictions, and sums confidence, per confidence bin.

    Add up each field over all batches, in int64 and float64, for
    `expected_calibration_error`. The confidence of a pixel is its largest probability.
    Bin m = 1 ... M of M = `bins` covers `((m - 1) / M, m / M]`, as in Guo et al. 2017
    (arXiv:1706.04599), sec. 2. Pixels and hits are int32, for fewer than 2**31 pixels;
    the sums of confidence are float32 with a relative error of at most 1e-5. For counts
    per image, use `jax.vmap` over the batch axis.

    A valid label that is no class makes all sums negative, as in `confusion_matrix`.
    `expected_calibration_error` then raises an error that says why.

    >>> import jax.numpy as jnp
    >>> logits = jnp.log(jnp.array([[0.25, 0.75], [0.25, 0.75]]))  # [2 pixels, 2]
    >>> counts = calibration_counts(logits, jnp.array([1, 0]), bins=2)
    >>> counts.pixels.tolist(), counts.hits.tolist()
    ([0, 2], [0, 1])
    >>> print(f"{counts.confidence[1]:.4f}")  # 2 * 3/4
    1.5000

    Args:
        logits: unnormalised class scores of a softmax.
        labels: class ids in `[0, c)`; ignored where not valid.
        valid: True where a pixel counts, broadcastable to `labels`; None means all.
        bins: number of bins of equal width, at least 1.

    Raises:
        ValueError: if `bins` is less than 1, or an array's shape or type is wrong.
    """
    name = "calibration_counts"
    if bins < 1:
        raise SeglossError(f"{name}: bins must be >= 1, got {bins}.")
    if logits.shape[:-1] != labels.shape:
        raise SeglossError(
            f"{name}: labels must have shape {logits.shape[:-1]} for logits "
            f"{logits.shape}, channels last, got {labels.shape}."
        )
    labels, valid = check_pixels(name, valid, logits.shape[-1], labels=labels)
    return replicated(functools.partial(_count, bins=bins), logits, labels, valid)


def _count(
    logits: Float[Array, "*pixels c"],
    labels: Integer[Array, "*pixels"],
    valid: Bool[Array, "*pixels"],
    *,
    bins: int,
) -> CalibrationCounts:
    confidence, predicted = _confidence_and_class(logits)
    pixels = tuple(range(labels.ndim))
    inner_edges = jnp.expand_dims(np.float32(np.arange(1, bins) / bins), pixels)
    bin_ids = (confidence[..., None] > inner_edges).sum(axis=-1)
    # Labels that are no class have a bin of their own, the last.
    bin_ids = jnp.where(are_classes(labels, logits.shape[-1]), bin_ids, bins)
    in_bin = jax.nn.one_hot(bin_ids, bins + 1, dtype=bool) & valid[..., None]
    hit = in_bin & (predicted == labels)[..., None]
    sums = CalibrationCounts(
        in_bin.sum(axis=pixels, dtype=jnp.int32),
        hit.sum(axis=pixels, dtype=jnp.int32),
        _sum_over_pixels(jnp.where(in_bin, confidence[..., None], 0)),
    )
    wrong = sums.pixels[-1] > 0
    return CalibrationCounts(*(spoil(x[:-1], wrong) for x in sums))


def _confidence_and_class(
    logits: Float[Array, "*pixels c"],
) -> tuple[Float[Array, "*pixels"], Integer[Array, "*pixels"]]:
    """Returns each pixel's largest probability, and its class (the first if tied)."""
    logits = logits.astype(jnp.float32)

    def merge(left, right):
        """Merges `(top logit, sum of exp(logit - top), top's class)` of two groups."""
        (top_1, sum_1, class_1), (top_2, sum_2, class_2) = left, right
        # The difference of two infinities would be NaN.
        scale = jnp.where(top_1 == top_2, 1, jnp.exp(-jnp.abs(top_1 - top_2)))
        first = (top_1 > top_2) | ((top_1 == top_2) & (class_1 < class_2))
        return (
            jnp.maximum(top_1, top_2),
            jnp.where(top_1 > top_2, sum_1 + scale * sum_2, scale * sum_1 + sum_2),
            jnp.where(first, class_1, class_2),
        )

    axis = logits.ndim - 1
    class_ids = jax.lax.broadcasted_iota(jnp.int32, logits.shape, axis)
    nothing = (np.float32(-np.inf), np.float32(0), np.int32(logits.shape[-1]))
    top, total, predicted = jax.lax.reduce(
        (logits, jnp.ones_like(logits), class_ids), nothing, merge, (axis,)
    )
    # The softmax of an infinite logit is NaN.
    return jnp.where(jnp.isfinite(top), 1 / total, jnp.nan), predicted


def _sum_over_pixels(values: Float[Array, "*pixels bins"]) -> Float[Array, " bins"]:
    """Sums over all axes but the last, first along rows of at most 4096 pixels.

    Once a float32 sum exceeds 2**21, each further term is off by up to 0.1.
    """
    if values.ndim == 1:
        return values
    *outer, width, bins = values.shape
    if width > MAX_ROW_PIXELS:
        padding = [(0, 0)] * len(outer) + [(0, -width % MAX_ROW_PIXELS), (0, 0)]
        values = jnp.pad(values, padding).reshape(*outer, -1, MAX_ROW_PIXELS, bins)
    # Without the barrier, XLA merges the two sums into one.
    rows = jax.lax.optimization_barrier(values.sum(axis=-2))
    return rows.sum(axis=tuple(range(rows.ndim - 1)))


def expected_calibration_error(counts: CalibrationCounts) -> float:
    """Mean gap between confidence and accuracy, in `[0, 1]`; NaN without pixels.

    `sum_m |B_m| / n |acc(B_m) - conf(B_m)|`, where n is the number of pixels in all
    bins B_m, acc(B_m) the share of correct pixels in the bin and conf(B_m) its mean
    confidence: Guo et al. 2017 (arXiv:1706.04599), eq. 3. Computed as
    `sum_m |hits_m - confidence_m| / n`.

    >>> import numpy as np
    >>> from segloss.metrics import CalibrationCounts
    >>> counts = CalibrationCounts(
    ...     np.array([0, 2]), np.array([0, 1]), np.array([0.0, 1.5])
    ... )
    >>> expected_calibration_error(counts)  # |1 - 1.5| / 2
    0.25

    Args:
        counts: results of `calibration_counts`, added up over batches in int64 and
            float64.

    Raises:
        ValueError: if a count is negative, because of labels that are no class.
    """
    pixels, hits, confidence = (np.asarray(x, np.float64) for x in counts)
    check_counts("expected_calibration_error", pixels)
    if pixels.sum() == 0:
        return float("nan")
    return float(np.abs(hits - confidence).sum() / pixels.sum())

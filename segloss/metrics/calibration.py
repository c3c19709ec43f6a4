"""Calibration: counts by confidence on the device, the score on the host."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer

from segloss.metrics.pixels import counted_pixels

BLOCK_PIXELS = 256


class CalibrationCounts(NamedTuple):
    """Sums over the pixels of each bin; to be added up on the host, field by field.

    Attributes:
        pixels: how many they are.
        hits: how many of them are classified right.
        confidence: sum of the probabilities of the predicted classes.
    """

    pixels: Integer[Array | np.ndarray, " bins"]
    hits: Integer[Array | np.ndarray, " bins"]
    confidence: Float[Array | np.ndarray, " bins"]


@functools.partial(jax.jit, static_argnames="bins")
def calibration_counts(
    logits: Float[Array, "*pixels c"],
    labels: Integer[Array, "*pixels"],
    valid: Bool[Array, "..."] | None = None,
    *,
    bins: int = 15,
) -> CalibrationCounts:
    """Pixels, hits and confidence by confidence, for `expected_calibration_error`.

    The confidence of a pixel is its largest probability. Bin m of M holds those in
    `((m - 1) / M, m / M]`, as in Guo et al. 2017 (arXiv:1706.04599), sec. 2. Pixels and
    hits are int32, for fewer than 2**31 pixels; the sums of confidence are float32,
    right to 1 in 100 000. `jax.vmap` gives the counts of each image.

    Args:
        logits: unnormalised class scores, for a softmax.
        labels: class ids. A pixel whose label lies outside `[0, c)` is not counted.
        valid: True where a pixel counts, broadcastable to `labels`; None is all.
        bins: number of bins, at least 1, of equal width.

    Raises:
        ValueError: if `bins` is less than 1, or an array's shape or type does not fit.
    """
    name = "calibration_counts"
    if bins < 1:
        raise ValueError(f"{name}: bins must be >= 1, got {bins}.")
    if logits.shape[:-1] != labels.shape:
        raise ValueError(
            f"{name}: labels must have shape {logits.shape[:-1]} for logits "
            f"{logits.shape}, got {labels.shape}."
        )
    labels, counted = counted_pixels(name, valid, logits.shape[-1], labels=labels)

    logits = logits.astype(jnp.float32)
    top = logits.max(axis=-1, keepdims=True)
    confidence = 1 / jnp.exp(logits - top).sum(axis=-1)
    hit = jnp.argmax(logits, axis=-1) == labels
    inner_edges = jnp.asarray(np.arange(1, bins) / bins, jnp.float32)
    bin_ids = jnp.searchsorted(inner_edges, confidence, method="compare_all")
    bin_ids = jnp.where(counted, bin_ids, bins).ravel()

    counts = jnp.bincount(2 * bin_ids + hit.ravel(), length=2 * bins + 2)
    counts = counts.reshape(bins + 1, 2)[:bins].astype(jnp.int32)
    # In blocks, because float32 loses 0.1 of each pixel after 2**21 of them.
    block = jnp.arange(bin_ids.size) // BLOCK_PIXELS
    sums = jnp.zeros((bin_ids.size // BLOCK_PIXELS + 1, bins + 1))
    sums = sums.at[block, bin_ids].add(confidence.ravel()).sum(axis=0)
    return CalibrationCounts(counts.sum(axis=1), counts[:, 1], sums[:bins])


def expected_calibration_error(counts: CalibrationCounts) -> float:
    """Mean distance of confidence and accuracy, in [0, 1]; NaN without a pixel.

    `sum_m |B_m| / n |acc(B_m) - conf(B_m)|` over bins B_m of n pixels: Guo et al. 2017
    (arXiv:1706.04599), eq. 3. `|B_m|` cancels against the divisors of the two means.

    Args:
        counts: `calibration_counts`, added up over the batches in int64 and float64.
    """
    pixels, hits, confidence = (np.asarray(x, np.float64) for x in counts)
    if pixels.sum() == 0:
        return float("nan")
    return float(np.abs(hits - confidence).sum() / pixels.sum())

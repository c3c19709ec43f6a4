"""How far each predicted region and the labelled one overlap: what overlap losses read.

Forward, the logits become four sums per class. Backward, the slopes of those sums are
two coefficients per class and all that is kept of the logits' size are the logits.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Integer

from segloss.losses.check import Labels, SoftLabels
from segloss.losses.softmax import (
    as_index,
    at_label,
    log_normalizer,
    one_hot,
    without_void,
)

# XLA for CPU writes an array of the logits' size before it sums over pixels. Of so
# many pixels it stays in the cache, and their sum in float32 keeps its digits.
_BLOCK_PIXELS = 4096
_FEWEST_PIXELS = 256


class RegionSums(NamedTuple):
    """Sums over valid pixels; a row is an image, or the only row is the whole batch.

    p is the probability of the class, t its label, n the power.

    Attributes:
        over: `sum(max(p - t, 0)^n)`, the false positives.
        under: `sum(max(t - p, 0)^n)`, the false negatives.
        hits: `sum(p^n) - over`; the true positives `sum(min(p, t))` where n is 1.
        labelled: `sum(t^n)`.
    """

    over: Float[Array, "*rows c"]
    under: Float[Array, "*rows c"]
    hits: Float[Array, "*rows c"]
    labelled: Float[Array, "*rows c"]


def region_sums(
    logits: Float[Array, "b *spatial c"],
    labels: Labels,
    valid: Bool[Array, " b *rest"],
    *,
    power: int = 1,
    per_image: bool = False,
    multi_label: bool = False,
) -> RegionSums:
    """The sums of this device's pixels, for a softmax or, if `multi_label`, sigmoids.

    Args:
        logits: unnormalised class scores.
        labels: class ids, or with `multi_label` values in `[0, 1]` for each class. A
            valid id that is no class makes the sums NaN.
        valid: True where a label counts, in the shape of `labels`.
        power: n of `RegionSums`, 1 or 2.
        per_image: a row of sums for each image instead of one row.
        multi_label: whether the classes have a sigmoid each.
    """
    rows = logits.shape[0] if per_image else 1

    def as_rows(x: Array, *last: int) -> Array:
        return x.reshape(rows, -1, *last)

    last = logits.shape[-1:]
    arrays = as_rows(logits, *last), as_rows(labels), as_rows(valid)
    sums = _softmax_sums
    if multi_label:
        sums = _sigmoid_sums
        arrays = tuple(as_rows(x, *last) for x in (logits, labels, valid))
    return jax.vmap(lambda *row: sums(*row, power))(*arrays)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _softmax_sums(
    logits: Float[Array, "n c"],
    labels: Integer[Array, " n"],
    valid: Bool[Array, " n"],
    power: int,
) -> RegionSums:
    return _softmax_sums_fwd(logits, labels, valid, power)[0]


def _softmax_sums_fwd(logits, labels, valid, power):
    clean = without_void(logits, valid)
    top, log_total = log_normalizer(clean, labels, valid)

    def sums(sum_at_label, logits, labels, valid, top, log_total):
        clean = without_void(logits, valid)
        log_probs = (clean - top[:, None]) - log_total[:, None]
        off_label = valid[:, None] & ~one_hot(labels, logits.shape[-1])
        # A pixel of NaN is one of all classes, whatever its label.
        off_label |= jnp.isnan(log_total)[:, None]
        prob = jnp.exp((at_label(clean, labels) - top) - log_total)
        maps = (1 - prob) ** power, prob**power, jnp.ones_like(prob)
        under, hits, labelled = (
            sum_at_label(jnp.where(valid, x, 0.0), labels, logits.shape[-1])
            for x in maps
        )
        over = jnp.where(off_label, jnp.exp(log_probs) ** power, 0.0).sum(axis=0)
        return RegionSums(over, under, hits, labelled)

    arrays = logits, labels, valid, top, log_total
    result = lax.platform_dependent(
        *arrays,
        cpu=functools.partial(_in_blocks, functools.partial(sums, _scatter)),
        default=functools.partial(sums, _compare),
    )
    return result, arrays


def _softmax_sums_bwd(power, kept, slopes):
    logits, labels, valid, top, log_total = kept
    clean = without_void(logits, valid)
    index = as_index(labels, logits.shape[-1])
    on_label = one_hot(labels, logits.shape[-1])

    # The slope of the sums with respect to a probability, off its label and on it.
    off = slopes.over
    prob = jnp.exp((at_label(clean, labels) - top) - log_total)
    on = slopes.hits[index] - slopes.under[index]
    if power == 2:
        off = 2 * off
        on = 2 * (slopes.hits[index] * prob - slopes.under[index] * (1 - prob))

    probs = jnp.exp((clean - top[:, None]) - log_total[:, None])
    # A product with a vector, because XLA for CPU fuses it where it would write down
    # the operand of a sum. Its terms are kept apart, so that they cancel exactly.
    mean = jnp.matmul(
        jnp.where(on_label, 0.0, probs**power), off, precision=lax.Precision.HIGHEST
    )
    mean += prob * on
    slope = jnp.where(on_label, on[:, None], off[None] * probs ** (power - 1))
    slope = jnp.where(valid[:, None], probs * (slope - mean[:, None]), 0.0)
    return slope.astype(logits.dtype), None, None


_softmax_sums.defvjp(_softmax_sums_fwd, _softmax_sums_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _sigmoid_sums(
    logits: Float[Array, "n c"],
    labels: Float[Array, "n c"] | Bool[Array, "n c"],
    valid: Bool[Array, "n c"],
    power: int,
) -> RegionSums:
    return _sigmoid_sums_fwd(logits, labels, valid, power)[0]


def _sigmoid_sums_fwd(logits, labels, valid, power):
    def sums(*arrays):
        return jax.tree.map(lambda x: x.sum(axis=0), _sigmoid_maps(*arrays, power))

    arrays = logits, labels, valid
    result = lax.platform_dependent(
        *arrays, cpu=functools.partial(_in_blocks, sums), default=sums
    )
    return result, arrays


def _sigmoid_sums_bwd(power, kept, slopes):
    logits, labels, valid = kept
    as_float = labels.astype(jnp.float32)
    _, pull = jax.vjp(lambda *x: _sigmoid_maps(*x, valid, power), logits, as_float)
    slopes = jax.tree.map(lambda x: jnp.broadcast_to(x, logits.shape), slopes)
    logits_slope, labels_slope = pull(slopes)
    soft = jnp.issubdtype(labels.dtype, jnp.floating)
    return logits_slope, labels_slope.astype(labels.dtype) if soft else None, None


_sigmoid_sums.defvjp(_sigmoid_sums_fwd, _sigmoid_sums_bwd)


def _sigmoid_maps(
    logits: Float[Array, "n c"],
    labels: SoftLabels,
    valid: Bool[Array, "n c"],
    power: int,
) -> RegionSums:
    """What `RegionSums` adds up, for each pixel."""
    probs = jax.nn.sigmoid(jnp.where(valid, logits.astype(jnp.float32), 0.0))
    probs = jnp.where(valid, probs, 0.0)
    targets = jnp.where(valid, labels.astype(jnp.float32), 0.0)
    over = jnp.maximum(probs - targets, 0.0) ** power
    under = jnp.maximum(targets - probs, 0.0) ** power
    return RegionSums(over, under, probs**power - over, targets**power)


def _in_blocks(sums: Callable[..., RegionSums], *arrays: Array) -> RegionSums:
    """`sums` of a block of pixels after the other, added up."""
    pixels = arrays[0].shape[0]
    sizes = range(min(pixels, _BLOCK_PIXELS), 0, -1)
    block = next((size for size in sizes if pixels % size == 0), 1)
    if block < min(pixels, _FEWEST_PIXELS):
        block = pixels
    blocks = [x.reshape(-1, block, *x.shape[1:]) for x in arrays]
    return jax.tree.map(
        lambda x: x.sum(axis=0), lax.map(lambda block: sums(*block), tuple(blocks))
    )


def _scatter(
    values: Float[Array, " n"], labels: Integer[Array, " n"], num_classes: int
) -> Float[Array, " {num_classes}"]:
    """Sum of the values of each label, on CPU."""
    index = as_index(labels, num_classes)
    return jnp.zeros(num_classes).at[index].add(values, mode="promise_in_bounds")


def _compare(
    values: Float[Array, " n"], labels: Integer[Array, " n"], num_classes: int
) -> Float[Array, " {num_classes}"]:
    """Sum of the values of each label, where many would wait to add to one address."""
    return jnp.where(one_hot(labels, num_classes), values[:, None], 0.0).sum(axis=0)

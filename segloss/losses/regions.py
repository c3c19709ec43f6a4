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

from segloss.losses.blocks import add_blocks, lay_blocks, map_blocks
from segloss.losses.check import Labels, SoftLabels
from segloss.losses.numerics import widen
from segloss.losses.softmax import (
    as_index,
    clear_void,
    label_part,
    normalizer,
    one_hot,
)


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
    function = _sigmoid_sums if multi_label else _softmax_sums
    return function(logits, labels, valid, power, per_image)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _softmax_sums(
    logits: Float[Array, "b *spatial c"],
    labels: Integer[Array, " b *spatial"],
    valid: Bool[Array, " b *spatial"],
    power: int,
    per_image: bool,
) -> RegionSums:
    return _softmax_sums_fwd(logits, labels, valid, power, per_image)[0]


def _softmax_sums_fwd(logits, labels, valid, power, per_image):
    top, log_total = normalizer(logits, labels, valid)
    prob = jnp.exp(label_part(logits, labels, valid, top, log_total))
    prob = jnp.where(valid, prob, 0.0)
    # So that in void all probabilities are 0.
    log_total = jnp.where(valid, log_total, jnp.inf)

    def sums(logits, labels, valid, top, log_total, prob):
        probs = _probs(logits, valid, top, log_total)
        on_label = one_hot(labels, logits.shape[-1])
        maps = (1 - prob) ** power, prob**power, jnp.ones_like(prob)
        under, hits, labelled = (
            _sum_of_label(jnp.where(valid, x, 0.0), labels, logits.shape[-1])
            for x in maps
        )
        over = jnp.where(on_label, 0.0, probs**power).sum(axis=0)
        return RegionSums(over, under, hits, labelled)

    kept = logits, labels, valid, top, log_total, prob
    return _add_up(sums, kept, per_image), kept


def _softmax_sums_bwd(power, per_image, kept, slopes):
    logits, labels, valid, top, log_total, prob = kept
    index = as_index(labels, logits.shape[-1])
    over, under, hits = (
        # Without an index of the row, where there is but one: it is as large again.
        jax.vmap(lambda x, i: x[i])(x, index) if per_image else x[0][index]
        for x in (slopes.over, slopes.under, slopes.hits)
    )
    # The slope with respect to the label's probability; to others it is `off`.
    on = hits - under
    if power == 2:
        on = 2 * (hits * prob - under * (1 - prob))

    def mean_slope(logits, valid, top, log_total, slopes):
        # A product with a vector, because XLA for CPU is slow to sum over few classes.
        probs = _probs(logits, valid, top, log_total)
        return jnp.matmul(
            probs**power, power * slopes.over, precision=lax.Precision.HIGHEST
        )

    # What a softmax takes off again: the mean over classes. The label's term is taken
    # out before another is put in, so that it cancels where the prediction is certain.
    mean = map_blocks(
        mean_slope,
        (logits, valid, top, log_total),
        per_image=per_image,
        per_row=slopes,
        join=functools.partial(
            lay_blocks, shape=labels.shape, rows=len(logits) if per_image else 1
        ),
    )
    mean = (mean - power * over * prob**power) + prob * on
    probs = _probs(logits, valid, top, log_total)
    between = [1] * (logits.ndim - 2)
    off = power * slopes.over.reshape(len(slopes.over), *between, -1)
    off = off * probs ** (power - 1)
    slope = jnp.where(one_hot(labels, logits.shape[-1]), on[..., None], off)
    slope = probs * (slope - mean[..., None])
    return slope.astype(logits.dtype), None, None


def _probs(
    logits: Float[Array, "*pixels c"],
    valid: Bool[Array, "*pixels"],
    top: Float[Array, "*pixels"],
    log_total: Float[Array, "*pixels"],
) -> Float[Array, "*pixels c"]:
    scores = clear_void(logits, valid)
    return jnp.exp((scores - top[..., None]) - log_total[..., None])


_softmax_sums.defvjp(_softmax_sums_fwd, _softmax_sums_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _sigmoid_sums(
    logits: Float[Array, "b *spatial c"],
    labels: SoftLabels,
    valid: Bool[Array, "b *spatial c"],
    power: int,
    per_image: bool,
) -> RegionSums:
    return _sigmoid_sums_fwd(logits, labels, valid, power, per_image)[0]


def _sigmoid_sums_fwd(logits, labels, valid, power, per_image):
    def sums(*arrays):
        return jax.tree.map(lambda x: x.sum(axis=0), _sigmoid_maps(*arrays, power))

    kept = logits, labels, valid
    return _add_up(sums, kept, per_image), kept


def _sigmoid_sums_bwd(power, per_image, kept, slopes):
    logits, labels, valid = kept
    # All of it is elementwise, which XLA fuses by itself.
    between = [1] * (logits.ndim - 2)
    slopes = jax.tree.map(
        lambda x: jnp.broadcast_to(x.reshape(len(x), *between, -1), logits.shape),
        slopes,
    )
    as_float = widen(labels)
    _, pull = jax.vjp(lambda *x: _sigmoid_maps(*x, valid, power), logits, as_float)
    logits_slope, labels_slope = pull(slopes)
    soft = jnp.issubdtype(labels.dtype, jnp.floating)
    return logits_slope, labels_slope.astype(labels.dtype) if soft else None, None


_sigmoid_sums.defvjp(_sigmoid_sums_fwd, _sigmoid_sums_bwd)


def _sigmoid_maps(
    logits: Float[Array, "*pixels c"],
    labels: Float[Array, "*pixels c"] | Bool[Array, "*pixels c"],
    valid: Bool[Array, "*pixels c"],
    power: int,
) -> RegionSums:
    """What `RegionSums` adds up, for each pixel."""
    probs = jax.nn.sigmoid(jnp.where(valid, widen(logits), 0.0))
    probs = jnp.where(valid, probs, 0.0)
    targets = jnp.where(valid, widen(labels), 0.0)
    over = jnp.maximum(probs - targets, 0.0) ** power
    under = jnp.maximum(targets - probs, 0.0) ** power
    return RegionSums(over, under, probs**power - over, targets**power)


def _add_up(
    sums: Callable[..., RegionSums], arrays: tuple[Array, ...], per_image: bool
) -> RegionSums:
    """`sums` of each block of pixels, added up to a row for each image or to one."""
    rows = len(arrays[0]) if per_image else 1
    join = functools.partial(add_blocks, rows=rows)
    return map_blocks(sums, arrays, per_image=per_image, join=join)


def _sum_of_label(
    values: Float[Array, " n"], labels: Integer[Array, " n"], num_classes: int
) -> Float[Array, " {num_classes}"]:
    """Sum of the values of each label; void, which lies anywhere, has the value 0."""

    def scatter() -> Float[Array, " c"]:
        index = as_index(labels, num_classes)
        sums = jnp.zeros(num_classes, values.dtype).at[index]
        return sums.add(values, mode="promise_in_bounds")

    def compare() -> Float[Array, " c"]:
        on_label = one_hot(labels, num_classes)
        return jnp.where(on_label, values[:, None], 0.0).sum(axis=0)

    # Elsewhere, many threads would wait to add to one address.
    return lax.platform_dependent(cpu=scatter, default=compare)

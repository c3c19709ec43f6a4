"""How far each predicted region and the labelled one overlap: what overlap losses read.

For class ids, the logits become four sums per class. The derivative is written by hand:
it keeps the logits and two numbers per pixel, where autodiff keeps an array of the
logits' size on a GPU.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Integer

from segloss.losses.check import Labels, PixelWeights
from segloss.losses.numerics import widen
from segloss.losses.reduce import sum_over_axes, weight_or_one
from segloss.losses.softmax import one_hot, softmax


class RegionSums(NamedTuple):
    """Sums over valid pixels; a row is an image, or the only row is the whole batch.

    p is the probability of the class, t its label, n the power; a pixel's terms are
    multiplied by its weight.

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
    pixel_weights: PixelWeights | None = None,
    power: int = 1,
    per_image: bool = False,
    multi_label: bool = False,
) -> RegionSums:
    """The sums of this device's pixels, for a softmax or, if `multi_label`, sigmoids.

    Args:
        logits: unnormalised class scores.
        labels: class ids, or values in `[0, 1]` for each class. A valid id that is no
            class makes the sums NaN.
        valid: True where a label counts; has the class axis only if `multi_label`.
        pixel_weights: a factor, broadcastable to `valid`; None is ones.
        power: n of `RegionSums`, 1 or 2.
        per_image: a row of sums for each image instead of one row.
        multi_label: whether the classes have a sigmoid each.
    """
    weights = weight_or_one(valid, pixel_weights, widen(logits).dtype)
    if labels.ndim < logits.ndim:
        return _sums_of_ids(logits, labels, valid, weights, power, per_image)
    if multi_label:
        probs = jax.nn.sigmoid(jnp.where(valid, widen(logits), 0.0))
    else:
        no_ids = jnp.zeros(valid.shape, jnp.int32)
        probs = softmax(logits, no_ids, valid).probs()
        valid = valid[..., None]
        weights = None if weights is None else weights[..., None]
    probs = jnp.where(valid, probs, 0.0)
    targets = jnp.where(valid, labels.astype(probs.dtype), 0.0)
    over = jnp.maximum(probs - targets, 0.0) ** power
    under = jnp.maximum(targets - probs, 0.0) ** power
    maps = RegionSums(over, under, probs**power - over, targets**power)
    return RegionSums(*(_add_up(x, weights, per_image) for x in maps))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _sums_of_ids(
    logits: Float[Array, "b *spatial c"],
    labels: Integer[Array, " b *spatial"],
    valid: Bool[Array, " b *spatial"],
    weights: Float[Array, " b *spatial"] | None,
    power: int,
    per_image: bool,
) -> RegionSums:
    return _sums_of_ids_fwd(logits, labels, valid, weights, power, per_image)[0]


def _sums_of_ids_fwd(logits, labels, valid, weights, power, per_image):
    parts = softmax(logits, labels, valid)
    on_label = one_hot(parts.labels, logits.shape[-1])
    over = jnp.where(on_label, 0.0, parts.probs() ** power)

    own = lax.optimization_barrier(jnp.exp(parts.log_prob_of_label()))
    add_up = functools.partial(
        _add_up_labels,
        labels=parts.labels,
        weights=weights,
        num_classes=logits.shape[-1],
        per_image=per_image,
    )
    sums = RegionSums(
        over=_add_up(over, None if weights is None else weights[..., None], per_image),
        under=add_up((1 - own) ** power),
        hits=add_up(own**power),
        labelled=add_up(jnp.ones_like(own)),
    )
    return sums, (logits, weights, parts._replace(scores=None))


def _sums_of_ids_bwd(power, per_image, kept, slopes):
    logits, weights, parts = kept
    # Behind the barrier, XLA computes the comparison anew and keeps none in memory.
    labels = lax.optimization_barrier(parts.labels)
    scores = jnp.where((labels < logits.shape[-1])[..., None], widen(logits), 0.0)
    # The maximum is computed anew, too: the softmax becomes a pattern that XLA turns
    # into one kernel on a GPU, which reads the logits once instead of twice. It is a
    # constant, as in `softmax.py`.
    top = lax.stop_gradient(scores.max(axis=-1))
    probs = parts._replace(scores=scores, top=top).probs()
    over, under, hits = (
        x.reshape(len(x), *[1] * (logits.ndim - 2), -1)
        for x in (slopes.over, slopes.under, slopes.hits)
    )
    on_label = one_hot(labels, logits.shape[-1])
    # The derivative by p, of the label and of the other classes.
    if power == 1:
        slope = jnp.where(on_label, hits - under, over)
    else:
        of_label = hits * probs - under * (1 - probs)
        slope = power * jnp.where(on_label, of_label, over * probs)
    # Through the softmax: p_k (slope_k - sum_j p_j slope_j).
    slope *= probs
    slope -= probs * slope.sum(axis=-1, keepdims=True)
    if weights is not None:
        slope *= weights[..., None]
    return slope.astype(logits.dtype), None, None, None


_sums_of_ids.defvjp(_sums_of_ids_fwd, _sums_of_ids_bwd)


def _add_up(
    values: Float[Array, "b *spatial c"],
    weights: Float[Array, "b *spatial c_or_1"] | None,
    per_image: bool,
) -> Float[Array, "rows c"]:
    """The sum of every class, in a row for each image or in one."""
    if weights is not None:
        values = values * weights
    sums = sum_over_axes(values, range(1 if per_image else 0, values.ndim - 1))
    return sums if per_image else sums[None]


def _add_up_labels(
    values: Float[Array, " b *spatial"],
    labels: Int[Array, " b *spatial"],
    weights: Float[Array, " b *spatial"] | None,
    num_classes: int,
    per_image: bool,
) -> Float[Array, "rows c"]:
    """The sum over the pixels of each class; ids that are no class add to none.

    The class axis comes first, so that it is another comparison than that of `one_hot`:
    XLA would compute the same one once for several GPU kernels and write it to memory.
    """
    if weights is not None:
        values = values * weights
    classes = jnp.arange(num_classes, dtype=labels.dtype)
    classes = classes.reshape(-1, *[1] * labels.ndim)
    of_class = jnp.where(labels[None] == classes, values[None], 0.0)
    sums = sum_over_axes(of_class, range(2 if per_image else 1, of_class.ndim))
    return sums.T if per_image else sums[None]

"""Region sums per class, from which the overlap losses are computed.

For class-id labels, the derivative is written by hand. It stores the logits and two
numbers per pixel for the backward pass; on a GPU, autodiff would also store an array as
large as the logits.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Integer

from segloss.losses.check import Labels, PixelWeights
from segloss.losses.numerics import widen
from segloss.losses.reduce import shares, sum_over_axes, weight_or_one
from segloss.losses.softmax import one_hot, softmax


class RegionSums(NamedTuple):
    """Weighted sums over the valid pixels, of which overlap losses are quotients.

    One row per image, or a single row for the whole batch. For one class, p is the
    predicted probability, t the label (0, 1, or between them for soft labels), and n
    the exponent `power`. Each term is multiplied by the weight of its pixel.

    Attributes:
        over: `sum(max(p - t, 0)^n)`, the soft false positives.
        under: `sum(max(t - p, 0)^n)`, the soft false negatives.
        hits: `sum(p^n) - over`. For n = 1, it is the soft true positives,
            `sum(min(p, t))`.
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
    """Computes the `RegionSums` of each class over this device's pixels.

    Args:
        logits: unnormalised class scores.
        labels: class ids, or values in `[0, 1]` in the shape of `logits`. A valid id
            or value out of range makes the sums NaN.
        valid: True where a label counts; has a class axis only if `multi_label`.
        pixel_weights: factor on each pixel's terms, broadcastable to `valid`; None
            means all ones.
        power: n of `RegionSums`, 1 or 2.
        per_image: True returns one row of sums per image, False a single row.
        multi_label: True uses a sigmoid per class instead of a softmax.
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
    targets = shares(labels, valid, probs.dtype)
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
    # The barrier makes XLA recompute the comparison instead of keeping it in memory.
    labels = lax.optimization_barrier(parts.labels)
    scores = jnp.where((labels < logits.shape[-1])[..., None], widen(logits), 0.0)
    # Recompute the maximum as well: on a GPU, XLA then recognises a softmax and emits
    # one kernel, which reads the logits once instead of twice. The maximum is treated
    # as a constant, as in `softmax.py`.
    top = lax.stop_gradient(scores.max(axis=-1))
    probs = parts._replace(scores=scores, top=top).probs()
    over, under, hits = (
        x.reshape(len(x), *[1] * (logits.ndim - 2), -1)
        for x in (slopes.over, slopes.under, slopes.hits)
    )
    on_label = one_hot(labels, logits.shape[-1])
    # The derivative with respect to p, for the label and for the other classes.
    if power == 1:
        slope = jnp.where(on_label, hits - under, over)
    else:
        of_label = hits * probs - under * (1 - probs)
        slope = power * jnp.where(on_label, of_label, over * probs)
    # Backpropagate through the softmax: p_k (slope_k - sum_j p_j slope_j).
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
    """Sums `weights * values` over the pixels; None means weights of 1.

    Returns one row per image if `per_image`, else a single row.
    """
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
    """Sums `weights * values` over the pixels labelled with each class.

    Returns one row per image if `per_image`, else a single row. Pixels with a label out
    of range are ignored; weights of None are 1.

    The class axis comes first so that the comparison differs from that of `one_hot`.
    Otherwise XLA would share one comparison between GPU kernels and write it to memory.
    """
    if weights is not None:
        values = values * weights
    classes = jnp.arange(num_classes, dtype=labels.dtype)
    classes = classes.reshape(-1, *[1] * labels.ndim)
    of_class = jnp.where(labels[None] == classes, values[None], 0.0)
    sums = sum_over_axes(of_class, range(2 if per_image else 1, of_class.ndim))
    return sums.T if per_image else sums[None]

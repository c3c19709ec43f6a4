"""Softmax probabilities, from one pass over the logits.

An array with a class axis is read by the reduction that needs it and is never written:
compilers fuse the comparison of `one_hot` and the exponentials into their reductions.
`python -m benchmarks.compiled` shows what each loss moves on a TPU and a GPU.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Integer

from segloss.losses.numerics import widen


def one_hot(
    labels: Integer[Array, "*pixels"], num_classes: int
) -> Bool[Array, "*pixels {num_classes}"]:
    """True at the label; all False where the label is no class."""
    # int32 first, because uint8 cannot count to more than 256 classes.
    return jax.nn.one_hot(labels.astype(jnp.int32), num_classes, dtype=bool)


def at_label(
    values: Float[Array, "*pixels c"], labels: Integer[Array, "*pixels"]
) -> Float[Array, "*pixels"]:
    """The value of each pixel's label; 0 where the label is no class.

    A sum over a comparison, because a gather moves ten times the memory on a TPU.
    """
    return jnp.where(one_hot(labels, values.shape[-1]), values, 0.0).sum(axis=-1)


class Softmax(NamedTuple):
    """The softmax of each pixel: `p_k = exp(scores_k - top) / total`.

    Attributes:
        scores: the logits in float32; 0 where not valid.
        labels: class ids in int32; an id that is no class where not valid.
        valid: True where a pixel counts.
        top: the largest score.
        total: `sum_k exp(scores_k - top)`. NaN where a valid pixel's label is no class:
            void that was not marked must not pass for a pixel without error.
        own: the score of the label; 0 where not valid.
    """

    scores: Float[Array, "*pixels c"]
    labels: Int[Array, "*pixels"]
    valid: Bool[Array, "*pixels"]
    top: Float[Array, "*pixels"]
    total: Float[Array, "*pixels"]
    own: Float[Array, "*pixels"]

    def probs(self) -> Float[Array, "*pixels c"]:
        """The probability of every class; 0 where not valid."""
        scale = jnp.where(self.valid, 1.0 / self.total, 0.0)
        return jnp.exp(self.scores - self.top[..., None]) * scale[..., None]

    def log_probs(self) -> Float[Array, "*pixels c"]:
        """The logarithm of the probability of every class; uniform where not valid."""
        # In this order, because scores may be large and their differences small.
        return (self.scores - self.top[..., None]) - jnp.log(self.total)[..., None]

    def log_prob_of_label(self) -> Float[Array, "*pixels"]:
        """The logarithm of the label's probability."""
        return (self.own - self.top) - jnp.log(self.total)


def softmax(
    logits: Float[Array, "*pixels c"],
    labels: Integer[Array, "*pixels"],
    valid: Bool[Array, "*pixels"],
) -> Softmax:
    """Reads the logits once, whatever is made of the result."""
    num_classes = logits.shape[-1]
    # uint8 cannot hold the id that is no class.
    ids = labels if labels.dtype.itemsize > 4 else labels.astype(jnp.int32)
    known = (ids >= 0) & (ids < num_classes)
    labels = jnp.where(valid & known, ids, num_classes).astype(jnp.int32)
    scores = jnp.where(valid[..., None], widen(logits), 0.0)
    top, total, own = _sum_exponentials(scores, labels)
    total = jnp.where(valid & ~known, jnp.nan, total)
    return Softmax(scores, labels, valid, top, total, own)


@jax.custom_jvp
def _sum_exponentials(
    scores: Float[Array, "*pixels c"], labels: Int[Array, "*pixels"]
) -> tuple[Float[Array, "*pixels"], ...]:
    """`top`, `total` and `own` of `Softmax` in a single reduction over the classes.

    A sum of exponentials that is relative to the largest score so far is scaled when a
    larger one comes (Milakov and Gimelshein 2018, arXiv:1805.02867). So the maximum,
    the sum and the label's score need one pass, where three reductions read the logits
    twice on a TPU and on a GPU.
    """

    def combine(left, right):
        (top_l, total_l, own_l), (top_r, total_r, own_r) = left, right
        left_is_larger = top_l > top_r
        top = jnp.where(left_is_larger, top_l, top_r)
        smaller = jnp.where(left_is_larger, top_r, top_l)
        # Two scores of -infinity have no difference.
        scale = jnp.where(smaller == top, 1.0, jnp.exp(smaller - top))
        total = jnp.where(
            left_is_larger, total_l + total_r * scale, total_r + total_l * scale
        )
        return top, total, own_l + own_r

    own = jnp.where(one_hot(labels, scores.shape[-1]), scores, 0.0)
    zero = jnp.zeros((), scores.dtype)
    lowest = jnp.asarray(jnp.finfo(scores.dtype).min, scores.dtype)
    return lax.reduce(
        (scores, jnp.ones_like(scores), own),
        (lowest, zero, zero),
        combine,
        (scores.ndim - 1,),
    )


@_sum_exponentials.defjvp
def _sum_exponentials_jvp(primals, tangents):
    scores, labels = primals
    top, total, own = _sum_exponentials(scores, labels)
    # `top` cancels out of every probability, so it counts as a constant.
    of_total = (jnp.exp(scores - top[..., None]) * tangents[0]).sum(axis=-1)
    return (top, total, own), (
        jnp.zeros_like(top),
        of_total,
        at_label(tangents[0], labels),
    )


def log_misses(parts: Softmax) -> Float[Array, "*pixels c"]:
    """`log(1 - p_k)` of every class.

    Finite where `p_k` rounds to 1: a probability above 1/2 is not subtracted from 1,
    but left out of the sum.
    """
    lowest = jnp.finfo(parts.scores.dtype).min
    others = jnp.where(parts.scores < parts.top[..., None], parts.scores, lowest)
    top, total, _ = _sum_exponentials(jnp.maximum(others, lowest), parts.labels)
    log_others = (lax.stop_gradient(top) - parts.top) + jnp.log(total / parts.total)
    probs = parts.probs()
    likely = probs > 0.5
    log_miss = jnp.log1p(-jnp.where(likely, 0.0, probs))
    return jnp.where(likely, log_others[..., None], log_miss)

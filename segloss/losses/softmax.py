"""Softmax probabilities, computed in one pass over the logits.

Compilers fuse the comparison of `one_hot` and the exponentials into the reductions that
read them, so no temporary array with a class axis is written to memory.
`python -m benchmarks.compiled` measures the memory traffic on a TPU and a GPU.
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
    """Boolean one-hot labels; all False where the label is out of range."""
    # Convert to int32 first: uint8 cannot represent class ids of 256 and more.
    return jax.nn.one_hot(labels.astype(jnp.int32), num_classes, dtype=bool)


def at_label(
    values: Float[Array, "*pixels c"], labels: Integer[Array, "*pixels"]
) -> Float[Array, "*pixels"]:
    """Selects the value of each pixel's label; 0 where the label is out of range.

    Sums over a comparison, because a gather moves ten times as many bytes on a TPU.
    """
    return jnp.where(one_hot(labels, values.shape[-1]), values, 0.0).sum(axis=-1)


class Softmax(NamedTuple):
    """The softmax of each pixel: `p_k = exp(scores_k - top) / total`.

    Attributes:
        scores: the logits in float32; 0 where not valid.
        labels: class ids in int32; the number of classes where not valid or out of
            range.
        valid: True where a pixel counts.
        top: the largest score of each pixel.
        total: `sum_k exp(scores_k - top)`; NaN where a valid pixel's label is out of
            range, so that the loss becomes NaN, too.
        own: the score of the pixel's label; 0 where not valid.
    """

    scores: Float[Array, "*pixels c"]
    labels: Int[Array, "*pixels"]
    valid: Bool[Array, "*pixels"]
    top: Float[Array, "*pixels"]
    total: Float[Array, "*pixels"]
    own: Float[Array, "*pixels"]

    def probs(self) -> Float[Array, "*pixels c"]:
        """Probability of every class; 0 where not valid."""
        scale = jnp.where(self.valid, 1.0 / self.total, 0.0)
        return jnp.exp(self.scores - self.top[..., None]) * scale[..., None]

    def log_probs(self) -> Float[Array, "*pixels c"]:
        """Log probability of every class; uniform where not valid."""
        # Subtract `top` first: scores may be large and their differences small.
        return (self.scores - self.top[..., None]) - jnp.log(self.total)[..., None]

    def log_prob_of_label(self) -> Float[Array, "*pixels"]:
        """Log probability of each pixel's label; `-log(c)` where not valid."""
        return (self.own - self.top) - jnp.log(self.total)


def softmax(
    logits: Float[Array, "*pixels c"],
    labels: Integer[Array, "*pixels"],
    valid: Bool[Array, "*pixels"],
) -> Softmax:
    """Computes the `Softmax` of each pixel in one pass over the logits.

    `labels` are class ids. Where `valid` is False, logits and label are ignored.
    """
    num_classes = logits.shape[-1]
    # uint8 cannot represent every `num_classes`, the id that marks invalid pixels.
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
    """Computes `top`, `total` and `own` of `Softmax` in one reduction over the classes.

    The running sum of exponentials is relative to the largest score so far, and is
    rescaled when a larger score appears (Milakov and Gimelshein 2018,
    arXiv:1805.02867). Separate reductions would read the logits twice on a TPU or GPU.
    """

    def combine(left, right):
        (top_l, total_l, own_l), (top_r, total_r, own_r) = left, right
        left_is_larger = top_l > top_r
        top = jnp.where(left_is_larger, top_l, top_r)
        smaller = jnp.where(left_is_larger, top_r, top_l)
        # The difference of two scores of -infinity would be NaN.
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
    # `top` cancels out of every probability, so it is treated as a constant.
    of_total = (jnp.exp(scores - top[..., None]) * tangents[0]).sum(axis=-1)
    return (top, total, own), (
        jnp.zeros_like(top),
        of_total,
        at_label(tangents[0], labels),
    )


def log_misses(parts: Softmax) -> Float[Array, "*pixels c"]:
    """Computes `log(1 - p_k)` for every class.

    The result is finite even where `p_k` rounds to 1: for `p_k` above 1/2, `1 - p_k` is
    the sum of the other probabilities.
    """
    lowest = jnp.finfo(parts.scores.dtype).min
    others = jnp.where(parts.scores < parts.top[..., None], parts.scores, lowest)
    top, total, _ = _sum_exponentials(jnp.maximum(others, lowest), parts.labels)
    log_others = (lax.stop_gradient(top) - parts.top) + jnp.log(total / parts.total)
    probs = parts.probs()
    likely = probs > 0.5
    log_miss = jnp.log1p(-jnp.where(likely, 0.0, probs))
    return jnp.where(likely, log_others[..., None], log_miss)

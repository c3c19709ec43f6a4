"""Probabilities of integer labels, which no one-hot array in memory is needed for.

`log_prob_of_label` is what every loss that is a mean over pixels is made of. It has a
derivative of its own, which keeps the logits and one number per pixel: XLA would keep
a second and a third array of the logits' size.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Integer

from segloss.losses.blocks import lay_blocks, map_blocks
from segloss.losses.numerics import widen


def one_hot(
    labels: Integer[Array, "*pixels"], num_classes: int
) -> Bool[Array, "*pixels {num_classes}"]:
    """True at the label; all False where the label is no class.

    Meant to be read inside a reduction, into which XLA fuses it.
    """
    # int32 first, because uint8 cannot count to more than 256 classes.
    return jax.nn.one_hot(labels.astype(jnp.int32), num_classes, dtype=bool)


def as_index(
    labels: Integer[Array, "*pixels"], num_classes: int
) -> Integer[Array, "*pixels"]:
    """Labels that may index an array; some class where the label is none."""
    return jnp.clip(labels.astype(jnp.int32), 0, num_classes - 1)


@jax.custom_jvp
def at_label(
    values: Float[Array, "*pixels c"], labels: Integer[Array, "*pixels"]
) -> Float[Array, "*pixels"]:
    """The value of each pixel's label; of some class where the label is none."""
    labels = as_index(labels, values.shape[-1])
    return jnp.take_along_axis(values, labels[..., None], axis=-1)[..., 0]


@at_label.defjvp
def _at_label_jvp(primals, tangents):
    # The same as a gather's own derivative, but the transpose of a sum is fused where
    # the transpose of a gather is a scatter into an array of its own.
    values, labels = primals
    chosen = jnp.where(one_hot(labels, values.shape[-1]), tangents[0], 0.0)
    return at_label(values, labels), chosen.sum(axis=-1)


@jax.custom_jvp
def clear_void(
    logits: Float[Array, "*pixels c"], valid: Bool[Array, "*pixels"]
) -> Float[Array, "*pixels c"]:
    """Logits in float32; 0, and without gradient, where a pixel is not valid.

    By shifting out all bits, because beside a select by pixel, or a mask that LLVM
    turns into one, the exponentials of a pixel's classes are computed one by one, which
    takes three times as long.
    """
    logits = widen(logits)
    width = 8 * logits.dtype.itemsize
    bits = lax.bitcast_convert_type(logits, f"uint{width}")
    half = jnp.where(valid, 0, width // 2).astype(bits.dtype)
    half = jnp.broadcast_to(half[..., None], bits.shape)
    for _ in range(2):  # by all at once is not defined
        bits = lax.shift_right_logical(bits, half)
    return lax.bitcast_convert_type(bits, logits.dtype)


@clear_void.defjvp
def _clear_void_jvp(primals, tangents):
    logits, valid = primals
    tangent = jnp.where(valid[..., None], widen(tangents[0]), 0.0)
    return clear_void(logits, valid), tangent


def normalizer(
    logits: Float[Array, "*pixels c"],
    labels: Integer[Array, "*pixels"],
    valid: Bool[Array, "*pixels"],
) -> tuple[Float[Array, "*pixels"], Float[Array, "*pixels"]]:
    """`top` and `log_total`, so that `log p_k = (logits_k - top) - log_total`.

    In this order, because logits may be large and their differences small. Both are 0
    where a pixel is not valid. Where a valid pixel's label is no class `log_total` is
    NaN: void that was not masked must not pass for a pixel without error.
    """

    # Cleared only by pixel: XLA for CPU would write down what it could not fuse.
    def parts(logits):
        logits = widen(logits)
        top = lax.stop_gradient(logits.max(axis=-1))
        return top, jnp.log(jnp.exp(logits - top[..., None]).sum(axis=-1))

    if logits.dtype.itemsize < 4:
        join = functools.partial(lay_blocks, shape=labels.shape)
        top, log_total = map_blocks(parts, (logits,), join=join)
    else:
        top, log_total = parts(logits)
    # uint8 cannot count to more than 256 classes.
    ids = labels if labels.dtype.itemsize > 4 else labels.astype(jnp.int32)
    known = (ids >= 0) & (ids < logits.shape[-1])
    log_total = jnp.where(known, log_total, jnp.nan)
    # Behind a barrier, or XLA for CPU writes down what a sum and its readers share.
    return lax.optimization_barrier(
        (jnp.where(valid, top, 0.0), jnp.where(valid, log_total, 0.0))
    )


def log_probs(
    logits: Float[Array, "*pixels c"],
    labels: Integer[Array, "*pixels"],
    valid: Bool[Array, "*pixels"],
) -> Float[Array, "*pixels c"]:
    """Log-probability of every class in float32, uniform where not valid.

    NaN where a valid pixel's label is no class.
    """
    logits = clear_void(logits, valid)
    top, log_total = normalizer(logits, jnp.where(valid, labels, 0), True | valid)
    return (logits - top[..., None]) - log_total[..., None]


def log_misses(
    logits: Float[Array, "*pixels c"],
    labels: Integer[Array, "*pixels"],
    valid: Bool[Array, "*pixels"],
) -> Float[Array, "*pixels c"]:
    """`log(1 - p_k)` of every class in float32; see `log_probs` for void.

    Finite where `p_k` rounds to 1, because the likeliest class is not subtracted from
    1 but left out of the sum.
    """
    log_prob = log_probs(logits, labels, valid)
    likeliest = one_hot(jnp.argmax(log_prob, axis=-1), logits.shape[-1])
    least = jnp.finfo(log_prob.dtype).min
    others = jnp.where(likeliest, least, log_prob)
    log_others = jax.nn.logsumexp(jnp.maximum(others, least), axis=-1)
    probs = jnp.where(likeliest, 0.0, jnp.exp(log_prob))
    return jnp.where(likeliest, log_others[..., None], jnp.log1p(-probs))


@jax.custom_vjp
def log_prob_of_label(
    logits: Float[Array, "*pixels c"],
    labels: Integer[Array, "*pixels"],
    valid: Bool[Array, "*pixels"],
) -> Float[Array, "*pixels"]:
    """Log-probability of the label in float32, at most 0; 0 where not valid.

    NaN where a valid pixel's label is no class. Its derivative is for reverse mode,
    `ct (1[k = y] - p_k)`; it may be derived again.
    """
    return _log_prob_of_label(logits, labels, valid)[0]


def _log_prob_of_label(logits, labels, valid):
    top, log_total = normalizer(logits, labels, valid)
    log_prob = label_part(logits, labels, valid, top, log_total)
    return log_prob, (logits, labels, valid, top, log_total)


def label_part(
    logits: Float[Array, "*pixels c"],
    labels: Integer[Array, "*pixels"],
    valid: Bool[Array, "*pixels"],
    top: Float[Array, "*pixels"],
    log_total: Float[Array, "*pixels"],
) -> Float[Array, "*pixels"]:
    """`log_prob_of_label` from what `normalizer` returned."""
    score = jnp.where(valid, widen(at_label(logits, labels)), 0.0)
    return (score - top) - log_total


def _log_prob_of_label_bwd(kept, cotangent):
    logits, labels, valid, top, log_total = kept
    scores = clear_void(logits, valid)
    probs = jnp.exp((scores - top[..., None]) - log_total[..., None])
    slope = one_hot(labels, logits.shape[-1]) - probs
    slope *= jnp.where(valid, cotangent, 0.0)[..., None]
    return slope.astype(logits.dtype), None, None


log_prob_of_label.defvjp(_log_prob_of_label, _log_prob_of_label_bwd)

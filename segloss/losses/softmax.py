"""Probabilities of integer labels, which no one-hot array in memory is needed for.

`log_prob_of_label` is what every loss that is a mean over pixels is made of. It has a
derivative of its own, which keeps the logits and one number per pixel: XLA would keep
a second and a third array of the logits' size.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer


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


def without_void(
    logits: Float[Array, "*pixels c"], valid: Bool[Array, "*pixels"]
) -> Float[Array, "*pixels c"]:
    """Logits in float32; 0, and without gradient, where a pixel is not valid."""
    return jnp.where(valid[..., None], logits.astype(jnp.float32), 0.0)


def log_normalizer(
    logits: Float[Array, "*pixels c"],
    labels: Integer[Array, "*pixels"],
    valid: Bool[Array, "*pixels"],
) -> tuple[Float[Array, "*pixels"], Float[Array, "*pixels"]]:
    """`top` and `log_total`, so that `log p_k = (logits_k - top) - log_total`.

    In this order, because logits may be large and their differences small. `logits`
    are those of `without_void`. Where a valid pixel's label is no class `log_total` is
    NaN: void that was not masked must not pass for a pixel without error.
    """
    top = jax.lax.stop_gradient(logits.max(axis=-1))
    log_total = jnp.log(jnp.exp(logits - top[..., None]).sum(axis=-1))
    labels = labels.astype(jnp.int32)
    known = (labels >= 0) & (labels < logits.shape[-1])
    # Not before exp, which XLA for CPU (jaxlib 0.10.2) compiles wrongly for a constant
    # NaN: exp(where(a, nan, x)).sum() is not NaN.
    return top, jnp.where(valid & ~known, jnp.nan, log_total)


def log_probs(
    logits: Float[Array, "*pixels c"],
    labels: Integer[Array, "*pixels"],
    valid: Bool[Array, "*pixels"],
) -> Float[Array, "*pixels c"]:
    """Log-probability of every class in float32, uniform where not valid.

    NaN where a valid pixel's label is no class.
    """
    logits = without_void(logits, valid)
    top, log_total = log_normalizer(logits, labels, valid)
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
    logits = without_void(logits, valid)
    top, log_total = log_normalizer(logits, labels, valid)
    likeliest = one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1])
    others = jnp.where(likeliest, -jnp.inf, logits)
    log_others = jax.nn.logsumexp(others - top[..., None], axis=-1) - log_total
    log_probs = (logits - top[..., None]) - log_total[..., None]
    probs = jnp.where(likeliest, 0.0, jnp.exp(log_probs))
    return jnp.where(likeliest, log_others[..., None], jnp.log1p(-probs))


@jax.custom_vjp
def log_prob_of_label(
    logits: Float[Array, "*pixels c"],
    labels: Integer[Array, "*pixels"],
    valid: Bool[Array, "*pixels"],
) -> Float[Array, "*pixels"]:
    """Log-probability of the label in float32, at most 0; see `log_probs`.

    Its derivative is for reverse mode, `ct (1[k = y] - p_k)`; it may be derived again.
    """
    return _log_prob_of_label(logits, labels, valid)[0]


def _log_prob_of_label(logits, labels, valid):
    clean = without_void(logits, valid)
    top, log_total = log_normalizer(clean, labels, valid)
    log_prob = (at_label(clean, labels) - top) - log_total
    return log_prob, (logits, labels, valid, top, log_total)


def _log_prob_of_label_bwd(kept, cotangent):
    logits, labels, valid, top, log_total = kept
    clean = without_void(logits, valid)
    probs = jnp.exp((clean - top[..., None]) - log_total[..., None])
    slope = one_hot(labels, logits.shape[-1]) - probs
    slope *= jnp.where(valid, cotangent, 0.0)[..., None]
    return slope.astype(logits.dtype), None, None


log_prob_of_label.defvjp(_log_prob_of_label, _log_prob_of_label_bwd)

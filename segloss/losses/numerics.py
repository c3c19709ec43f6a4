"""Numerical helpers: float32 accumulation and safe division."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

# The gradient of a quotient divides by the squared divisor, and the smallest normal
# float32 is about 1e-38.
SMALLEST_DIVISOR = 1e-18


def widen(x: Num[Array, "*shape"] | Bool[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Converts to at least float32, the type of every sum; float64 stays float64."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def safe_divide(
    numerator: Float[Array, "*shape"], divisor: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """Returns `numerator / divisor`; 0 where the divisor is below 1e-18.

    There the gradient is 0, too. NaN propagates.
    """
    empty = divisor < SMALLEST_DIVISOR  # False for NaN, so NaN propagates
    return jnp.where(empty, 0.0, numerator / jnp.where(empty, 1.0, divisor))

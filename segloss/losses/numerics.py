"""What floating point asks for: float32 for sums, and no division by zero."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

# The gradient of a quotient divides by the square, which float32 holds down to 1e-38.
SMALLEST_DIVISOR = 1e-18


def widen(x: Num[Array, "*shape"] | Bool[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Converts to float32, in which every sum is taken; float64 stays float64."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def safe_divide(
    numerator: Float[Array, "*shape"], divisor: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """The quotient; 0, without gradient, where the divisor is below 1e-18."""
    empty = divisor < SMALLEST_DIVISOR  # False for NaN, so that NaN stays NaN
    return jnp.where(empty, 0.0, numerator / jnp.where(empty, 1.0, divisor))

"""What floating point asks for: enough digits, and no division by nothing."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Num

# The gradient of a quotient divides by the square, which float32 holds down to 1e-38.
SMALLEST_DIVISOR = 1e-18

# Numbers that are added up one by one.
_ROW = 4096


def widen(x: Num[Array, "*shape"] | Bool[Array, "*shape"]) -> Float[Array, "*shape"]:
    """In float32, in which everything is added up; float64 stays what it is."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def total(x: Float[Array, "*shape"]) -> Float[Array, ""]:
    """The sum of all, in two steps: one by one, millions would lose their digits."""
    flat = x.ravel()
    rows = jnp.pad(flat, (0, -flat.size % _ROW)).reshape(-1, _ROW)
    # Or XLA makes one sum of the two.
    return lax.optimization_barrier(rows.sum(axis=1)).sum()


def safe_divide(
    numerator: Float[Array, "*shape"], divisor: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """The quotient, and 0 without gradient where there is nothing to divide by."""
    empty = divisor < SMALLEST_DIVISOR  # False for NaN, which has to stay NaN
    return jnp.where(empty, 0.0, numerator / jnp.where(empty, 1.0, divisor))

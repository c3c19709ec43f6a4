"""Which pixels are the hardest of a batch."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from segloss.losses.reduce import sum_over_devices


def weights_of_largest(
    loss: Float[Array, " b *spatial"],
    valid: Bool[Array, " b *spatial"],
    *,
    fraction: float | int,
    axis_name: str | None,
) -> Float[Array, " b *spatial"]:
    """1 for the `fraction` of the valid pixels whose loss is largest, else 0.

    Pixels that tie for the last places share them.
    """
    # The bits of floats that are not negative are in their order, void below them and
    # NaN above.
    bits = lax.bitcast_convert_type(jnp.abs(loss).astype(jnp.float32), jnp.uint32)
    rank = jnp.where(valid, bits + 1, 0)

    def count(where: Bool[Array, " b *spatial"]) -> Int[Array, ""]:
        return sum_over_devices(where.sum(), axis_name)

    k = jnp.maximum(jnp.round(fraction * count(valid)), 1).astype(jnp.int32)

    def raise_bit(i, last):
        higher = last | (jnp.uint32(1 << 31) >> i.astype(jnp.uint32))
        return jnp.where(count(rank >= higher) >= k, higher, last)

    # The largest that k reach, bit by bit.
    last = lax.fori_loop(0, 32, raise_bit, jnp.uint32(0))
    share = (k - count(rank > last)) / count(rank == last)
    share = share.astype(loss.dtype)
    return jnp.where(rank > last, 1.0, jnp.where(rank == last, share, 0.0))

"""Selection of the pixels with the largest loss, without sorting."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from segloss.losses.check import Scalar
from segloss.losses.reduce import sum_over_devices

# Bits found per pass over the pixels. Each pass makes 15 comparisons per pixel and one
# exchange between devices.
_DIGIT = 4


def hardest_pixels(
    loss: Float[Array, " b *spatial"],
    valid: Bool[Array, " b *spatial"],
    *,
    fraction: Scalar,
    axis_name: str | None,
) -> Float[Array, " b *spatial"]:
    """Returns weights: 1 for the k valid pixels with the largest loss, else 0.

    k is `fraction` times the number of valid pixels of all devices, rounded, and at
    least 1. The weights sum to k: if more pixels tie at the k-th largest loss than
    there are places left, each of them gets the same weight between 0 and 1.

    Args:
        loss: loss of each pixel, nonnegative; NaN counts as the largest value.
        valid: True where a pixel counts.
        fraction: in `(0, 1]`.
        axis_name: name of a pmap or shard_map axis, whose devices hold parts of one
            batch.
    """
    # The bit patterns of nonnegative floats are ordered like the floats, with NaN above
    # all. Pixels that are not valid get rank 0, below all.
    bits = lax.bitcast_convert_type(jnp.abs(loss).astype(jnp.float32), jnp.uint32)
    rank = jnp.where(valid, bits + 1, 0)

    def count(*where: Bool[Array, " b *spatial"]) -> Int[Array, " n"]:
        # XLA computes all the sums in one pass.
        return sum_over_devices(jnp.stack([x.sum() for x in where]), axis_name)

    k = jnp.maximum(jnp.round(fraction * count(valid)[0]), 1).astype(jnp.int32)

    def add_digit(i, last):
        shift = (32 - _DIGIT * (i + 1)).astype(jnp.uint32)
        higher = [last | (jnp.uint32(n) << shift) for n in range(1, 1 << _DIGIT)]
        digit = (count(*(rank >= x for x in higher)) >= k).sum()
        return last | (digit.astype(jnp.uint32) << shift)

    # The largest rank that at least k pixels reach.
    last = lax.fori_loop(0, 32 // _DIGIT, add_digit, jnp.zeros_like(k, jnp.uint32))
    above, tied = count(rank > last, rank == last)
    share = ((k - above) / tied).astype(loss.dtype)
    return jnp.where(rank > last, 1.0, jnp.where(rank == last, share, 0.0))

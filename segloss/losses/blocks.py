"""One block of pixels after the other on CPU.

There XLA writes down an array of the logits' size before it sums over pixels, and where
logits of half precision become float32. Of a block it stays in the cache, and sums of
sums in float32 keep their digits.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

_BLOCK_PIXELS = 4096
_FEWEST_PIXELS = 256


def map_blocks(
    function: Callable,
    arrays: tuple[Array, ...],
    *,
    per_image: bool = False,
    join: Callable,
    per_row: Any = None,
) -> Any:
    """`join` of `function` of each block of pixels; elsewhere, of all pixels at once.

    Args:
        function: takes a block of each of `arrays`, and of `per_row` its row.
        arrays: logits `[b, *spatial, c]` and others in that shape, or without the c.
        per_image: whether a block is to lie within an image.
        join: takes what `function` returns, with an axis of blocks in front.
        per_row: a tree of arrays with a row for each image, or one for all.
    """
    logits = arrays[0]
    rows = len(logits) if per_image else 1
    pixels = logits[..., 0].size // rows

    def split(size: int) -> list[Any]:
        flat = [x.reshape(-1, size, *x.shape[logits.ndim - 1 :]) for x in arrays]
        blocks = len(flat[0]) // rows
        repeat = functools.partial(jnp.repeat, repeats=blocks, axis=0)
        return flat if per_row is None else [*flat, jax.tree.map(repeat, per_row)]

    def whole(blocks: list[Any]) -> Any:
        return join(jax.vmap(function)(*blocks))

    def one_by_one(blocks: list[Any]) -> Any:
        return join(lax.map(lambda x: function(*x), blocks))

    @jax.custom_jvp
    def one_by_one_as_bits(blocks: list[Any]) -> Any:
        dtypes = jax.tree.map(lambda x: x.dtype, blocks)
        bits = jax.tree.map(_to_bits, blocks)
        return join(
            lax.map(lambda x: function(*jax.tree.map(_from_bits, x, dtypes)), bits)
        )

    @one_by_one_as_bits.defjvp
    def _(primals, tangents):
        return jax.jvp(one_by_one, primals, tangents)

    # XLA of jaxlib 0.10 widens all that a loop reads in half precision before it.
    return lax.platform_dependent(
        split(_block_size(pixels)),
        cpu=one_by_one_as_bits if _is_half(logits.dtype) else one_by_one,
        default=lambda _: whole(split(pixels)),
    )


def _to_bits(x: Array) -> Array:
    return lax.bitcast_convert_type(x, jnp.uint16) if _is_half(x.dtype) else x


def _from_bits(x: Array, dtype: jnp.dtype) -> Array:
    return lax.bitcast_convert_type(x, dtype) if _is_half(dtype) else x


def _is_half(dtype: jnp.dtype) -> bool:
    return jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize == 2


def _block_size(pixels: int) -> int:
    """The largest divisor that makes a block, or all where none is of any use."""
    sizes = range(min(pixels, _BLOCK_PIXELS), _FEWEST_PIXELS, -1)
    return next((size for size in sizes if pixels % size == 0), pixels)

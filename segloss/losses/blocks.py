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

# What is added up in one go.
_ROW_PIXELS = 4096
# What one step of the loop takes; in half precision a row, which is widened there.
_BLOCK_PIXELS = 1 << 16
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
        join: takes a list of what `function` returns, each with an axis of blocks in
            front. There are two where the last block is shorter; see `add_blocks` and
            `lay_blocks`.
        per_row: a tree of arrays with a row for each image, or one for all.
    """
    logits = arrays[0]
    rows = len(logits) if per_image else 1
    pixels = logits[..., 0].size // rows
    flat = [x.reshape(rows, pixels, *x.shape[logits.ndim - 1 :]) for x in arrays]

    def cut(start: int, stop: int, *shape: int) -> list[Any]:
        blocks = (x[:, start:stop] for x in flat)
        blocks = [x.reshape(-1, *shape, *x.shape[2:]) for x in blocks]
        repeat = functools.partial(jnp.repeat, repeats=len(blocks[0]) // rows, axis=0)
        return blocks if per_row is None else [*blocks, jax.tree.map(repeat, per_row)]

    def one_by_one(blocks: list[Any]) -> Any:
        return lax.map(lambda x: function(*x), blocks)

    def some_by_some(blocks: list[Any]) -> Any:
        axes = [0] * len(arrays) + [None] * (per_row is not None)
        maps = lax.map(lambda x: jax.vmap(function, axes)(*x), blocks)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), maps)

    @jax.custom_jvp
    def one_by_one_as_bits(blocks: list[Any]) -> Any:
        dtypes = jax.tree.map(lambda x: x.dtype, blocks)
        bits = jax.tree.map(_to_bits, blocks)
        return lax.map(lambda x: function(*jax.tree.map(_from_bits, x, dtypes)), bits)

    @one_by_one_as_bits.defjvp
    def _(primals, tangents):
        return jax.jvp(one_by_one, primals, tangents)

    half = _is_half(logits.dtype)
    *several, row = _block_shape(pixels, half)
    loop = some_by_some if several else one_by_one
    if half:
        # XLA of jaxlib 0.10 widens all that a loop reads in half precision before it.
        loop = one_by_one_as_bits
    rest = pixels % row

    def on_cpu() -> Any:
        maps = [loop(cut(0, pixels - rest, *several, row))]
        return join([*maps, loop(cut(pixels - rest, pixels, rest))] if rest else maps)

    return lax.platform_dependent(
        cpu=on_cpu,
        default=lambda: join([jax.vmap(function)(*cut(0, pixels, pixels))]),
    )


def add_blocks(sums: list[Any], rows: int) -> Any:
    """The sums of a row's blocks, added up; for `join`."""
    by_row = (
        jax.tree.map(lambda x: x.reshape(rows, -1, *x.shape[1:]).sum(axis=1), piece)
        for piece in sums
    )
    return functools.reduce(functools.partial(jax.tree.map, jnp.add), by_row)


def lay_blocks(maps: list[Any], shape: tuple[int, ...], rows: int = 1) -> Any:
    """The numbers of the blocks' pixels, side by side in `shape`; for `join`."""

    def lay(*pieces: Array) -> Array:
        return jnp.concatenate([x.reshape(rows, -1) for x in pieces], 1).reshape(shape)

    return jax.tree.map(lay, *maps)


def _to_bits(x: Array) -> Array:
    return lax.bitcast_convert_type(x, jnp.uint16) if _is_half(x.dtype) else x


def _from_bits(x: Array, dtype: jnp.dtype) -> Array:
    return lax.bitcast_convert_type(x, dtype) if _is_half(dtype) else x


def _is_half(dtype: jnp.dtype) -> bool:
    return jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize == 2


def _block_shape(pixels: int, half: bool) -> tuple[int, ...]:
    """Rows, if there are several, and pixels of a row; only one row may leave a rest.

    Blocks of float32 start where vectors of four do: others are read twice as slowly.
    """
    if pixels <= _ROW_PIXELS:
        return (pixels,)
    for block in range(0 if half else _BLOCK_PIXELS, _ROW_PIXELS, -4):
        row = _row_size(block) if pixels % block == 0 else None
        if row is not None:
            return block // row, row
    return (_row_size(pixels) or _ROW_PIXELS,)


def _row_size(pixels: int) -> int | None:
    """The largest row that divides these pixels, so that nothing is copied."""
    rows = range(min(pixels, _ROW_PIXELS), _FEWEST_PIXELS, -1)
    return next((row for row in rows if pixels % row == 0), None)

"""Weights of the Lovasz extension: the increase in Jaccard loss per wrong pixel.

The weights are exact if the errors are sorted, or approximate if errors are counted in
bins and treated as equal within a bin. On a TPU, both ways avoid gathers and scatters,
which process one element at a time there.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from segloss.losses.reduce import sum_over_devices

# Row length of the two-level scan; see `_scan`.
_ROW = 1024


def weights_and_total(
    errors: Float[Array, "b *spatial c"],
    foreground: Bool[Array, "b *spatial c"],
    counted: Bool[Array, "b *spatial 1"],
    *,
    per_image: bool,
    bins: int | None,
    axis_name: str | None,
) -> tuple[Float[Array, "b *spatial c"], Int[Array, "rows c"]]:
    """Returns the Lovasz weight of each error, and the foreground pixels per class.

    `errors` are at least 0, and 0 where not `counted`, i.e. valid; `foreground` is True
    where a pixel is labelled with the class. The errors of an image are compared if
    `per_image`, else those of the batch on all devices of `axis_name`. `bins` is as in
    `lovasz_softmax`.
    """
    if bins is not None:
        part = jnp.clip((errors * bins).astype(jnp.int32), 0, bins - 1)
        cells = jnp.where(counted, 2 * part + foreground, 2 * bins)
        return _weights_by_bin(
            cells, bins=bins, per_image=per_image, axis_name=axis_name
        )
    # The bit patterns of nonnegative floats are ordered like the floats. Their sign bit
    # is 0 and is shifted out, which makes room for the label.
    keys = 2 * jax.lax.bitcast_convert_type(errors, jnp.uint32) + foreground
    weigh = functools.partial(_weights_by_order, axis_name=axis_name)
    if per_image:
        weigh = jax.vmap(weigh)
    # One class at a time, because a sort needs several temporary arrays.
    weights, total = jax.lax.map(weigh, jnp.moveaxis(keys, -1, 0))
    return jnp.moveaxis(weights, 0, -1), total.reshape(len(total), -1).T


def _weights_by_order(
    keys: UInt32[Array, "*pixels"], *, axis_name: str | None
) -> tuple[Float[Array, "*pixels"], Int[Array, ""]]:
    """Returns the weights of one class, and its number of foreground pixels.

    `keys` are twice the bit pattern of the error, plus 1 for foreground; they sort like
    the errors. With `axis_name`, the pixels of all its devices are sorted.

    A second sort restores the pixel order, because a scatter is slow on a TPU.
    """
    everyones = keys.ravel()
    if axis_name is not None:
        everyones = jax.lax.all_gather(everyones, axis_name, tiled=True)
    # Padding with background errors of 0 does not change the result.
    everyones = jnp.pad(everyones, (0, -everyones.size % _ROW))
    place = jnp.arange(everyones.size, dtype=jnp.int32)
    sort = functools.partial(jax.lax.sort, num_keys=1, is_stable=False)
    ordered, origin = sort((everyones, place))

    is_first = (place == 0) | (ordered != jnp.roll(ordered, 1))
    is_last = jnp.roll(is_first, -1)
    first = _scan(jax.lax.cummax, jnp.maximum, jnp.where(is_first, place, 0))
    last = jnp.where(is_last, place, place.size)
    last = _scan(jax.lax.cummin, jnp.minimum, last, reverse=True)
    tied = last + 1 - first
    is_foreground = (ordered & 1).astype(jnp.int32)
    so_far = _scan(jax.lax.cumsum, jnp.add, is_foreground)
    total = so_far[-1]
    above = total - so_far - (last - place) * is_foreground
    of_foreground, of_background = _weights(
        total,
        above,
        place.size - 1 - last - above,
        tied * is_foreground,
        tied * (1 - is_foreground),
    )
    weights = jnp.where(is_foreground == 1, of_foreground, of_background)
    _, weights = sort((origin, weights))
    start = 0
    if axis_name is not None:
        start = jax.lax.axis_index(axis_name) * keys.size
        # Already equal on all devices; `pmax` proves it to `shard_map`.
        total = jax.lax.pmax(total, axis_name)
    weights = jax.lax.dynamic_slice(weights, (start,), (keys.size,))
    return weights.reshape(keys.shape), total


def _scan(
    cumulate: Callable,
    combine: Callable,
    x: Int[Array, " n"],
    *,
    reverse: bool = False,
) -> Int[Array, " n"]:
    """Cumulative `combine` of x, computed in two levels to compile fast on a TPU.

    `cumulate`, such as `jax.lax.cumsum`, runs within rows of `_ROW` elements, then over
    the last (first if `reverse`) value of each row; `combine` adds the results. For the
    pixels of a batch, a one-level scan takes the TPU compiler half a minute.
    """
    rows = cumulate(x.reshape(-1, _ROW), axis=1, reverse=reverse)
    ends = cumulate(rows[:, 0 if reverse else -1], reverse=reverse)[:, None]
    if reverse:
        parts = combine(rows[:-1], ends[1:]), rows[-1:]
    else:
        parts = rows[:1], combine(rows[1:], ends[:-1])
    return jnp.concatenate(parts).ravel()


def _weights_by_bin(
    cells: Int[Array, "b *spatial c"],
    *,
    bins: int,
    per_image: bool,
    axis_name: str | None,
) -> tuple[Float[Array, "b *spatial c"], Int[Array, "rows c"]]:
    """Returns the weight of each pixel, and the number of foreground pixels.

    `cells` holds `2 k + f` for a background (f = 0) or foreground (f = 1) pixel of bin
    k, and `2 bins` for a pixel that is not valid.
    """
    counts = _count(cells, 2 * bins + 1, per_image=per_image)
    counts = sum_over_devices(counts, axis_name)[..., :-1]
    bg, fg = counts[..., ::2], counts[..., 1::2]
    bg_above, fg_above = (
        jax.lax.cumsum(x, axis=x.ndim - 1, reverse=True) - x for x in (bg, fg)
    )
    total = fg.sum(axis=-1)
    weights = _weights(total[..., None], fg_above, bg_above, fg, bg)
    table = jnp.stack(weights[::-1], axis=-1).reshape(counts.shape)
    table = jnp.pad(table, ((0, 0), (0, 0), (0, 1)))
    return _look_up(table, cells, per_image=per_image), total


def _count(
    cells: Int[Array, "b *spatial c"], size: int, *, per_image: bool
) -> Int[Array, "rows c {size}"]:
    """Counts how often each integer of `range(size)` occurs in `cells`, per class.

    The result has one row per image if `per_image`, else a single row.
    """
    rows, c = len(cells) if per_image else 1, cells.shape[-1]

    def add_up(cells):
        index = _start_of_row(cells, rows, size) + cells
        counts = jnp.zeros(rows * c * size, jnp.int32).at[index].add(1)
        return counts.reshape(rows, c, size)

    def multiply(cells):
        # One class at a time; otherwise the one-hot arrays are materialised.
        counts = jax.lax.map(
            lambda k: multiply_class(_take_class(cells, k)), jnp.arange(c)
        )
        return counts.reshape(c, rows, size).swapaxes(0, 1)

    def multiply_class(cells):
        high, low = (digit.astype(jnp.int8) for digit in _digits(cells, size))
        pixels = list(range(1, high.ndim))
        counts = jnp.tensordot(
            high, low, axes=(pixels, pixels), preferred_element_type=jnp.int32
        )
        return counts.ravel()[:size]

    if per_image:
        multiply_class = jax.vmap(multiply_class)
    return jax.lax.platform_dependent(cells, tpu=multiply, default=add_up)


def _look_up(
    table: Float[Array, "rows c size"],
    cells: Int[Array, "b *spatial c"],
    *,
    per_image: bool,
) -> Float[Array, "b *spatial c"]:
    """Returns `table[row, class, cell]` for each cell.

    The row is the cell's image if `per_image`, else 0.
    """
    rows, c, size = table.shape

    def read(table, cells):
        return table.ravel()[_start_of_row(cells, rows, size) + cells]

    def multiply(table, cells):
        def look_up(k):
            of_class = table[:, k] if per_image else table[0, k]
            return multiply_class(of_class, _take_class(cells, k))

        return jnp.moveaxis(jax.lax.map(look_up, jnp.arange(c)), 0, -1)

    def multiply_class(table, cells):
        high, low = _digits(cells, size)
        table = jnp.pad(table, (0, len(high) * len(low) - size))
        values = jnp.tensordot(
            table.reshape(len(high), len(low)),
            high.astype(table.dtype),
            axes=(0, 0),
            precision="highest",
        )
        return jnp.where(low, values, 0.0).sum(axis=0)

    if per_image:
        multiply_class = jax.vmap(multiply_class)
    return jax.lax.platform_dependent(table, cells, tpu=multiply, default=read)


def _take_class(
    cells: Int[Array, "b *spatial c"], k: Int[Array, ""]
) -> Int[Array, " b *spatial"]:
    """`cells[..., k]` as a slice; indexing would compile to a gather."""
    return jax.lax.dynamic_index_in_dim(cells, k, axis=-1, keepdims=False)


def _start_of_row(
    cells: Int[Array, "b *spatial c"], rows: int, size: int
) -> Int[Array, "_ *_spatial c"]:
    """Returns the offset of each row and class in a flat `[rows, c, size]` table."""
    c = cells.shape[-1]
    start = size * jnp.arange(rows * c, dtype=jnp.int32)
    return start.reshape(rows, *(1,) * (cells.ndim - 2), c)


def _digits(
    cells: Int[Array, "*pixels"], size: int
) -> tuple[Bool[Array, " high *pixels"], Bool[Array, " low *pixels"]]:
    """Returns one-hot arrays of the high and the low bits of integers below `size`.

    A TPU gathers and scatters one element at a time. Products of these one-hot arrays
    count and look up on the matrix unit instead; they are never materialised.
    """
    low_bits = size.bit_length() // 2
    shape = -1, *(1,) * cells.ndim
    numbers = (size >> low_bits) + 1, 1 << low_bits
    high, low = (jnp.arange(n).reshape(shape) for n in numbers)
    return cells[None] >> low_bits == high, cells[None] & (numbers[1] - 1) == low


def _weights(
    total: Int[Array, "*#shape"],
    fg_above: Int[Array, "*shape"],
    bg_above: Int[Array, "*shape"],
    fg: Int[Array, "*shape"],
    bg: Int[Array, "*shape"],
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """Weights of a foreground and of a background pixel in a group of equal errors.

    `total`, `fg_above` and the others are pixel counts of one class. If the foreground
    of the group is ordered first, each foreground pixel adds `1 / (total + bg_above)`
    to the Jaccard loss, and all its background pixels together add
    `(total - fg_above - fg) (1 / (total + bg_above) - 1 / (total + bg_above + bg))`.
    The weights are the mean of this order and the reverse order.

    Args:
        total: number of foreground pixels.
        fg_above: number of foreground pixels with a larger error.
        bg_above: number of background pixels with a larger error.
        fg: number of foreground pixels with this error.
        bg: number of background pixels with this error.
    """
    total, fg_above, bg_above, fg, bg = (
        x.astype(jnp.float32) for x in (total, fg_above, bg_above, fg, bg)
    )
    before = jnp.maximum(total + bg_above, 1.0)
    after = jnp.maximum(total + bg_above + bg, 1.0)
    of_foreground = (1.0 / before + 1.0 / after) / 2
    of_background = (total - fg_above - fg / 2) / (before * after)
    # Without foreground, the first wrong pixel raises the loss to 1; others add 0.
    is_first = (total == 0) & (bg_above == 0)
    return of_foreground, jnp.where(is_first, 1.0 / after, of_background)

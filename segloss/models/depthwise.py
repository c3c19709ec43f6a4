"""Depthwise convolution, with a derivative of its own.

It is either a grouped convolution, which XLA:CPU computes slowly, or a sum of products
of shifted images. Each platform takes what was faster there (`benchmarks.depthwise`, on
a CPU) or moves fewer bytes (`benchmarks.compiled`, on a TPU and a GPU). A CPU works on
one image at a time, which then stays in its cache.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from segloss.models.layers import he_normal

_GROUPS = 8  # the rows of an image are added up in groups of this many


def depthwise_conv(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "kh kw 1 c"],
    *,
    strides: int = 1,
    rate: int = 1,
    padding: int | None = None,
) -> Float[Array, "b h2 w2 c"]:
    """Convolves each channel with a filter of its own.

    The depthwise half of a separable convolution: Chollet 2017 (arXiv:1610.02357).
    Equals `torch.nn.functional.conv2d` with as many groups as channels.

    Sums are in float32 or wider, also those of the derivatives. Only first derivatives
    exist, and only in reverse mode.

    Args:
        x: activations; the output has their dtype.
        kernel: one filter per channel, in the layout of `nn.Conv` with
            `feature_group_count=c`. It is rounded to the dtype of `x`, but its gradient
            has the dtype of the kernel. A GPU or TPU rounds that sum to the dtype of
            `x` first, unless it computes it as shifted products.
        strides: step between output pixels, in input pixels, along both axes.
        rate: dilation of the kernel, in input pixels.
        padding: zeros added on each side; None adds `rate * (k - 1) // 2` for a kernel
            of k rows or columns. An odd kernel then gives an output of
            ceil(input size / strides).

    Raises:
        ValueError: if the kernel has another number of channels than `x`, `strides` or
            `rate` is less than 1, or `padding` less than 0.
    """
    if kernel.shape[2:] != (1, x.shape[-1]):
        raise ValueError(
            f"depthwise_conv: kernel must have shape [kh, kw, 1, {x.shape[-1]}] for "
            f"these activations, got {kernel.shape}."
        )
    for name, value, least in (("strides", strides, 1), ("rate", rate, 1)):
        if value < least:
            raise ValueError(f"depthwise_conv: {name} must be >= {least}, got {value}.")
    if padding is not None and padding < 0:
        raise ValueError(f"depthwise_conv: padding must be >= 0, got {padding}.")
    kh, kw = kernel.shape[:2]
    pads = tuple(rate * (k - 1) // 2 if padding is None else padding for k in (kh, kw))
    return _conv(x, kernel, strides, rate, pads)


class DepthwiseConv(nn.Module, kw_only=True):
    """Depthwise convolution without a bias; see `depthwise_conv`.

    Attributes:
        size: kernel height and width, odd.
        strides: step between output pixels, in input pixels.
        rate: dilation of the kernel, in input pixels.
        padding: zeros added on each side; None as in `depthwise_conv`.
        dtype: dtype of the computation and of the output; parameters are float32.
    """

    size: int
    strides: int = 1
    rate: int = 1
    padding: int | None = None
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        shape = (self.size, self.size, 1, x.shape[-1])
        kernel = self.param("kernel", he_normal, shape)
        x = x.astype(self.dtype)
        how = dict(strides=self.strides, rate=self.rate, padding=self.padding)
        return depthwise_conv(x, kernel, **how)


def _is_small(kernel: jax.Array, strides: int) -> bool:
    """Returns whether a TPU moves fewer bytes for shifted images.

    Strided slices cost it 20 times the traffic, and 25 sums do not fit one pass.
    """
    return strides == 1 and kernel.shape[0] * kernel.shape[1] <= 9


def _vmapped(of_image: Callable, images: jax.Array) -> jax.Array:
    return jax.vmap(of_image)(images)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _conv(
    x: jax.Array, kernel: jax.Array, strides: int, rate: int, pads: tuple[int, int]
) -> jax.Array:
    how = dict(strides=strides, rate=rate, pads=pads)
    plain = functools.partial(grouped, **how)
    ours = functools.partial(shifted, **how)
    return lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(ours, over_images=lax.map),
        tpu=ours if _is_small(kernel, strides) else plain,
        default=plain,
    )


def _forward(
    x: jax.Array, kernel: jax.Array, strides: int, rate: int, pads: tuple[int, int]
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _conv(x, kernel, strides, rate, pads), (x, kernel)


def _backward(
    strides: int,
    rate: int,
    pads: tuple[int, int],
    saved: tuple[jax.Array, jax.Array],
    cotangent: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    kernel = saved[1]
    how = dict(strides=strides, rate=rate, pads=pads)
    plain = functools.partial(grouped_input_gradient, **how)
    ours = functools.partial(shifted_input_gradient, **how)
    dx = lax.platform_dependent(
        *saved,
        cotangent,
        cpu=functools.partial(ours, over_images=lax.map),
        tpu=ours if _is_small(kernel, strides) else plain,
        cuda=plain if strides == 1 else ours,
        default=plain,
    )
    plain = functools.partial(grouped_kernel_gradient, **how)
    ours = functools.partial(reduced_kernel_gradient, **how)
    dkernel = lax.platform_dependent(
        *saved,
        cotangent,
        cpu=functools.partial(shifted_kernel_gradient, **how),
        tpu=ours if _is_small(kernel, strides) else plain,
        default=plain,
    )
    return dx, dkernel


_conv.defvjp(_forward, _backward)


def grouped(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "kh kw 1 c"],
    *,
    strides: int,
    rate: int,
    pads: tuple[int, int],
) -> Float[Array, "b h2 w2 c"]:
    return lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype),
        (strides, strides),
        [(pad, pad) for pad in pads],
        rhs_dilation=(rate, rate),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def grouped_input_gradient(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "kh kw 1 c"],
    cotangent: Float[Array, "b h2 w2 c"],
    **how: Any,
) -> Float[Array, "b h w c"]:
    return jax.linear_transpose(lambda x: grouped(x, kernel, **how), x)(cotangent)[0]


def grouped_kernel_gradient(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "kh kw 1 c"],
    cotangent: Float[Array, "b h2 w2 c"],
    **how: Any,
) -> Float[Array, "kh kw 1 c"]:
    return jax.linear_transpose(lambda k: grouped(x, k, **how), kernel)(cotangent)[0]


def shifted(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "kh kw 1 c"],
    *,
    strides: int,
    rate: int,
    pads: tuple[int, int],
    over_images: Callable = _vmapped,
) -> Float[Array, "b h2 w2 c"]:
    """Adds up one product of the padded image and a kernel value for each tap."""
    kernel = _wide(kernel.astype(x.dtype))
    size = _output_size(x, kernel, strides, rate, pads)

    def of_image(image: Float[Array, "h w c"]) -> Float[Array, "h2 w2 c"]:
        image = jnp.pad(image, [(pad, pad) for pad in pads] + [(0, 0)])
        total = sum(
            _wide(_view(image, (rate * i, rate * j), size, strides))
            * kernel[i, j][None]
            for i, j in np.ndindex(kernel.shape[:2])
        )
        return total.astype(x.dtype)

    return over_images(of_image, x)


def shifted_input_gradient(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "kh kw 1 c"],
    cotangent: Float[Array, "b h2 w2 c"],
    *,
    strides: int,
    rate: int,
    pads: tuple[int, int],
    over_images: Callable = _vmapped,
) -> Float[Array, "b h w c"]:
    """Adds up products of the cotangent for each of strides^2 interleaved grids.

    Input pixel `strides * q + a` and tap `i` meet in output pixel
    `q + (a + pad - rate * i) / strides`, if that is a whole number.
    """
    kernel = _wide(kernel.astype(x.dtype))
    h, w = x.shape[1:3]
    grid = -(-h // strides), -(-w // strides)
    meets = [
        [
            [
                (i, (a + pad - rate * i) // strides)
                for i in range(k)
                if (a + pad - rate * i) % strides == 0
            ]
            for a in range(strides)
        ]
        for k, pad in zip(kernel.shape[:2], pads, strict=True)
    ]
    margins = []
    for axis in range(2):
        shifts = [shift for of_grid in meets[axis] for _, shift in of_grid]
        end = grid[axis] + max(shifts) - cotangent.shape[1 + axis]
        margins.append((max(0, -min(shifts)), max(0, end)))

    def of_image(image: Float[Array, "h2 w2 c"]) -> Float[Array, "h w c"]:
        image = jnp.pad(image, [*margins, (0, 0)])

        def of_grid(a: int, b: int) -> jax.Array:
            total = jnp.zeros((*grid, x.shape[-1]), kernel.dtype)
            for (i, down), (j, right) in itertools.product(meets[0][a], meets[1][b]):
                start = margins[0][0] + down, margins[1][0] + right
                total += _wide(_view(image, start, grid)) * kernel[i, j][None]
            return total.astype(x.dtype)

        rows = [
            jnp.stack([of_grid(a, b) for b in range(strides)], axis=2)
            for a in range(strides)
        ]
        grids = jnp.stack(rows, axis=1)
        return grids.reshape(strides * grid[0], strides * grid[1], -1)[:h, :w]

    return over_images(of_image, cotangent)


def shifted_kernel_gradient(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "kh kw 1 c"],
    cotangent: Float[Array, "b h2 w2 c"],
    *,
    strides: int,
    rate: int,
    pads: tuple[int, int],
) -> Float[Array, "kh kw 1 c"]:
    """Multiplies cotangent and shifted image, and adds up the pixels of each tap.

    XLA:CPU reduces a product slowly. So the rows are first added up in groups, which it
    fuses with the product, and the rest is a matrix product with ones.
    """
    h, w, c = cotangent.shape[1:]
    groups = min(_GROUPS, h)
    rows = -(-h // groups)
    more = groups * rows - h

    def of_image(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
        bottom = pads[0] + strides * more
        image = jnp.pad(pair[0], ((pads[0], bottom), (pads[1], pads[1]), (0, 0)))
        image = lax.optimization_barrier(image)  # else each product pads it again
        other = jnp.pad(pair[1], ((0, more), (0, 0), (0, 0)))
        ones = jnp.ones(rows * w, _wide(x).dtype)

        def of_tap(i: int, j: int) -> Float[Array, " c"]:
            size = groups * rows, w
            view = _view(image, (rate * i, rate * j), size, strides)
            parts = zip(jnp.split(view, groups), jnp.split(other, groups), strict=True)
            return ones @ sum(_wide(a) * _wide(b) for a, b in parts).reshape(-1, c)

        return jnp.stack([of_tap(i, j) for i, j in np.ndindex(kernel.shape[:2])])

    total = lax.map(of_image, (x, cotangent)).sum(axis=0)
    return total.reshape(kernel.shape).astype(kernel.dtype)


def reduced_kernel_gradient(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "kh kw 1 c"],
    cotangent: Float[Array, "b h2 w2 c"],
    *,
    strides: int,
    rate: int,
    pads: tuple[int, int],
) -> Float[Array, "kh kw 1 c"]:
    """Multiplies cotangent and shifted images, and reduces the product of each tap."""
    size = cotangent.shape[1:3]
    x = jnp.pad(x, [(0, 0), *((pad, pad) for pad in pads), (0, 0)])

    def of_tap(i: int, j: int) -> Float[Array, " c"]:
        start = rate * i, rate * j
        view = jax.vmap(lambda image: _view(image, start, size, strides))(x)
        return (_wide(view) * _wide(cotangent)).sum(axis=(0, 1, 2))

    taps = [of_tap(i, j) for i, j in np.ndindex(kernel.shape[:2])]
    return jnp.stack(taps).reshape(kernel.shape).astype(kernel.dtype)


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _output_size(
    x: jax.Array, kernel: jax.Array, strides: int, rate: int, pads: tuple[int, int]
) -> tuple[int, int]:
    h, w = (
        (n + 2 * pad - rate * (k - 1) - 1) // strides + 1
        for n, k, pad in zip(x.shape[1:3], kernel.shape[:2], pads, strict=True)
    )
    return h, w


def _view(
    image: Float[Array, "h w c"],
    start: tuple[int, int],
    size: tuple[int, int],
    strides: int = 1,
) -> Float[Array, "h2 w2 c"]:
    """Returns each `strides`-th pixel of a window of the image."""
    ends = [a + strides * (n - 1) + 1 for a, n in zip(start, size, strict=True)]
    return lax.slice(
        image, (*start, 0), (*ends, image.shape[-1]), (strides, strides, 1)
    )

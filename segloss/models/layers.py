"""Layers that the networks share."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Key

from segloss.models.norms import NormedModule, apply_norm, like


def conv_norm(
    x: Float[Array, "b h w _"],
    features: int,
    size: int,
    *,
    conv: str,
    norm_name: str,
    stride: int = 1,
    rate: int = 1,
    padding: str | int | None = None,
    norm: str,
    dtype: str,
    **how: Any,
) -> Float[Array, "b h2 w2 {features}"]:
    """Applies a convolution, then a norm, as two submodules of the calling module.

    Args:
        x: activations.
        features: number of output channels.
        size: kernel height and width, odd.
        conv: name of the convolution. It has a bias only if `norm` is "none".
        norm_name: name of the norm.
        stride: stride of the convolution.
        rate: dilation of the kernel.
        padding: None pads each side by `rate * (size // 2)` zeros, so the output size
            is ceil(input size / stride). "SAME" gives this size, too, but at stride 2
            it pads an even size less at the top and left, as TensorFlow does.
        norm: "batch", "frozen", "group" or "none"; see `apply_norm`.
        dtype: dtype of the computation and of the output; parameters are float32.
        **how: further arguments of `apply_norm`.
    """
    x = nn.Conv(
        features,
        (size, size),
        strides=stride,
        padding=rate * (size // 2) if padding is None else padding,
        kernel_dilation=rate,
        use_bias=norm == "none",
        kernel_init=he_normal,
        dtype=dtype,
        name=conv,
    )(x)
    return apply_norm(x, name=norm_name, norm=norm, dtype=dtype, **how)


class ConvNormReLU(NormedModule, kw_only=True):
    """3x3 convolution to `features` channels, norm and ReLU; keeps height and width."""

    features: int

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w _"],
        *,
        train: bool,
        sample_valid: Bool[Array, " b"] | None = None,
    ) -> Float[Array, "b h w {self.features}"]:
        how = dict(train=train, sample_valid=sample_valid, **self.norm_fields)
        x = conv_norm(x, self.features, 3, conv="conv", norm_name="norm", **how)
        return nn.relu(x)


class Dropout(nn.Module, kw_only=True):
    """Dropout: Srivastava et al. 2014 (JMLR 15).

    With `train=True`, sets a fraction of the activations to 0 and divides the others by
    1 minus that fraction; with `train=False`, returns the input. The random draw of a
    sample depends on its position in the global batch, so results do not depend on the
    number of devices. Needs the PRNG stream "dropout" in training.

    Attributes:
        rate: fraction of the activations to drop, in [0, 1).
        axis_name: name of a pmap or shard_map axis over which the batch is split.
    """

    rate: float
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "b *spatial c"], *, train: bool
    ) -> Float[Array, "b *spatial c"]:
        if not train or self.rate == 0 or self.is_initializing():
            return x
        place = jnp.arange(len(x))
        if self.axis_name is not None:
            place += jax.lax.axis_index(self.axis_name) * len(x)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(self.make_rng("dropout"), place)
        draw = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.rate, x[0].size))
        return jnp.where(draw(keys).reshape(x.shape), x / (1 - self.rate), 0)


class UpConv(nn.Module, kw_only=True):
    """Up-convolution with a 2x2 or 2x2x2 kernel; doubles each spatial size.

    A transposed convolution of stride 2. Its windows do not overlap, so it is a single
    matrix product, which XLA:CPU runs ten times as fast as `nn.ConvTranspose`. Pixel
    `(i, j)` of each 2x2 output square is computed with `kernel[i, j]`, as in
    `torch.nn.ConvTranspose2d`; `nn.ConvTranspose` flips the kernel.

    Attributes:
        features: number of output channels.
        use_bias: False if a norm follows, since the norm would cancel a bias.
        dtype: dtype of the computation and of the output; parameters are float32.
    """

    features: int
    use_bias: bool = True
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x: Float[Array, "b *small c"]
    ) -> Float[Array, "b *large {self.features}"]:
        b, *size, c = x.shape
        # Each output pixel depends on one input pixel, so the fan-in is c.
        init = functools.partial(he_normal, fan_in=c)
        kernel = self.param("kernel", init, (2,) * len(size) + (c, self.features))
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        axes, offsets = "dhw"[: len(size)], "ijk"[: len(size)]
        both = "".join(map("".join, zip(axes, offsets, strict=True)))
        x = jnp.einsum(f"b{axes}x,{offsets}xy->b{both}y", x, kernel)
        x = x.reshape(b, *(2 * n for n in size), self.features)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            x += like(x, bias.astype(self.dtype))
        return x


def rematerialised(
    module: type[nn.Module], *, remat: bool, static: int = 3
) -> type[nn.Module]:
    """Returns a module class that recomputes its activations in the backward pass.

    Args:
        module: class of the module.
        remat: False returns the class unchanged.
        static: position of `train` among the arguments of `__call__`, where `self` is
            0. `nn.remat` traces all other arguments.
    """
    return nn.remat(module, static_argnums=(static,)) if remat else module


def multiply_channels(
    x: Float[Array, "b *spatial c"],
    kernel: Float[Array, "*ones c n"],
    *_: Any,
    precision: jax.lax.PrecisionLike = None,
    **__: Any,
) -> Float[Array, "b *spatial n"]:
    """Computes a 1x1 convolution as a matrix product.

    An argument of `nn.Conv`, in place of `jax.lax.conv_general_dilated`. The other
    arguments of that function are ignored: they do not affect a 1x1 kernel of stride 1.
    """
    kernel = kernel.reshape(kernel.shape[-2:])
    return jnp.einsum("...x,xy->...y", x, kernel, precision=precision)


def he_normal(
    key: Key[Array, ""],
    shape: tuple[int, ...],
    dtype: DTypeLike = jnp.float32,
    *,
    fan_in: int | None = None,
) -> Float[Array, "..."]:
    """He initialisation, which preserves the scale of activations under ReLU.

    Gaussian with variance 2 / fan-in: He et al. 2015 (arXiv:1502.01852), eq. 10.

    Args:
        key: PRNG key.
        shape: shape of the kernel, output channels last.
        dtype: dtype of the kernel.
        fan_in: number of inputs per output; None takes the product of all axes of
            `shape` but the last.
    """
    fan_in = fan_in or math.prod(shape[:-1])
    # Drawn flat: the numbers equal those of a draw of `shape`, which XLA:CPU compiles
    # 7 times as slowly (two seconds per kernel).
    draw = jax.random.normal(key, (math.prod(shape),), dtype).reshape(shape)
    return math.sqrt(2 / fan_in) * draw


def blank_padding(
    images: Float[Array, "b *spatial c"], sample_valid: Bool[Array, " b"] | None
) -> Float[Array, "b *spatial c"]:
    """Sets the images of padding samples to zero, even where they are NaN.

    `sample_valid` is False for padding samples; None returns the images unchanged.
    """
    if sample_valid is None:
        return images
    return jnp.where(jnp.expand_dims(sample_valid, range(1, images.ndim)), images, 0)


def enlarge(
    logits: Float[Array, "b *small c"], size: tuple[Any, ...]
) -> Float[Array, "b *large c"]:
    """Resizes bilinearly to the spatial size `size`, with half-pixel centres."""
    shape = (logits.shape[0], *size, logits.shape[-1])
    return jax.image.resize(logits, shape, "bilinear")


def enlarge_by(
    stride: int, logits: Float[Array, "b h w c"], size: tuple[Any, ...]
) -> Float[Array, "b h2 w2 c"]:
    """Resizes bilinearly by the integer factor `stride`, then crops to `size`."""
    large = enlarge(logits, tuple(stride * n for n in logits.shape[1:3]))
    return large[:, : size[0], : size[1]]


def space_to_depth(
    images: Float[Array, "b h w c"], *, stride: int
) -> Float[Array, "b -(-h//{stride}) -(-w//{stride}) {stride}**2*c"]:
    """Stacks the pixels of each `stride x stride` square along the channel axis.

    Unlike pooling, this loses no information. Sizes that are not multiples of `stride`
    are padded with zeros at the bottom and on the right.
    """
    b, h, w, c = images.shape
    x = jnp.pad(images, ((0, 0), (0, -h % stride), (0, -w % stride), (0, 0)))
    x = x.reshape(b, -(-h // stride), stride, -(-w // stride), stride, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, x.shape[1], x.shape[3], -1)

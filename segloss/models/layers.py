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
    norm: str,
    norm_momentum: float = 0.9,
    dtype: str,
    axis_name: str | None,
    train: bool,
    sample_valid: Bool[Array, " b"] | None,
) -> Float[Array, "b h2 w2 {features}"]:
    """Convolution and normalisation, as two submodules of the module that calls.

    Args:
        x: activations.
        features: output channels.
        size: height and width of the kernel, odd.
        conv: name of the convolution. It has a bias only where `norm` is "none".
        norm_name: name of the norm.
        stride: of the convolution. All sides are padded alike, as torch does and XLA's
            "SAME" does not, so the size becomes ceil(size / stride).
        rate: dilation of the kernel.
        norm: as for `apply_norm`, and so is the rest.
        norm_momentum: share of the running statistics that one training step keeps.
        dtype: of computation and output; parameters are float32.
        axis_name: mapped device axis whose devices share batch statistics.
        train: True normalises by the batch.
        sample_valid: False marks padding samples.
    """
    x = nn.Conv(
        features,
        (size, size),
        strides=stride,
        padding=rate * (size // 2),
        kernel_dilation=rate,
        use_bias=norm == "none",
        kernel_init=he_normal,
        dtype=dtype,
        name=conv,
    )(x)
    how = dict(train=train, sample_valid=sample_valid, norm_momentum=norm_momentum)
    how |= dict(dtype=dtype, axis_name=axis_name)
    return apply_norm(x, norm=norm, name=norm_name, **how)


class ConvNormReLU(NormedModule, kw_only=True):
    """`conv_norm` of 3x3 that keeps the size, to `features` channels, then ReLU."""

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
    """Sets a share of the activations to 0 and scales up the rest, in training only.

    Srivastava et al. 2014 (JMLR 15). What is dropped of a sample depends on its place
    in the global batch, so that n devices equal one. Needs the PRNG stream "dropout".

    Attributes:
        rate: share that is dropped, in [0, 1).
        axis_name: mapped device axis over which the batch is split.
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
    """2x2 up-convolution, or 2x2x2: twice each spatial size.

    A transposed convolution of stride 2. As its windows do not overlap it is one matrix
    product, which XLA runs ten times as fast on CPU as `nn.ConvTranspose`. The pixel
    `(i, j)` of a square comes from `kernel[i, j]`, as in torch; flax's is flipped.

    Attributes:
        features: output channels.
        use_bias: False where a norm follows, which would take a bias away.
        dtype: dtype of computation and output; parameters are float32.
    """

    features: int
    use_bias: bool = True
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x: Float[Array, "b *small c"]
    ) -> Float[Array, "b *large {self.features}"]:
        b, *size, c = x.shape
        # Each output pixel sees one input pixel, so the fan-in is c.
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


def multiply_channels(
    x: Float[Array, "b *spatial c"],
    kernel: Float[Array, "*ones c n"],
    *_: Any,
    precision: jax.lax.PrecisionLike = None,
    **__: Any,
) -> Float[Array, "b *spatial n"]:
    """A convolution with a kernel of one pixel, as a matrix product.

    For `nn.Conv` in place of `jax.lax.conv_general_dilated`, whose other arguments do
    nothing to such a kernel unless it strides.
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
    """Weights that keep the scale of rectified inputs.

    Gaussian of variance 2 / fan-in: He et al. 2015 (arXiv:1502.01852), eq. 10.

    Args:
        key: PRNG key.
        shape: of the kernel, output channels last.
        dtype: of the kernel.
        fan_in: inputs of one output; all axes of `shape` but the last unless said.
    """
    fan_in = fan_in or math.prod(shape[:-1])
    # The same numbers as a draw of `shape`, which takes XLA's CPU compiler 7 times as
    # long (two seconds a kernel).
    draw = jax.random.normal(key, (math.prod(shape),), dtype).reshape(shape)
    return math.sqrt(2 / fan_in) * draw


def blank_padding(
    images: Float[Array, "b *spatial c"], sample_valid: Bool[Array, " b"] | None
) -> Float[Array, "b *spatial c"]:
    """Zeros in place of padding samples, which may hold anything, NaN included."""
    if sample_valid is None:
        return images
    return jnp.where(jnp.expand_dims(sample_valid, range(1, images.ndim)), images, 0)


def enlarge(
    logits: Float[Array, "b *small c"], size: tuple[Any, ...]
) -> Float[Array, "b *large c"]:
    """Bilinear interpolation to a spatial size, corners not aligned."""
    shape = (logits.shape[0], *size, logits.shape[-1])
    return jax.image.resize(logits, shape, "bilinear")


def enlarge_by(
    stride: int, logits: Float[Array, "b h w c"], size: tuple[Any, ...]
) -> Float[Array, "b h2 w2 c"]:
    """Bilinear interpolation by a whole factor, cut to a size."""
    large = enlarge(logits, tuple(stride * n for n in logits.shape[1:3]))
    return large[:, : size[0], : size[1]]


def space_to_depth(
    images: Float[Array, "b h w c"], *, stride: int
) -> Float[Array, "b -(-h//{stride}) -(-w//{stride}) {stride}**2*c"]:
    """Turns each `stride x stride` square of pixels into one pixel of more channels.

    Loses nothing, unlike pooling. Sizes that `stride` does not divide are filled up
    with zeros at the bottom and on the right.
    """
    b, h, w, c = images.shape
    x = jnp.pad(images, ((0, 0), (0, -h % stride), (0, -w % stride), (0, 0)))
    x = x.reshape(b, -(-h // stride), stride, -(-w // stride), stride, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, x.shape[1], x.shape[3], -1)

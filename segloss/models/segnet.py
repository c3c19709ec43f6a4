"""SegNet."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, UInt8

from segloss.models.checks import check_hyperparameters
from segloss.models.layers import conv_norm, rematerialised
from segloss.models.network import Network
from segloss.models.norms import NormedModule
from segloss.models.vgg import (
    VGG16_STAGE_SIZES,
    check_stage_sizes,
    make_backbone,
    stage_width,
)


class SegNet(Network, kw_only=True):
    """SegNet: Badrinarayanan et al. 2017 (arXiv:1511.00561), figure 2.

    The encoder is VGG-16 with a norm after each convolution; the decoder mirrors it.
    Each decoder stage unpools, i.e. moves every value to the position of the maximum in
    the encoder's pooling window, and then convolves. The last convolution computes the
    logits. Pooling rounds sizes up and unpooling restores them, so any image size
    works.

    Adds these attributes to those of `Network`.

    Attributes:
        stage_sizes: number of convolutions in each of the five stages of VGG-16.
        width: channels of the first stage of VGG-16; 64 in the paper.
    """

    stage_sizes: Sequence[int] = VGG16_STAGE_SIZES
    width: int = 64

    def __post_init__(self):
        check_hyperparameters(self, at_least=dict(width=1))
        check_stage_sizes(self)
        super().__post_init__()

    @nn.compact
    def _logits(
        self,
        images: Float[Array, "b h w _"],
        *,
        train: bool,
        sample_valid: Bool[Array, " b"] | None,
    ) -> Float[Array, "b h w {self.num_classes}"]:
        backbone = make_backbone(self)
        x = images.astype(self.dtype)
        pooled = []
        for number in range(1, 6):
            x = backbone.stage(x, number, train=train, sample_valid=sample_valid)
            hw = x.shape[1:3]
            x, indices = max_pool_with_indices(x)
            pooled.append((indices, hw))
        make_decoder = rematerialised(Decoder, remat=self.remat)
        for number in range(5, 0, -1):
            x = max_unpool(x, *pooled.pop())
            # Mirrors the encoder; the last convolution of all is the head.
            size = self.stage_sizes[number - 1]
            widths = [stage_width(self.width, number)] * (size - 1)
            if number > 1:
                widths.append(stage_width(self.width, number - 1))
            decoder = make_decoder(
                widths=widths, name=f"decoder{number}", **self.norm_fields
            )
            x = decoder(x, sample_valid, train)
        return self._head(x, window=3)


class Decoder(NormedModule, kw_only=True):
    """A 3x3 convolution per entry of `widths`, each followed by a norm and a ReLU.

    The entries of `widths` are the numbers of channels.
    """

    widths: Sequence[int]

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w _"],
        sample_valid: Bool[Array, " b"] | None,
        train: bool,
    ) -> Float[Array, "b h w _"]:
        for i, width in enumerate(self.widths, start=1):
            x = conv_norm(
                x,
                width,
                3,
                conv=f"conv{i}",
                norm_name=f"norm{i}",
                train=train,
                sample_valid=sample_valid,
                **self.norm_fields,
            )
            x = nn.relu(x)
        return x


def max_pool_with_indices(
    x: Float[Array, "b h w c"],
) -> tuple[Float[Array, "b h2 w2 c"], UInt8[Array, "b h2 w2 c"]]:
    """Max-pools 2x2 windows and returns the index of the maximum in each window.

    Odd sizes are rounded up. The pixels of a window have the indices 0, 1 (first row)
    and 2, 3 (second row). Of equal pixels the first one is chosen and alone receives
    the gradient.
    """
    _, h, w, _ = x.shape
    below = ((0, 0), (0, h % 2), (0, w % 2), (0, 0))
    return _pool_even(jnp.pad(x, below, constant_values=-jnp.inf))


# A custom gradient, since that of strided slices doubles the memory traffic on a TPU.
@jax.custom_vjp
def _pool_even(
    x: Float[Array, "b h w c"],
) -> tuple[Float[Array, "b h2 w2 c"], UInt8[Array, "b h2 w2 c"]]:
    pixels = [x[:, i::2, j::2] for i in range(2) for j in range(2)]
    highest = functools.reduce(jnp.maximum, pixels)
    places = [jnp.full(highest.shape, place, jnp.uint8) for place in range(4)]
    return highest, jnp.select([pixel == highest for pixel in pixels], places)


def _pool_even_forward(x):
    pooled, indices = _pool_even(x)
    return (pooled, indices), indices


def _pool_even_backward(indices, gradients):
    of_pooled, _ = gradients
    _, h2, w2, _ = indices.shape
    return (max_unpool(of_pooled, indices, (2 * h2, 2 * w2)),)


_pool_even.defvjp(_pool_even_forward, _pool_even_backward)


def max_unpool(
    x: Float[Array, "b h2 w2 c"],
    indices: UInt8[Array, "b h2 w2 c"],
    hw: tuple[int, int],
) -> Float[Array, "b h w c"]:
    """Moves each value to its index in a 2x2 window of the output; the rest is zero.

    `indices` are those of `max_pool_with_indices`. The output is cropped to `hw`, the
    size (height, width) before pooling. Windows do not overlap, so four comparisons per
    window replace a scatter.
    """
    b, h2, w2, c = x.shape
    pixels = jnp.arange(4, dtype=indices.dtype).reshape(1, 1, 2, 1, 2, 1)
    here = indices[:, :, None, :, None] == pixels
    x = jnp.where(here, x[:, :, None, :, None], 0)
    return x.reshape(b, 2 * h2, 2 * w2, c)[:, : hw[0], : hw[1]]

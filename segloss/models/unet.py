"""U-Net."""

import functools
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from segloss.errors import SeglossError
from segloss.models.checks import LARGEST, check_hyperparameters
from segloss.models.layers import (
    ConvNormReLU,
    UpConv,
    enlarge_by,
    rematerialised,
    space_to_depth,
)
from segloss.models.network import Network
from segloss.models.norms import NormedModule


class UNet(Network, kw_only=True):
    """U-Net: Ronneberger et al. 2015 (arXiv:1505.04597), figure 1.

    Departs from the paper in four points, as later implementations do. Convolutions are
    padded, so the logits have the size of the images and the encoder's features (skips)
    are not cropped. A norm follows each 3x3 convolution. There is no dropout. Pooling
    rounds sizes up and up-convolved maps are cropped to the size of their skip, so any
    image size works.

    Adds these attributes to those of `Network`.

    Attributes:
        depth: number of times the size is halved; 4 in the paper.
        width: channels at full size, doubled at each halving; 64 in the paper.
        norm: "none" in the paper.
        input_stride: 1 in the paper. With n, each square of n x n pixels becomes one
            pixel with more channels, the network runs at 1 / n of the image size, and
            its logits are upsampled bilinearly. 2 takes a third of the time and makes
            edges coarser.
    """

    depth: int = 4
    width: int = 64
    input_stride: int = 1

    def __post_init__(self):
        at_least = dict(depth=0, width=1, input_stride=1)
        check_hyperparameters(self, at_least=at_least)
        if self.width * 2 ** min(self.depth, 64) > LARGEST:
            raise SeglossError(
                "UNet: width * 2**depth, the features at the bottom, must be <= "
                f"{LARGEST}, got width={self.width} and depth={self.depth}."
            )
        super().__post_init__()

    @nn.compact
    def _logits(
        self,
        images: Float[Array, "b h w _"],
        *,
        train: bool,
        sample_valid: Bool[Array, " b"] | None,
    ) -> Float[Array, "b h2 w2 {self.num_classes}"]:
        make_convs = rematerialised(DoubleConv, remat=self.remat)
        convs = functools.partial(make_convs, **self.norm_fields)
        how = (sample_valid, train)
        x = space_to_depth(images.astype(self.dtype), stride=self.input_stride)
        skips = []
        for level in range(self.depth):
            x = convs(features=self.width << level, name=f"down{level}")(x, *how)
            skips.append(x)
            x = nn.max_pool(x, (2, 2), strides=(2, 2), padding="SAME")  # ceil(size / 2)
        x = convs(features=self.width << self.depth, name="bottom")(x, *how)
        for level in reversed(range(self.depth)):
            skip = skips.pop()
            features = self.width << level
            x = UpConv(features=features, dtype=self.dtype, name=f"upconv{level}")(x)
            x = x[:, : skip.shape[1], : skip.shape[2]]
            x = jnp.concatenate([skip, x], axis=-1)
            x = convs(features=features, name=f"up{level}")(x, *how)
        return self._head(x)

    def _enlarge(
        self, logits: Float[Array, "b h w c"], size: tuple[Any, ...]
    ) -> Float[Array, "b h2 w2 c"]:
        return enlarge_by(self.input_stride, logits, size)


class DoubleConv(NormedModule, kw_only=True):
    """Two 3x3 convolutions to `features` channels, each with a norm and a ReLU."""

    features: int

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w _"],
        sample_valid: Bool[Array, " b"] | None,
        train: bool,
    ) -> Float[Array, "b h w {self.features}"]:
        for i in range(2):
            conv = ConvNormReLU(
                features=self.features, name=f"conv{i}", **self.norm_fields
            )
            x = conv(x, train=train, sample_valid=sample_valid)
        return x

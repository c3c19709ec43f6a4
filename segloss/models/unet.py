"""U-Net."""

import functools

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from segloss.models.layers import (
    DTYPES,
    ConvNormReLU,
    UpConv,
    blank_padding,
    check_hyperparameters,
    enlarge,
    he_normal,
    space_to_depth,
)
from segloss.models.norms import NORMS, NormedModule


class UNet(NormedModule, kw_only=True):
    """U-Net: Ronneberger et al. 2015 (arXiv:1505.04597), figure 1.

    Departs from the paper in four points, as later implementations do: convolutions are
    padded, so the logits have the size of the images and skips need no crop; a norm
    follows each 3x3 convolution; there is no drop-out; and pooling rounds sizes up, the
    up-convolved map being cut to the size of its skip, so any image size works.

    Parameters are float32. Weights are drawn from He's normal distribution.

    Attributes beside those of `NormedModule`; the head is float32 in any case:
        num_classes: channels of the logits.
        depth: how often the size is halved; 4 in the paper.
        width: channels at full size, doubled at each halving; 64 in the paper.
        norm: "none" is the paper.
        input_stride: with 2, the network works at half the image size on squares of
            2x2 pixels as channels, and its logits are enlarged bilinearly: a third of
            the time, for coarser edges. 1 is the paper.
        remat: True computes each level's activations again for the gradient instead of
            keeping them (`jax.checkpoint`): less memory, a third more time.

    Raises:
        ValueError: at construction, if a hyperparameter is out of its range.
    """

    num_classes: int
    depth: int = 4
    width: int = 64
    input_stride: int = 1
    remat: bool = False

    def __post_init__(self):
        check_hyperparameters(
            self,
            at_least=dict(num_classes=1, depth=0, width=1, input_stride=1),
            one_of=dict(norm=NORMS, dtype=DTYPES),
        )
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "b h w _"],
        *,
        train: bool,
        sample_valid: Bool[Array, " b"] | None = None,
        resize: bool = True,
    ) -> Float[Array, "b h2 w2 {self.num_classes}"]:
        """Class scores of every pixel, float32.

        Args:
            images: normalised colours, of any size.
            train: True normalises by the batch and updates `batch_stats`, which must
                then be mutable.
            sample_valid: False marks padding samples. They may hold anything, and
                change neither the statistics nor the logits of the others.
            resize: False leaves logits at the size at which they are computed.
        """
        images = blank_padding(images, sample_valid)
        # `train` must be known where the level is traced.
        make_convs = (
            nn.remat(DoubleConv, static_argnums=(3,)) if self.remat else DoubleConv
        )
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
        logits = nn.Conv(
            self.num_classes,
            (1, 1),
            kernel_init=he_normal,
            dtype="float32",
            name="head",
        )(x)
        if not resize:
            return logits
        _, h, w, _ = images.shape
        size = tuple(self.input_stride * n for n in logits.shape[1:3])
        return enlarge(logits, size)[:, :h, :w]


class DoubleConv(NormedModule, kw_only=True):
    """Two `ConvNormReLU` of `features` channels in a row."""

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

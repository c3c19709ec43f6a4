"""V-Net."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from segloss.errors import SeglossError
from segloss.models.checks import are_counts, check_hyperparameters
from segloss.models.layers import UpConv, he_normal, rematerialised
from segloss.models.network import Network
from segloss.models.norms import NormedModule, apply_norm


class VNet(Network, kw_only=True):
    """V-Net: Milletari et al. 2016 (arXiv:1606.04797), figure 2 and table 1.

    Residual stages of 5x5x5 convolutions, separated by strided 2x2x2 convolutions
    instead of pooling. Each stage adds its input to the output of its last convolution;
    the input of a decoder stage is the up-convolved map concatenated with the skip,
    i.e. the encoder's features of the same size. Accepts volumes, and images, for which
    kernels are 5x5 and 2x2.

    Departs from the paper in three points. Norms follow the convolutions, unless `norm`
    is "none". Strided convolutions round sizes up and up-convolved maps are cropped to
    the size of their skip, so any size works. The first stage repeats all channels of
    its input, up to `width`, to form its residual.

    Adds these attributes to those of `Network`.

    Attributes:
        width: channels at full size, doubled at each halving; 16 in the paper.
        convs: number of 5x5x5 convolutions of each encoder stage, from the full size to
            the smallest. A decoder stage has as many as the encoder stage of its size.
    """

    width: int = 16
    convs: Sequence[int] = (1, 2, 3, 3, 3)

    def __post_init__(self):
        check_hyperparameters(self, at_least=dict(width=1))
        if not are_counts(self.convs):
            raise SeglossError(
                f"VNet: convs must be at least one number, each >= 1, got {self.convs}."
            )
        super().__post_init__()

    @nn.compact
    def _logits(
        self,
        images: Float[Array, "b *size _"],
        *,
        train: bool,
        sample_valid: Bool[Array, " b"] | None,
    ) -> Float[Array, "b *size {self.num_classes}"]:
        make_stage = rematerialised(VStage, remat=self.remat, static=4)
        x = images.astype(self.dtype)
        skips = []
        for level, convs in enumerate(self.convs):
            stage = make_stage(
                features=self.width << level,
                convs=convs,
                step="down" if level else None,
                name=f"down{level}",
                **self.norm_fields,
            )
            x = stage(x, None, sample_valid, train)
            skips.append(x)
        skips.pop()
        for level, skip in reversed(list(enumerate(skips))):
            stage = make_stage(
                features=self.width << level,
                convs=self.convs[level],
                step="up",
                name=f"up{level}",
                **self.norm_fields,
            )
            x = stage(x, skip, sample_valid, train)
        return self._head(x)


class VStage(NormedModule, kw_only=True):
    """A change of resolution, followed by convolutions with a residual connection.

    Adds these attributes to those of `NormedModule`.

    Attributes:
        features: channels after the change of resolution, without those of the skip.
        convs: number of 5x5x5 convolutions.
        step: "down" halves the size; "up" doubles it and concatenates the skip; None is
            the first stage, which keeps the size and repeats its input to `features`
            channels.
    """

    features: int
    convs: int
    step: str | None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b *_ c"],
        skip: Float[Array, "b *size c2"] | None,
        sample_valid: Bool[Array, " b"] | None,
        train: bool,
    ) -> Float[Array, "b *size c3"]:
        how = dict(train=train, sample_valid=sample_valid, **self.norm_fields)

        def norm(x, name):
            return apply_norm(x, name=name, **how)

        def conv(x, features, window, stride, name):
            return nn.Conv(
                features,
                (window,) * (x.ndim - 2),
                strides=stride,
                use_bias=self.norm == "none",
                kernel_init=he_normal,
                dtype=self.dtype,
                name=name,
            )(x)

        if self.step is None:
            repeats = -(-self.features // x.shape[-1])
            residual = jnp.tile(x, repeats)[..., : self.features]
        elif self.step == "down":
            x = norm(conv(x, self.features, 2, 2, "downconv"), "downnorm")
            residual = x = PReLU(dtype=self.dtype, name="downrelu")(x)
        else:
            x = UpConv(
                features=self.features,
                use_bias=self.norm == "none",
                dtype=self.dtype,
                name="upconv",
            )(x)
            x = x[(slice(None), *map(slice, skip.shape[1:-1]))]
            x = PReLU(dtype=self.dtype, name="uprelu")(norm(x, "upnorm"))
            residual = x = jnp.concatenate([x, skip], axis=-1)
        features = residual.shape[-1]
        for i in range(self.convs):
            x = norm(conv(x, features, 5, 1, f"conv{i}"), f"norm{i}")
            if i == self.convs - 1:
                x += residual
            x = PReLU(dtype=self.dtype, name=f"relu{i}")(x)
        return x


class PReLU(nn.Module, kw_only=True):
    """ReLU with a learned slope per channel below zero, initialised to 0.25.

    `slope * x` for x < 0: He et al. 2015 (arXiv:1502.01852), eq. 1. `flax.linen.PReLU`
    shares one slope among all channels.
    """

    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        init = nn.initializers.constant(0.25)
        slope = self.param("slope", init, x.shape[-1:]).astype(self.dtype)
        slope = jnp.expand_dims(slope, range(x.ndim - 1))
        return jnp.where(x >= 0, x, slope * x)

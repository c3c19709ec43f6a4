"""Residual networks, as backbones."""

import functools
from collections.abc import Iterator, Sequence

from flax import linen as nn
from jaxtyping import Array, Bool, Float

from segloss.models.checks import are_counts, check_hyperparameters
from segloss.models.layers import blank_padding, conv_norm
from segloss.models.norms import NormedModule

RESNET_STAGE_SIZES = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}


class ResNet(NormedModule, kw_only=True):
    """Residual network of bottlenecks: He et al. 2016 (arXiv:1512.03385), table 1.

    Gives the features of its four stages in place of classes. Below an `output_stride`
    of 32 the last stages dilate their 3x3 kernels instead of striding, so that weights
    see what they would see: Chen et al. 2017 (arXiv:1706.05587), sec. 3.1.

    Parameters are float32. Weights are drawn from He's normal distribution.

    Attributes beside those of `NormedModule`:
        stage_sizes: blocks of each stage; (3, 4, 6, 3) is ResNet-50, (3, 4, 23, 3) is
            ResNet-101.
        width: channels of the stem; stage i of 1 to 4 gives `2**(i + 1)` times as many.
        version: where a block strides: "v1" in its first 1x1 convolution (the paper,
            Caffe), "v1.5" in the 3x3 (torchvision).
        output_stride: 8, 16 or 32, that of the last features.
        multi_grid: a factor for the rate of each block of the last stage
            (arXiv:1706.05587, sec. 3.2.1), all of which then dilate alike; under None
            the first of v1.5 has the rate before the stage's own, as in torchvision.
        ceil_pool: True rounds the size up where the stem pools, as Caffe does.
        remat: True computes the activations of each stage again for the gradient
            instead of keeping them (`jax.checkpoint`).

    Raises:
        ValueError: at construction, if a hyperparameter is out of its range.
    """

    stage_sizes: Sequence[int] = RESNET_STAGE_SIZES["resnet50"]
    width: int = 64
    version: str = "v1.5"
    output_stride: int = 32
    multi_grid: Sequence[int] | None = None
    ceil_pool: bool = False
    remat: bool = False

    def __post_init__(self):
        check_hyperparameters(
            self,
            at_least=dict(width=1),
            one_of=dict(
                version=("v1", "v1.5"),
                output_stride=(8, 16, 32),
            ),
        )
        if not are_counts(self.stage_sizes, 4):
            raise ValueError(
                "ResNet: stage_sizes must be four numbers >= 1, "
                f"got {self.stage_sizes}."
            )
        last = self.stage_sizes[-1]
        if self.multi_grid is not None and not are_counts(self.multi_grid, last):
            raise ValueError(
                "ResNet: multi_grid must be a number >= 1 for each block of the last "
                f"stage, of which there are {last}, got {self.multi_grid}."
            )
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "b h w _"],
        *,
        train: bool,
        sample_valid: Bool[Array, " b"] | None = None,
    ) -> tuple[Float[Array, "b _ _ _"], ...]:
        """Features of the four stages, the first at stride 4, in `dtype`.

        Args:
            images: normalised colours, of any size.
            train: True normalises by the batch and updates `batch_stats`, which must
                then be mutable.
            sample_valid: False marks padding samples. They may hold anything, and
                change neither the statistics nor the features of the others.
        """
        apply = dict(train=train, sample_valid=sample_valid)
        x = blank_padding(images, sample_valid).astype(self.dtype)
        stem = dict(conv="conv1", norm_name="norm1", stride=2)
        x = conv_norm(x, self.width, 7, **stem, **self.norm_fields, **apply)
        pad = (1, 2) if self.ceil_pool else (1, 1)
        x = nn.max_pool(nn.relu(x), (3, 3), strides=(2, 2), padding=(pad, pad))
        # Traced arguments are positional there, and `train` must not be traced.
        make_stage = nn.remat(Stage, static_argnums=(3,)) if self.remat else Stage
        features = []
        for i, (stride, rates) in enumerate(self._strides_and_rates()):
            stage = make_stage(
                features=self.width << i,
                stride=stride,
                rates=rates,
                version=self.version,
                name=f"stage{i + 1}",
                **self.norm_fields,
            )
            x = stage(x, sample_valid, train)
            features.append(x)
        return tuple(features)

    def _strides_and_rates(self) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Of each stage the stride, and the rate of each block."""
        reached, rate = 4, 1
        for i, blocks in enumerate(self.stage_sizes):
            stride, first = 1 if i == 0 else 2, rate
            if reached * stride > self.output_stride:
                stride, rate = 1, rate * stride
            reached *= stride
            # The 3x3 kernel of a block that strides lies on the pixels before the
            # stride in v1.5, behind it in v1. So it does where dilation replaces it.
            rates = [first if self.version == "v1.5" else rate] + [rate] * (blocks - 1)
            if i == 3 and self.multi_grid is not None:
                rates = [rate * k for k in self.multi_grid]
            yield stride, tuple(rates)


class Stage(NormedModule, kw_only=True):
    """Bottlenecks with features of one size.

    Attributes beside those of `NormedModule`:
        features: channels within a block, a fourth of those of the output.
        stride: of the first block.
        rates: dilation of each block.
        version: as in `ResNet`.
    """

    features: int
    stride: int
    rates: Sequence[int]
    version: str

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w _"],
        sample_valid: Bool[Array, " b"] | None,
        train: bool,
    ) -> Float[Array, "b h2 w2 4*{self.features}"]:
        for i, rate in enumerate(self.rates):
            x = Bottleneck(
                features=self.features,
                stride=self.stride if i == 0 else 1,
                rate=rate,
                version=self.version,
                project=i == 0,
                name=f"block{i}",
                **self.norm_fields,
            )(x, train=train, sample_valid=sample_valid)
        return x


class Bottleneck(NormedModule, kw_only=True):
    """1x1, 3x3 and 1x1 convolution beside a shortcut: arXiv:1512.03385, figure 5.

    Attributes beside those of `NormedModule`:
        features: channels within, a fourth of those of the output.
        stride: of the block.
        rate: dilation of the 3x3 convolution.
        version: as in `ResNet`.
        project: True puts a 1x1 convolution on the shortcut (sec. 3.3, option B).
    """

    features: int
    stride: int
    rate: int
    version: str
    project: bool

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w _"],
        *,
        train: bool,
        sample_valid: Bool[Array, " b"] | None,
    ) -> Float[Array, "b h2 w2 4*{self.features}"]:
        layer = functools.partial(
            conv_norm, train=train, sample_valid=sample_valid, **self.norm_fields
        )
        strides = (self.stride, 1) if self.version == "v1" else (1, self.stride)
        n = self.features
        y = layer(x, n, 1, conv="conv1", norm_name="norm1", stride=strides[0])
        how = dict(stride=strides[1], rate=self.rate)
        y = layer(nn.relu(y), n, 3, conv="conv2", norm_name="norm2", **how)
        y = layer(nn.relu(y), 4 * n, 1, conv="conv3", norm_name="norm3")
        if self.project:
            how = dict(conv="shortcut", norm_name="shortcut_norm", stride=self.stride)
            x = layer(x, 4 * n, 1, **how)
        return nn.relu(x + y)

"""Residual networks as backbones."""

import functools
from collections.abc import Iterator, Sequence

from flax import linen as nn
from jaxtyping import Array, Bool, Float

from segloss.errors import SeglossError
from segloss.models.checks import are_counts, check_hyperparameters
from segloss.models.layers import blank_padding, conv_norm, rematerialised
from segloss.models.norms import NormedModule

RESNET_STAGE_SIZES = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}


class ResNet(NormedModule, kw_only=True):
    """ResNet with bottleneck blocks: He et al. 2016 (arXiv:1512.03385), table 1.

    Returns the features of its four stages instead of class scores. If `output_stride`
    is less than 32, the 3x3 kernels of the last stages are dilated instead of strided,
    which preserves the field of view: Chen et al. 2017 (arXiv:1706.05587), sec. 3.1.

    Parameters are float32. Weights are drawn from He's normal distribution.

    Adds these attributes to those of `NormedModule`.

    Attributes:
        stage_sizes: number of blocks in each stage: (3, 4, 6, 3) for ResNet-50,
            (3, 4, 23, 3) for ResNet-101.
        width: channels of the first convolution; stage i (1 to 4) has
            `2**(i + 1) * width` output channels.
        version: which convolution of a block has the stride: in "v1" the first 1x1 (the
            paper and Caffe), in "v1.5" the 3x3 (torchvision).
        output_stride: stride of the last features: 8, 16 or 32.
        multi_grid: one factor per block of the last stage, which multiplies the stage's
            dilation (arXiv:1706.05587, sec. 3.2.1). None means no factors; then, in a
            stage that is dilated instead of strided, the first block of v1.5 keeps the
            dilation of the previous stage, as in torchvision.
        ceil_pool: True rounds the output size of the first pooling up, as Caffe does.
        remat: True recomputes the activations of each stage in the backward pass
            instead of storing them (`jax.checkpoint`).

    Raises:
        ValueError: at construction, if a hyperparameter is out of range.
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
            one_of=dict(version=("v1", "v1.5"), output_stride=(8, 16, 32)),
        )
        if not are_counts(self.stage_sizes, 4):
            raise SeglossError(
                "ResNet: stage_sizes must be four numbers >= 1, "
                f"got {self.stage_sizes}."
            )
        last = self.stage_sizes[-1]
        if self.multi_grid is not None and not are_counts(self.multi_grid, last):
            raise SeglossError(
                "ResNet: multi_grid must be None or a number >= 1 for each of the "
                f"{last} blocks of the last stage, got {self.multi_grid}."
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
        """Computes the features of the four stages in `dtype`, the first at stride 4.

        Args:
            images: normalised colours, of any size.
            train: True normalises by the statistics of the batch (with `norm="batch"`)
                and updates `batch_stats`, which must then be mutable. False uses the
                running statistics.
            sample_valid: False for padding samples. Their content is ignored: it
                affects neither the statistics nor the features of other samples. None
                means that there are none.
        """
        apply = dict(train=train, sample_valid=sample_valid)
        x = blank_padding(images, sample_valid).astype(self.dtype)
        stem = dict(conv="conv1", norm_name="norm1", stride=2)
        x = conv_norm(x, self.width, 7, **stem, **self.norm_fields, **apply)
        pad = (1, 2) if self.ceil_pool else (1, 1)
        x = nn.max_pool(nn.relu(x), (3, 3), strides=(2, 2), padding=(pad, pad))
        make_stage = rematerialised(Stage, remat=self.remat)
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
        """Yields the stride of each stage and the dilations of its blocks."""
        reached, rate = 4, 1
        for i, blocks in enumerate(self.stage_sizes):
            stride, first = 1 if i == 0 else 2, rate
            if reached * stride > self.output_stride:
                stride, rate = 1, rate * stride
            reached *= stride
            # In a block that strides, the 3x3 kernel sees the grid before the stride in
            # v1.5 and after it in v1. Dilation in place of the stride must match this.
            rates = [first if self.version == "v1.5" else rate] + [rate] * (blocks - 1)
            if i == 3 and self.multi_grid is not None:
                rates = [rate * k for k in self.multi_grid]
            yield stride, tuple(rates)


class Stage(NormedModule, kw_only=True):
    """A sequence of bottleneck blocks at one resolution.

    Adds these attributes to those of `NormedModule`.

    Attributes:
        features: channels inside a block, a quarter of the output channels.
        stride: stride of the first block.
        rates: dilation of each block.
        version: "v1" or "v1.5"; see `ResNet`.
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
    """Bottleneck block: arXiv:1512.03385, figure 5, right.

    A 1x1, a 3x3 and a 1x1 convolution, added to a shortcut of the input.

    Adds these attributes to those of `NormedModule`.

    Attributes:
        features: channels inside the block, a quarter of the output channels.
        stride: stride of the block: of one of its convolutions and of the shortcut.
        rate: dilation of the 3x3 convolution.
        version: "v1" or "v1.5"; see `ResNet`.
        project: True puts a 1x1 convolution on the shortcut (sec. 3.3, option B); False
            adds the input itself.
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

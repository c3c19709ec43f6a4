"""Residual networks, as backbones."""

import functools
from collections.abc import Iterator, Sequence

from flax import linen as nn
from jaxtyping import Array, Bool, Float

from segloss.models.layers import (
    DTYPES,
    NORMS,
    blank_padding,
    check_hyperparameters,
    conv_norm,
)

RESNET_STAGE_SIZES = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}


class ResNet(nn.Module, kw_only=True):
    """Residual network of bottlenecks: He et al. 2016 (arXiv:1512.03385), table 1.

    Gives the features of its four stages instead of classes. Where `output_stride` is
    under 32, the last stages dilate their kernels in place of striding, so that they
    keep field of view and weights: Chen et al. 2017 (arXiv:1706.05587), sec. 3.1.

    Parameters are float32. Weights are drawn from He's normal distribution.

    Attributes:
        stage_sizes: blocks of the stages: (3, 4, 6, 3) is ResNet-50, (3, 4, 23, 3) is
            ResNet-101.
        width: channels of the stem. Stage i from 0 gives `4 * width * 2**i`.
        version: where a block that strides does so: "v1" in the first 1x1 convolution
            (the paper, Caffe), "v1.5" in the 3x3 (torchvision).
        output_stride: 8, 16 or 32, the stride of the last stage's features.
        multi_grid: factors of the rates of the last stage's blocks (arXiv:1706.05587,
            sec. 3.2.1); None is all 1.
        previous_rate: True gives the first block of a dilated stage the rate of the
            stage before, as torchvision does; False that of its own stage, as Caffe's
            DeepLab does.
        ceil_pool: True rounds the size up where the stem pools, as Caffe does.
        norm: "batch", "frozen", "group" or "none"; see `apply_norm`.
        norm_momentum: share of the running statistics that one training step keeps.
        dtype: "float32" or "bfloat16", in which all is computed but the statistics of
            norms.
        axis_name: mapped device axis whose devices share batch statistics.
        remat: True computes each stage's activations again for the gradient instead of
            keeping them (`jax.checkpoint`): less memory, a third more time.

    Raises:
        ValueError: at construction, if a hyperparameter is out of its range.
    """

    stage_sizes: Sequence[int] = RESNET_STAGE_SIZES["resnet50"]
    width: int = 64
    version: str = "v1.5"
    output_stride: int = 32
    multi_grid: Sequence[int] | None = None
    previous_rate: bool = True
    ceil_pool: bool = False
    norm: str = "batch"
    norm_momentum: float = 0.9
    dtype: str = "float32"
    axis_name: str | None = None
    remat: bool = False

    def __post_init__(self):
        check_hyperparameters(
            self,
            at_least=dict(width=1),
            one_of=dict(
                version=("v1", "v1.5"),
                output_stride=(8, 16, 32),
                norm=NORMS,
                dtype=DTYPES,
            ),
        )
        if len(self.stage_sizes) != 4 or min(self.stage_sizes) < 1:
            raise ValueError(
                "ResNet: stage_sizes must be four numbers >= 1, "
                f"got {tuple(self.stage_sizes)}."
            )
        if self.multi_grid is not None and (
            len(self.multi_grid) != self.stage_sizes[-1] or min(self.multi_grid) < 1
        ):
            raise ValueError(
                "ResNet: multi_grid must be a number >= 1 for each of the "
                f"{self.stage_sizes[-1]} blocks of the last stage, "
                f"got {tuple(self.multi_grid)}."
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
        """Features of the stages, the first at stride 4, in `dtype`.

        Args:
            images: normalised colours, of any size.
            train: True normalises by the batch and updates `batch_stats`, which must
                then be mutable.
            sample_valid: False marks padding samples. They may hold anything, and
                change neither the statistics nor the features of the others.
        """
        images = blank_padding(images, sample_valid)
        how = dict(
            norm=self.norm,
            momentum=self.norm_momentum,
            dtype=self.dtype,
            axis_name=self.axis_name,
        )
        x = conv_norm(
            images.astype(self.dtype),
            self.width,
            7,
            conv="conv1",
            norm_name="norm1",
            stride=2,
            train=train,
            sample_valid=sample_valid,
            **how,
        )
        pad = (1, 2) if self.ceil_pool else (1, 1)
        x = nn.max_pool(nn.relu(x), (3, 3), strides=(2, 2), padding=(pad, pad))
        # `train` must be known where the stage is traced.
        make_stage = nn.remat(Stage, static_argnums=(3,)) if self.remat else Stage
        features = []
        for i, (stride, rates) in enumerate(self._strides_and_rates()):
            stage = make_stage(
                features=self.width << i,
                stride=stride,
                rates=rates,
                version=self.version,
                name=f"stage{i + 1}",
                **how,
            )
            x = stage(x, sample_valid, train)
            features.append(x)
        return tuple(features)

    def _strides_and_rates(self) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Of each stage the stride, and the rates of its blocks."""
        reached, rate = 4, 1
        for i, blocks in enumerate(self.stage_sizes):
            stride, first = 1 if i == 0 else 2, rate
            if reached * stride > self.output_stride:
                stride, rate = 1, rate * stride
            reached *= stride
            if not self.previous_rate:
                first = rate
            rates = (first, *[rate] * (blocks - 1))
            if i == len(self.stage_sizes) - 1 and self.multi_grid is not None:
                rates = tuple(
                    r * m for r, m in zip(rates, self.multi_grid, strict=True)
                )
            yield stride, rates


class Stage(nn.Module, kw_only=True):
    """Bottleneck blocks of a size.

    Attributes:
        features: channels within the blocks, a fourth of those of the output.
        stride: of the first block.
        rates: dilation of each block's 3x3 convolution.
        version: and the rest as in `ResNet`.
    """

    features: int
    stride: int
    rates: Sequence[int]
    version: str
    norm: str
    momentum: float
    dtype: str
    axis_name: str | None

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
                project=i == 0,
                version=self.version,
                norm=self.norm,
                momentum=self.momentum,
                dtype=self.dtype,
                axis_name=self.axis_name,
                name=f"block{i}",
            )(x, train=train, sample_valid=sample_valid)
        return x


class Bottleneck(nn.Module, kw_only=True):
    """1x1, 3x3 and 1x1 convolution beside a shortcut: arXiv:1512.03385, figure 5.

    Attributes:
        features: channels within, a fourth of those of the output.
        stride: of the block.
        rate: dilation of the 3x3 convolution.
        project: True puts a 1x1 convolution on the shortcut (option B of sec. 3.3).
        version: and the rest as in `ResNet`.
    """

    features: int
    stride: int
    rate: int
    project: bool
    version: str
    norm: str
    momentum: float
    dtype: str
    axis_name: str | None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w _"],
        *,
        train: bool,
        sample_valid: Bool[Array, " b"] | None,
    ) -> Float[Array, "b h2 w2 4*{self.features}"]:
        layer = functools.partial(
            conv_norm,
            norm=self.norm,
            momentum=self.momentum,
            dtype=self.dtype,
            axis_name=self.axis_name,
            train=train,
            sample_valid=sample_valid,
        )
        strides = (self.stride, 1) if self.version == "v1" else (1, self.stride)
        n = self.features
        y = layer(x, n, 1, conv="conv1", norm_name="norm1", stride=strides[0])
        y = nn.relu(y)
        y = layer(
            y, n, 3, conv="conv2", norm_name="norm2", stride=strides[1], rate=self.rate
        )
        y = layer(nn.relu(y), 4 * n, 1, conv="conv3", norm_name="norm3")
        if self.project:
            x = layer(
                x,
                4 * n,
                1,
                conv="shortcut",
                norm_name="shortcut_norm",
                stride=self.stride,
            )
        return nn.relu(x + y)

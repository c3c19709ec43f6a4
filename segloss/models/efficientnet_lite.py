"""EfficientNet-Lite as a backbone."""

import functools
import math
from collections.abc import Iterator, Sequence

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from segloss.errors import SeglossError
from segloss.models.checks import are_counts, check_hyperparameters
from segloss.models.depthwise import DepthwiseConv
from segloss.models.layers import blank_padding, conv_norm, rematerialised
from segloss.models.norms import NormedModule, apply_norm

# By stage: blocks, channels, stride, kernel size and expansion of EfficientNet-B0.
_SIZES, _WIDTHS = (1, 2, 2, 3, 3, 4, 1), (16, 24, 40, 80, 112, 192, 320)
_STRIDES, KERNELS = (1, 2, 2, 2, 1, 2, 1), (3, 3, 5, 3, 5, 5, 3)
EXPANSIONS = (1, 6, 6, 6, 6, 6, 6)
# Stages after which the stride doubles or the network ends.
_LAST_AT_STRIDE = (0, 1, 2, 4, 6)
_EPSILON = 1e-3


def scaled(width: float, depth: float) -> dict[str, tuple[int, ...]]:
    """Returns the stage sizes and widths of an EfficientNet-Lite.

    Compound scaling: arXiv:1905.11946, eq. 3. Channels are rounded to multiples of 8,
    by at most a tenth downwards. The Lite variant keeps the stem and the number of
    blocks of the first and the last stage.

    Args:
        width: factor on the channels.
        depth: factor on the number of blocks, rounded up.

    Returns:
        `stage_sizes` and `stage_widths` of `EfficientNetLite`.
    """
    middle = (math.ceil(depth * n) for n in _SIZES[1:-1])
    widths = []
    for channels in (width * n for n in _WIDTHS):
        rounded = max(8, int(channels + 4) // 8 * 8)
        widths.append(rounded + 8 if rounded < 0.9 * channels else rounded)
    sizes = (_SIZES[0], *middle, _SIZES[-1])
    return dict(stage_sizes=sizes, stage_widths=tuple(widths))


EFFICIENTNET_LITE = {
    "efficientnet_lite0": scaled(1.0, 1.0),
    "efficientnet_lite1": scaled(1.0, 1.1),
    "efficientnet_lite2": scaled(1.1, 1.2),
}


class EfficientNetLite(NormedModule, kw_only=True):
    """EfficientNet-Lite: Tan & Le 2019 (arXiv:1905.11946), table 1, made lighter.

    The Lite variant of the authors' code (github.com/tensorflow/tpu, release of March
    2020) has no squeeze-and-excitation, ReLU6 instead of swish, and a stem of the same
    width at every scale. Convolutions pad like TensorFlow's ("SAME"), as the published
    weights require. There is no stochastic depth. The last 1x1 convolution, which only
    the classifier of images uses, is left out.

    Returns the features of five resolutions instead of class scores. If `output_stride`
    is less than 32, the kernels of the last stages are dilated instead of strided, as
    in `ResNet`.

    Parameters are float32. Weights are drawn from He's normal distribution. Norms add
    1e-3 to the variance.

    Adds these attributes to those of `NormedModule`.

    Attributes:
        stage_sizes: number of blocks in each of the seven stages.
        stage_widths: output channels of each stage.
        stem_width: channels of the first convolution.
        output_stride: stride of the last features: 8, 16 or 32.
        norm_momentum: 0.99 in the authors' code.
        remat: True recomputes the activations of each stage in the backward pass
            instead of storing them (`jax.checkpoint`).

    Raises:
        ValueError: at construction, if a hyperparameter is out of range.
    """

    stage_sizes: Sequence[int] = _SIZES
    stage_widths: Sequence[int] = _WIDTHS
    stem_width: int = 32
    output_stride: int = 32
    norm_momentum: float = 0.99
    remat: bool = False

    def __post_init__(self):
        check_hyperparameters(
            self,
            at_least=dict(stem_width=1),
            one_of=dict(output_stride=(8, 16, 32)),
        )
        for name in ("stage_sizes", "stage_widths"):
            if not are_counts(values := getattr(self, name), len(_SIZES)):
                raise SeglossError(
                    f"EfficientNetLite: {name} must be seven numbers >= 1, "
                    f"got {values}."
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
        """Computes features in `dtype` at strides 2, 4, 8, 16 and 32.

        No stride is larger than `output_stride`. Arguments are those of `ResNet`.
        """
        apply = dict(train=train, sample_valid=sample_valid)
        x = blank_padding(images, sample_valid).astype(self.dtype)
        how = dict(stride=2, padding="SAME", epsilon=_EPSILON, **self.norm_fields)
        names = dict(conv="stem", norm_name="stem_norm")
        x = nn.relu6(conv_norm(x, self.stem_width, 3, **names, **how, **apply))
        make_stage = rematerialised(Stage, remat=self.remat)
        features = []
        for i, (stride, rates) in enumerate(self._strides_and_rates()):
            stage = make_stage(
                features=self.stage_widths[i],
                size=KERNELS[i],
                expansion=EXPANSIONS[i],
                stride=stride,
                rates=rates,
                name=f"stage{i + 1}",
                **self.norm_fields,
            )
            x = stage(x, sample_valid, train)
            if i in _LAST_AT_STRIDE:
                features.append(x)
        return tuple(features)

    def _strides_and_rates(self) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Yields the stride of each stage and the dilations of its blocks."""
        reached, rate = 2, 1
        for stride, blocks in zip(_STRIDES, self.stage_sizes, strict=True):
            # The kernel that strides sees the grid before the stride.
            first = rate
            if reached * stride > self.output_stride:
                stride, rate = 1, rate * stride
            reached *= stride
            yield stride, (first,) + (rate,) * (blocks - 1)


class Stage(NormedModule, kw_only=True):
    """A sequence of inverted bottleneck blocks at one resolution.

    Adds these attributes to those of `NormedModule`.

    Attributes:
        features: output channels of each block.
        size: kernel size of the depthwise convolutions.
        expansion: factor on the channels inside a block.
        stride: stride of the first block.
        rates: dilation of each block.
    """

    features: int
    size: int
    expansion: int
    stride: int
    rates: Sequence[int]

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w _"],
        sample_valid: Bool[Array, " b"] | None,
        train: bool,
    ) -> Float[Array, "b h2 w2 {self.features}"]:
        for i, rate in enumerate(self.rates):
            x = InvertedBottleneck(
                features=self.features,
                size=self.size,
                expansion=self.expansion,
                stride=self.stride if i == 0 else 1,
                rate=rate,
                add_input=i > 0,
                name=f"block{i}",
                **self.norm_fields,
            )(x, train=train, sample_valid=sample_valid)
        return x


class InvertedBottleneck(NormedModule, kw_only=True):
    """Inverted bottleneck block: Sandler et al. 2018 (arXiv:1801.04381), table 1.

    A 1x1 convolution that expands the channels, a depthwise convolution, and a 1x1
    convolution without an activation.

    Adds these attributes to those of `NormedModule`.

    Attributes:
        features: output channels.
        size: kernel size of the depthwise convolution.
        expansion: factor on the channels; 1 leaves the first convolution out.
        stride: stride of the depthwise convolution.
        rate: dilation of the depthwise convolution.
        add_input: True adds the input to the output.
    """

    features: int
    size: int
    expansion: int
    stride: int
    rate: int
    add_input: bool

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w _"],
        *,
        train: bool,
        sample_valid: Bool[Array, " b"] | None,
    ) -> Float[Array, "b h2 w2 {self.features}"]:
        how = dict(train=train, sample_valid=sample_valid, epsilon=_EPSILON)
        layer = functools.partial(conv_norm, size=1, **how, **self.norm_fields)
        y = x
        if self.expansion > 1:
            names = dict(conv="expand", norm_name="expand_norm")
            y = nn.relu6(layer(y, self.expansion * x.shape[-1], **names))
        y = self._depthwise(y)
        y = apply_norm(y, name="depthwise_norm", **how, **self.norm_fields)
        y = layer(nn.relu6(y), self.features, conv="project", norm_name="project_norm")
        return x + y if self.add_input else y

    def _depthwise(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        """Pads like TensorFlow and applies the depthwise convolution."""
        how = dict(size=self.size, rate=self.rate, dtype=self.dtype, name="depthwise")
        if self.stride == 1:
            return DepthwiseConv(**how)(x)
        pads = [(0, 0), *(self._padding(n) for n in x.shape[1:3]), (0, 0)]
        conv = DepthwiseConv(strides=self.stride, padding=0, **how)
        return conv(jnp.pad(x, pads))

    def _padding(self, length: int) -> tuple[int, int]:
        """Returns the zeros that "SAME" adds before and after an axis."""
        window = self.rate * (self.size - 1) + 1
        total = max(0, window - 1 - (length - 1) % self.stride)
        return total // 2, total - total // 2

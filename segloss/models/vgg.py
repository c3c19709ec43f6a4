"""VGG-16 as a backbone."""

from collections.abc import Sequence
from typing import Any

from flax import linen as nn
from jaxtyping import Array, Bool, Float

from segloss.errors import SeglossError
from segloss.models.checks import are_counts, check_hyperparameters
from segloss.models.layers import Dropout, blank_padding, conv_norm
from segloss.models.network import Network
from segloss.models.norms import NormedModule

VGG16_STAGE_SIZES = (2, 2, 3, 3, 3)


class VGG16(NormedModule, kw_only=True):
    """VGG-16: Simonyan & Zisserman 2015 (arXiv:1409.1556), table 1, column D.

    Five stages of 3x3 convolutions with ReLU, each followed by max-pooling. If
    `fc_width` is not 0, the first two fully connected layers, `fc6` and `fc7`, follow
    as convolutions that keep the spatial size. Pooling rounds sizes up, so any image
    size works. Submodules have the names of the paper, `conv1_1` to `conv5_3`, `fc6`
    and `fc7`; the norm of `conv1_1` is `norm1_1`.

    Parameters are float32. Weights are drawn from He's normal distribution.

    Adds these attributes to those of `NormedModule`.

    Attributes:
        stage_sizes: number of convolutions in each of the five stages;
            (1, 1, 2, 2, 2) is VGG-11.
        width: channels of stage 1; the stages have 1, 2, 4, 8 and 8 times `width`.
        output_stride: stride of the last features: 8, 16 or 32 (the paper). Once it is
            reached, pooling keeps the size and later stages dilate their kernels: Chen
            et al. 2015 (arXiv:1412.7062), section 3.1.
        pool_window: height and width of the pooling windows: 2 (the paper) or 3, as in
            DeepLab v1.
        fc_width: channels of `fc6` and `fc7`, 4096 in the paper; 0 leaves both out.
        fc_window: kernel height and width of `fc6`, odd; 7 in the paper.
        fc_rate: dilation of `fc6`.
        dropout: fraction of the features of `fc6` and of `fc7` that training drops, in
            [0, 1).
        norm: norm after each convolution of the five stages, not of `fc6` and `fc7`;
            "none" in the paper.
        remat: True recomputes each stage's activations in the backward pass instead of
            storing them (`jax.checkpoint`), which saves memory and takes a third more
            time.

    Raises:
        ValueError: at construction, if a hyperparameter is out of range.
    """

    stage_sizes: Sequence[int] = VGG16_STAGE_SIZES
    width: int = 64
    output_stride: int = 32
    pool_window: int = 2
    fc_width: int = 0
    fc_window: int = 7
    fc_rate: int = 1
    dropout: float | int = 0.5
    norm: str = "none"
    remat: bool = False

    def __post_init__(self):
        check_hyperparameters(
            self,
            at_least=dict(width=1, fc_width=0, fc_rate=1),
            one_of=dict(output_stride=(8, 16, 32), pool_window=(2, 3)),
            odd=("fc_window",),
            shares=("dropout",),
        )
        check_stage_sizes(self)
        super().__post_init__()

    def setup(self):
        self.drop = Dropout(rate=self.dropout, axis_name=self.axis_name)

    def __call__(
        self,
        images: Float[Array, "b h w _"],
        *,
        train: bool,
        sample_valid: Bool[Array, " b"] | None = None,
    ) -> tuple[Float[Array, "b _ _ _"], ...]:
        """Returns the features after each of the five poolings and after `fc7`, if any.

        Args:
            images: normalised colours, of any size.
            train: True applies dropout, which needs the PRNG stream "dropout". With
                `norm="batch"`, it also normalises by the statistics of the batch and
                updates `batch_stats`, which must then be mutable; False uses the
                running statistics.
            sample_valid: False for padding samples. Their content is ignored: it
                affects neither the statistics nor the features of other samples. None
                means that there are none.
        """
        how = dict(train=train, sample_valid=sample_valid)
        x = blank_padding(images, sample_valid).astype(self.dtype)
        # Sizes are rounded up; a window of 3 is centred on a pixel, as in Caffe.
        window, pad = (self.pool_window,) * 2, (self.pool_window - 2, 1)
        maps, reached, rate = [], 1, 1
        for number in range(1, 6):
            x = self.stage(x, number, rate=rate, **how)
            stride = 2 if reached < self.output_stride else 1
            x = nn.max_pool(x, window, strides=(stride, stride), padding=(pad, pad))
            reached, rate = reached * stride, rate * 2 // stride
            maps.append(x)
        if self.fc_width:
            fc = dict(norm="none", **how)
            x = self._layer(x, "fc6", self.fc_width, self.fc_window, self.fc_rate, **fc)
            x = self.drop(x, train=train)
            x = self._layer(x, "fc7", self.fc_width, 1, **fc)
            maps.append(self.drop(x, train=train))
        return tuple(maps)

    def stage(
        self,
        x: Float[Array, "b h w _"],
        number: int,
        *,
        rate: int = 1,
        train: bool,
        sample_valid: Bool[Array, " b"] | None,
    ) -> Float[Array, "b h w _"]:
        """Applies the convolutions of stage `number` (1 to 5), without its pooling.

        Each convolution has a kernel dilated by `rate`, a norm and a ReLU, and keeps
        the size. `train` and `sample_valid` are those of `__call__`.
        """

        def convolve(module, x):
            for i in range(1, self.stage_sizes[number - 1] + 1):
                x = module._layer(
                    x,
                    f"conv{number}_{i}",
                    stage_width(self.width, number),
                    rate=rate,
                    norm=self.norm,
                    train=train,
                    sample_valid=sample_valid,
                )
            return x

        return (nn.remat(convolve) if self.remat else convolve)(self, x)

    @nn.compact
    def _layer(
        self,
        x: Float[Array, "b h w _"],
        name: str,
        features: int,
        window: int = 3,
        rate: int = 1,
        *,
        norm: str,
        train: bool,
        sample_valid: Bool[Array, " b"] | None,
    ) -> Float[Array, "b h w {features}"]:
        x = conv_norm(
            x,
            features,
            window,
            conv=name,
            norm_name=name.replace("conv", "norm"),
            rate=rate,
            train=train,
            sample_valid=sample_valid,
            **{**self.norm_fields, "norm": norm},
        )
        return nn.relu(x)


def make_backbone(network: Network, **fields: Any) -> VGG16:
    """Makes the VGG-16 of a network, as its submodule `backbone`.

    Args:
        network: a network with the attributes `stage_sizes` and `width`, which the
            backbone shares, as well as `remat` and those of `NormedModule`.
        **fields: further attributes of `VGG16`.
    """
    return VGG16(
        stage_sizes=network.stage_sizes,
        width=network.width,
        remat=network.remat,
        name="backbone",
        **network.norm_fields,
        **fields,
    )


def stage_width(width: int, number: int) -> int:
    """Number of channels of VGG-16's stage `number` (1 to 5); stage 1 has `width`."""
    return width * min(2 ** (number - 1), 8)


def check_stage_sizes(module: nn.Module) -> None:
    """Raises ValueError unless `module.stage_sizes` holds five numbers >= 1."""
    if not are_counts(module.stage_sizes, 5):
        raise SeglossError(
            f"{type(module).__name__}: stage_sizes must be five numbers >= 1, "
            f"got {module.stage_sizes}."
        )

"""DeepLab v2, v3 and v3+: three ways to classify the features of a dilated network."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from segloss.errors import SeglossError
from segloss.models.backbones import BACKBONES, check_only_resnet, make_backbone
from segloss.models.checks import are_counts, check_hyperparameters
from segloss.models.layers import Dropout, conv_norm, enlarge, he_normal
from segloss.models.network import Network
from segloss.models.norms import NORMS, NormedModule

_OF_RESNET = ("version", "multi_grid", "ceil_pool")


class DeepLab(Network, kw_only=True):
    """Base class of DeepLab v2, v3 and v3+: a dilated backbone and a classifier.

    A subclass defines the classifier, `_classify`.

    Adds these attributes to those of `Network`.

    Attributes:
        backbone: "resnet50", "resnet101", or "efficientnet_lite0", "..1" or "..2".
        stage_sizes: number of blocks in each stage of the backbone, four of a ResNet
            and seven of an EfficientNet-Lite; None takes those of `backbone`.
        width: channels of a ResNet's stem, 64 in the papers. The channels of all other
            layers but the last are proportional to it. An EfficientNet-Lite has its own
            widths, so `width` is for the classifier alone.
        version: variant of the ResNet, "v1" or "v1.5"; see `ResNet`.
        output_stride: stride of the last features of the backbone: 8, 16 or 32.
        multi_grid: factor per block on the last stage's dilation, or None; see
            `ResNet`.
        ceil_pool: True rounds the output size of the first pooling up, as Caffe does.
        rates: dilations of the 3x3 convolutions applied in parallel to the last
            features.
        backbone_norm: `norm` of the backbone alone; None takes `norm`. "frozen" keeps
            the statistics of pretrained weights, while the layers above them, which
            are random at first, are normalised by `norm`.
    """

    backbone: str = "resnet101"
    stage_sizes: Sequence[int] | None = None
    width: int = 64
    version: str = "v1.5"
    output_stride: int = 8
    multi_grid: Sequence[int] | None = None
    ceil_pool: bool = False
    rates: Sequence[int] | None = None
    backbone_norm: str | None = None

    def __post_init__(self):
        one_of = dict(backbone=BACKBONES, backbone_norm=(None, *NORMS))
        check_hyperparameters(self, at_least=dict(width=1), one_of=one_of)
        check_only_resnet(self, _OF_RESNET)
        if self.rates is not None and not are_counts(self.rates):
            raise SeglossError(
                f"{type(self).__name__}: rates must be numbers >= 1, got {self.rates}."
            )
        self._make_backbone(parent=None)  # checks the rest
        super().__post_init__()

    @nn.compact
    def _logits(
        self,
        images: Float[Array, "b h w _"],
        *,
        train: bool,
        sample_valid: Bool[Array, " b"] | None,
    ) -> Float[Array, "b h2 w2 {self.num_classes}"]:
        apply = dict(train=train, sample_valid=sample_valid)
        backbone = self._make_backbone(name="backbone")
        return self._classify(backbone(images, **apply), **apply)

    def _make_backbone(self, **fields: Any) -> nn.Module:
        norm = self.backbone_norm or self.norm
        return make_backbone(
            self.backbone,
            stage_sizes=self.stage_sizes,
            resnet=dict(width=self.width, **{x: getattr(self, x) for x in _OF_RESNET}),
            output_stride=self.output_stride,
            remat=self.remat,
            **(self.norm_fields | {"norm": norm}),
            **fields,
        )


class DeepLabV2(DeepLab, kw_only=True):
    """DeepLab v2: Chen et al. 2016 (arXiv:1606.00915), sec. 3.

    The ResNet of the authors' Caffe models, followed by the sum of four dilated
    convolutions with one output per class. The authors start from weights pretrained on
    other data and train with `norm="frozen"` at three scales (`MultiScale`). Attributes
    are those of `DeepLab`.
    """

    version: str = "v1"
    ceil_pool: bool = True
    rates: Sequence[int] = (6, 12, 18, 24)
    norm_momentum: float = 0.999

    def _classify(
        self, features: tuple[Float[Array, "b _ _ _"], ...], **_
    ) -> Float[Array, "b h w {self.num_classes}"]:
        aspp = ASPPSum(features=self.num_classes, rates=self.rates, name="aspp")
        return aspp(features[-1])


class DeepLabV3(DeepLab, kw_only=True):
    """DeepLab v3: Chen et al. 2017 (arXiv:1706.05587), sec. 3.3.

    A backbone, atrous spatial pyramid pooling (`ASPP`), dropout, a 3x3 and a 1x1
    convolution. Follows torchvision without the auxiliary head; unlike the paper, it
    has ResNet v1.5 instead of v1, no multi-grid (the paper's best is (1, 2, 4)),
    dropout, and the 3x3 convolution.

    Adds these attributes to those of `DeepLab`.

    Attributes:
        rates: None gives (6, 12, 18) at `output_stride=16`, twice that at 8, half at
            32.
        dropout: fraction of the pyramid's output that training drops, in [0, 1).
    """

    dropout: float | int = 0.5

    def __post_init__(self):
        check_hyperparameters(self, shares=("dropout",))
        super().__post_init__()

    def _classify(
        self,
        features: tuple[Float[Array, "b _ _ _"], ...],
        *,
        train: bool,
        sample_valid: Bool[Array, " b"] | None,
    ) -> Float[Array, "b h w {self.num_classes}"]:
        apply = dict(train=train, sample_valid=sample_valid)
        rates = self.rates or [k * 16 // self.output_stride for k in (6, 12, 18)]
        fields = dict(features=4 * self.width, rates=rates, name="aspp")
        x = ASPP(**fields, **self.norm_fields)(features[-1], **apply)
        dropout = Dropout(rate=self.dropout, axis_name=self.axis_name, name="dropout")
        x = dropout(x, train=train)
        fine = features[-4]  # at stride 4
        return self._head(self._refine(x, fine, **apply))

    def _refine(
        self, x: Float[Array, "b h w c"], _: Float[Array, "b _ _ _"], **apply: Any
    ) -> Float[Array, "b h w c"]:
        names = dict(conv="head_conv", norm_name="head_norm")
        x = conv_norm(x, 4 * self.width, 3, **names, **self.norm_fields, **apply)
        return nn.relu(x)


class DeepLabV3Plus(DeepLabV3, kw_only=True):
    """DeepLab v3+: Chen et al. 2018 (arXiv:1802.02611), sec. 3.1.

    The pyramid of v3 (`ASPP`), followed by a decoder that adds the features at stride
    4. The backbone is the ResNet of the paper's sec. 4.2. All convolutions are plain
    ones, not the separable ones that the paper uses with Xception. Attributes are those
    of `DeepLabV3`.
    """

    output_stride: int = 16
    dropout: float | int = 0.1

    def _refine(
        self, x: Float[Array, "b _ _ c"], fine: Float[Array, "b h w _"], **apply: Any
    ) -> Float[Array, "b h w c"]:
        decoder = Decoder(width=self.width, name="decoder", **self.norm_fields)
        return decoder(x, fine, **apply)


class ASPPSum(nn.Module, kw_only=True):
    """Sum of dilated 3x3 convolutions: arXiv:1606.00915, figure 4, ResNet variant.

    Attributes:
        features: channels of the output, which is float32.
        rates: dilation of each convolution, one branch per entry.
    """

    features: int
    rates: Sequence[int]

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w _"]
    ) -> Float[Array, "b h w {self.features}"]:
        # He's standard deviation for 2048 channels is 0.01, as in the public reference.
        branches = [
            nn.Conv(
                self.features,
                (3, 3),
                padding=rate,
                kernel_dilation=rate,
                kernel_init=he_normal,
                dtype="float32",
                name=f"conv{i}",
            )(x)
            for i, rate in enumerate(self.rates)
        ]
        return sum(branches)


class ASPP(NormedModule, kw_only=True):
    """Atrous spatial pyramid pooling: arXiv:1706.05587, figure 5.

    Parallel branches: a 1x1 convolution, several dilated 3x3 convolutions and the mean
    over the image. They are concatenated and reduced to `features` channels by a 1x1
    convolution.

    Adds these attributes to those of `NormedModule`.

    Attributes:
        features: channels of each branch and of the output.
        rates: dilation of each 3x3 convolution.
    """

    features: int
    rates: Sequence[int]

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w _"],
        *,
        train: bool,
        sample_valid: Bool[Array, " b"] | None,
    ) -> Float[Array, "b h w {self.features}"]:
        fields = dict(train=train, sample_valid=sample_valid, **self.norm_fields)

        def layer(x, conv, norm_name, *, size=1, rate=1):
            names = dict(conv=conv, norm_name=norm_name)
            x = conv_norm(x, self.features, size, rate=rate, **names, **fields)
            return nn.relu(x)

        branches = [layer(x, "conv0", "norm0")]
        for i, rate in enumerate(self.rates, start=1):
            branches.append(layer(x, f"conv{i}", f"norm{i}", size=3, rate=rate))
        mean = layer(x.mean(axis=(1, 2), keepdims=True), "pool_conv", "pool_norm")
        branches.append(jnp.broadcast_to(mean, branches[0].shape))
        return layer(jnp.concatenate(branches, axis=-1), "project", "project_norm")


class Decoder(NormedModule, kw_only=True):
    """Upsamples features to stride 4 and refines them: arXiv:1802.02611, figure 2.

    Resizes `x` to the size of `fine`, the features at stride 4, concatenates both and
    applies two 3x3 convolutions.

    Adds this attribute to those of `NormedModule`.

    Attributes:
        width: the output has `4 * width` channels, and the features at stride 4 are
            reduced to `0.75 * width` channels. The paper has 64, hence 256 and 48.
    """

    width: int

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b _ _ _"],
        fine: Float[Array, "b h w _"],
        *,
        train: bool,
        sample_valid: Bool[Array, " b"] | None,
    ) -> Float[Array, "b h w 4*{self.width}"]:
        fields = dict(train=train, sample_valid=sample_valid, **self.norm_fields)
        names = dict(conv="fine_conv", norm_name="fine_norm")
        fine = nn.relu(conv_norm(fine, -(-3 * self.width // 4), 1, **names, **fields))
        x = jnp.concatenate([enlarge(x, fine.shape[1:3]), fine], axis=-1)
        for i in range(2):
            names = dict(conv=f"conv{i}", norm_name=f"norm{i}")
            x = nn.relu(conv_norm(x, 4 * self.width, 3, **names, **fields))
        return x

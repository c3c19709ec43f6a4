"""DeepLab v1."""

from collections.abc import Sequence

from flax import linen as nn
from jaxtyping import Array, Bool, Float

from segloss.models.checks import check_hyperparameters
from segloss.models.network import Network
from segloss.models.vgg import VGG16_STAGE_SIZES, check_stage_sizes, make_backbone


class DeepLabV1(Network, kw_only=True):
    """DeepLab v1 ("LargeFOV"): Chen et al. 2015 (arXiv:1412.7062), sec. 5.

    VGG-16 with stride 8 and dilated convolutions. Its fully connected layers `fc6` and
    `fc7` become convolutions, and a 1x1 convolution computes the logits. `fc6` has a
    3x3 kernel dilated by 12. So the field of view stays 224 pixels, but there are 20.5
    million parameters instead of 134 million. The paper's conditional random field is
    not included.

    Adds these attributes to those of `Network`.

    Attributes:
        stage_sizes: number of convolutions in each of the five stages of VGG-16.
        width: channels of the first stage of VGG-16; 64 in the paper.
        fc_width: channels of `fc6` and `fc7`; 1024 in the paper.
        fc_rate: dilation of `fc6`.
        dropout: fraction of the features of `fc6` and of `fc7` that training drops, in
            [0, 1).
        norm: norm after each convolution of the five stages, not of `fc6` and `fc7`;
            "none" in the paper.
    """

    stage_sizes: Sequence[int] = VGG16_STAGE_SIZES
    width: int = 64
    fc_width: int = 1024
    fc_rate: int = 12
    dropout: float | int = 0.5
    norm: str = "none"

    def __post_init__(self):
        check_hyperparameters(
            self,
            at_least=dict(width=1, fc_width=1, fc_rate=1),
            shares=("dropout",),
        )
        check_stage_sizes(self)
        super().__post_init__()

    @nn.compact
    def _logits(
        self,
        images: Float[Array, "b h w _"],
        *,
        train: bool,
        sample_valid: Bool[Array, " b"] | None,
    ) -> Float[Array, "b h2 w2 {self.num_classes}"]:
        backbone = make_backbone(
            self,
            output_stride=8,
            pool_window=3,
            fc_width=self.fc_width,
            fc_window=3,
            fc_rate=self.fc_rate,
            dropout=self.dropout,
        )
        fc7 = backbone(images, train=train, sample_valid=sample_valid)[-1]
        return self._head(fc7)

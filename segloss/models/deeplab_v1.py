"""DeepLab v1."""

from collections.abc import Sequence

from flax import linen as nn
from jaxtyping import Array, Bool, Float

from segloss.models.deeplab import make_head
from segloss.models.layers import DTYPES, check_hyperparameters, enlarge
from segloss.models.norms import NORMS, NormedModule
from segloss.models.vgg import VGG16, VGG16_STAGE_SIZES, check_stage_sizes


class DeepLabV1(NormedModule, kw_only=True):
    """DeepLab v1, the one called LargeFOV: Chen et al. 2015 (arXiv:1412.7062), sec. 5.

    VGG-16 at stride 8, whose `fc6` became a 3x3 convolution dilated by 12: a field of
    view of 224 pixels with 20.5 million parameters instead of 134. Without the paper's
    conditional random field.

    Parameters are float32. Weights are drawn from He's normal distribution.

    Attributes beside those of `NormedModule`; the head is float32 in any case:
        num_classes: channels of the logits.
        stage_sizes: convolutions of the five stages of VGG-16.
        width: channels of the first stage of VGG-16; 64 in the paper.
        fc_width: channels of `fc6` and `fc7`; 1024 in the paper.
        fc_rate: dilation of `fc6`.
        dropout: share dropped after `fc6` and after `fc7`, in [0, 1).
        norm: "none" is the paper; others follow the 3x3 convolutions.
        remat: True computes the activations of each stage again for the gradient
            instead of keeping them.

    Raises:
        ValueError: at construction, if a hyperparameter is out of its range.
    """

    num_classes: int
    stage_sizes: Sequence[int] = VGG16_STAGE_SIZES
    width: int = 64
    fc_width: int = 1024
    fc_rate: int = 12
    dropout: float | int = 0.5
    norm: str = "none"
    remat: bool = False

    def __post_init__(self):
        check_hyperparameters(
            self,
            at_least=dict(num_classes=1, width=1, fc_width=1, fc_rate=1),
            one_of=dict(norm=NORMS, dtype=DTYPES),
            shares=("dropout",),
        )
        check_stage_sizes(self)
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
            train: True drops out, for which it needs the PRNG stream "dropout", and
                normalises by the batch and updates `batch_stats`, which must then be
                mutable.
            sample_valid: False marks padding samples. They may hold anything, and
                change neither the statistics nor the logits of the others.
            resize: False leaves logits at stride 8.
        """
        backbone = VGG16(
            stage_sizes=self.stage_sizes,
            width=self.width,
            output_stride=8,
            pool_window=3,
            fc_width=self.fc_width,
            fc_window=3,
            fc_rate=self.fc_rate,
            dropout=self.dropout,
            remat=self.remat,
            name="backbone",
            **self.norm_fields,
        )
        fc7 = backbone(images, train=train, sample_valid=sample_valid)[-1]
        logits = make_head(self.num_classes)(fc7)
        return enlarge(logits, images.shape[1:3]) if resize else logits

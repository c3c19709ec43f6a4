"""U-Net with a backbone for its encoder."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from segloss.errors import SeglossError
from segloss.models.backbones import BACKBONES, make_backbone
from segloss.models.checks import LARGEST, check_hyperparameters
from segloss.models.layers import enlarge, rematerialised
from segloss.models.network import Network
from segloss.models.unet import DoubleConv


class BackboneUNet(Network, kw_only=True):
    """U-Net with a backbone, which may be pretrained, for its encoder.

    The decoder of Ronneberger et al. 2015 (arXiv:1505.04597), figure 1, over the
    features of a classification network, as in TernausNet (arXiv:1801.05746). From the
    coarsest features on, it enlarges bilinearly to the size of the next finer ones,
    concatenates them and applies two 3x3 convolutions with norms. Logits are computed
    at the stride of the finest features, which is 2 for an EfficientNet-Lite and 4 for
    a ResNet, and then enlarged.

    Adds these attributes to those of `Network`.

    Attributes:
        backbone: "efficientnet_lite0", "..1" or "..2", "resnet50" or "resnet101".
        stage_sizes: number of blocks in each stage of the backbone, seven of an
            EfficientNet-Lite and four of a ResNet; None takes those of `backbone`.
        width: channels of the decoder at the finest features, doubled at each coarser
            ones.
    """

    backbone: str = "efficientnet_lite0"
    stage_sizes: Sequence[int] | None = None
    width: int = 32

    def __post_init__(self):
        at_least = dict(width=1)
        check_hyperparameters(self, at_least=at_least, one_of=dict(backbone=BACKBONES))
        if 8 * self.width > LARGEST:
            raise SeglossError(
                f"BackboneUNet: width must be <= {LARGEST // 8}, got {self.width}."
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
        backbone = self._make_backbone(name="backbone")
        *skips, x = backbone(images, train=train, sample_valid=sample_valid)
        make_convs = rematerialised(DoubleConv, remat=self.remat)
        for level, skip in reversed(list(enumerate(skips))):
            x = jnp.concatenate([skip, enlarge(x, skip.shape[1:3])], axis=-1)
            convs = make_convs(
                features=self.width << level, name=f"up{level}", **self.norm_fields
            )
            x = convs(x, sample_valid, train)
        return self._head(x)

    def _make_backbone(self, **fields: Any) -> nn.Module:
        how = dict(stage_sizes=self.stage_sizes, remat=self.remat, **self.norm_fields)
        return make_backbone(self.backbone, **how, **fields)

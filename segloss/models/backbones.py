"""Backbones by name: the networks that compute features for others to classify."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from flax import linen as nn

from segloss.errors import SeglossError
from segloss.models.efficientnet_lite import EFFICIENTNET_LITE, EfficientNetLite
from segloss.models.resnet import RESNET_STAGE_SIZES, ResNet

BACKBONES = (*RESNET_STAGE_SIZES, *EFFICIENTNET_LITE)


def make_backbone(
    backbone: str,
    *,
    stage_sizes: Sequence[int] | None = None,
    resnet: Mapping[str, Any] = MappingProxyType({}),
    **fields: Any,
) -> nn.Module:
    """Makes the backbone called `backbone`; its features end with strides 4 to 32.

    Args:
        backbone: one of `BACKBONES`.
        stage_sizes: number of blocks in each stage; None takes those of `backbone`.
        resnet: attributes that only a `ResNet` has; others ignore them.
        **fields: attributes that all backbones have.
    """
    lite = EFFICIENTNET_LITE.get(backbone)
    own = lite or dict(resnet, stage_sizes=RESNET_STAGE_SIZES[backbone])
    if stage_sizes is not None:
        own = dict(own, stage_sizes=stage_sizes)
    return (EfficientNetLite if lite else ResNet)(**own, **fields)


def check_only_resnet(module: nn.Module, names: Sequence[str]) -> None:
    """Refuses attributes of a network that its backbone, which is no ResNet, lacks.

    Args:
        module: the network; its attribute `backbone` is one of `BACKBONES`.
        names: attributes that only a ResNet has; they must have their default values.

    Raises:
        ValueError: if an attribute is set; the message names it.
    """
    if module.backbone in RESNET_STAGE_SIZES:
        return
    for name in names:
        if getattr(module, name) != getattr(type(module), name):
            raise SeglossError(
                f"{type(module).__name__}: {name} is for a ResNet, and the backbone is "
                f"{module.backbone}, which has none; leave {name} out."
            )

"""Segmentation networks, and `make_model`, which builds one by name."""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn

from segloss.errors import SeglossError
from segloss.models.backbone_unet import BackboneUNet
from segloss.models.deeplab import DeepLabV2, DeepLabV3, DeepLabV3Plus
from segloss.models.deeplab_v1 import DeepLabV1
from segloss.models.efficientnet_lite import EfficientNetLite
from segloss.models.fcn import FCN
from segloss.models.multi_scale import MultiScale
from segloss.models.resnet import ResNet
from segloss.models.segnet import SegNet
from segloss.models.unet import UNet
from segloss.models.vgg import VGG16
from segloss.models.vnet import VNet
from segloss.registry import bind

MODELS = {
    "backbone_unet": BackboneUNet,
    "deeplab_v1": DeepLabV1,
    "deeplab_v2": DeepLabV2,
    "deeplab_v3": DeepLabV3,
    "deeplab_v3_plus": DeepLabV3Plus,
    "fcn": FCN,
    "multi_scale": MultiScale,
    "segnet": SegNet,
    "unet": UNet,
    "vnet": VNet,
}


def make_model(
    name: str, *, num_classes: int, axis_name: str | None = None, **hyperparameters
) -> nn.Module:
    """Builds the network called `name`.

    `network.apply(variables, images, train=False)` maps normalised RGB images
    `[b, h, w, 3]` to float32 logits `[b, h, w, num_classes]`. `train=True` applies
    dropout and, with `norm="batch"`, normalises by the batch and updates the collection
    `batch_stats`; "multi_scale" then returns one array of logits per scale and the
    fused one. The argument `sample_valid` (`[b]`) is False for padding samples.

    Args:
        name: key of `MODELS`.
        num_classes: number of channels of the logits.
        axis_name: name of a pmap or shard_map axis that `apply` runs under; batch
            statistics are computed over all of its devices.
        **hyperparameters: attributes of the module; the others keep their defaults. For
            "multi_scale", the attribute `network` is a mapping with the `name` of
            another network and its hyperparameters.

    Raises:
        ValueError: if the name or a hyperparameter is unknown, or a hyperparameter is
            out of range.
    """
    given = dict(num_classes=num_classes, axis_name=axis_name)
    return _make(name, hyperparameters, given)


def _make(
    name: str, hyperparameters: Mapping[str, Any], given: Mapping[str, Any]
) -> nn.Module:
    network = hyperparameters.get("network")
    if network is not None and not isinstance(network, nn.Module):
        if not isinstance(network, Mapping) or "name" not in network:
            raise SeglossError(
                f"model: the network of {name} must be a mapping with its 'name' and "
                f"hyperparameters, got {network!r}."
            )
        fields = {key: value for key, value in network.items() if key != "name"}
        network = _make(network["name"], fields, given)
        hyperparameters = {**hyperparameters, "network": network}
    return bind("model", MODELS, name, hyperparameters, **given)()


__all__ = [
    "FCN",
    "MODELS",
    "VGG16",
    "BackboneUNet",
    "DeepLabV1",
    "DeepLabV2",
    "DeepLabV3",
    "DeepLabV3Plus",
    "EfficientNetLite",
    "MultiScale",
    "ResNet",
    "SegNet",
    "UNet",
    "VNet",
    "make_model",
]

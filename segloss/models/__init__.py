"""Networks, chosen by name."""

from flax import linen as nn

from segloss.models.fcn import FCN
from segloss.models.segnet import SegNet
from segloss.models.unet import UNet
from segloss.models.vgg import VGG16
from segloss.models.vnet import VNet
from segloss.registry import bind

MODELS = {"fcn": FCN, "segnet": SegNet, "unet": UNet, "vnet": VNet}


def make_model(
    name: str, *, num_classes: int, axis_name: str | None = None, **hyperparameters
) -> nn.Module:
    """The network called `name`, whose keyword arguments are `hyperparameters`.

    `apply(variables, images, train=False)` of it maps images `[b, h, w, 3]` of
    normalised colours to float32 logits `[b, h, w, num_classes]`. With `train=True` it
    also takes `sample_valid [b]`, False for padding samples, and updates `batch_stats`.

    Args:
        name: a key of `MODELS`.
        num_classes: channels of the logits.
        axis_name: mapped device axis that `apply` runs under, for batch statistics.
        **hyperparameters: attributes of the module; what is left out has its default.

    Raises:
        ValueError: if the name or a hyperparameter is unknown or out of its range.
    """
    given = dict(num_classes=num_classes, axis_name=axis_name)
    return bind("model", MODELS, name, hyperparameters, **given)()


__all__ = ["FCN", "MODELS", "VGG16", "SegNet", "UNet", "VNet", "make_model"]

"""Pretrained weights: importers of published files, and a command to convert them.

python -m segloss.models.pretrained IN OUT.safetensors
"""

from segloss.models.pretrained.files import read_weights, sha256_of
from segloss.models.pretrained.layouts import (
    from_deeplab_v2,
    from_efficientnet_lite,
    from_torchvision_deeplabv3,
    from_torchvision_resnet,
    from_torchvision_vgg16,
)
from segloss.models.pretrained.load import (
    Weights,
    fit_bands,
    load_weights,
    put_into,
    warn_of_another_resnet,
)
from segloss.models.pretrained.packages import (
    PACKAGES,
    digest_of_weights,
    find_weights,
)

__all__ = [
    "PACKAGES",
    "Weights",
    "digest_of_weights",
    "find_weights",
    "fit_bands",
    "from_deeplab_v2",
    "from_efficientnet_lite",
    "from_torchvision_deeplabv3",
    "from_torchvision_resnet",
    "from_torchvision_vgg16",
    "load_weights",
    "put_into",
    "read_weights",
    "sha256_of",
    "warn_of_another_resnet",
]

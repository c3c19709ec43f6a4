r"""Names and shapes of state dicts in torch, as JSON.

python -m venv .venv-peers
.venv-peers/bin/pip install -r requirements.txt torch==2.13.0 torchvision==0.28.0 \
    segmentation-models-pytorch==0.6.0
PYTHONPATH=. .venv-peers/bin/python tests/oracles/make_torch_names.py

Of a batch normalisation only its name and its number of features are stored; its five
arrays always have the same names. `tests/models/test_pretrained_layouts.py` reads the
file.
"""

import json
import pathlib

import torch
from torch_efficientnet_lite import EfficientNetLite, scaled_stages

from benchmarks.torch_imports import import_smp

import_smp()  # which makes torchvision importable where it is built for CUDA
from torchvision.models import resnet50, vgg16  # noqa: E402
from torchvision.models.segmentation import deeplabv3_resnet101  # noqa: E402

# The largest of those whose weights a package has.
LITE2 = scaled_stages((1, 3, 3, 4, 4, 5, 1), (16, 24, 48, 88, 120, 208, 352))
NETWORKS = {
    "deeplabv3_resnet101": deeplabv3_resnet101(
        weights=None, weights_backbone=None, aux_loss=True
    ),
    "efficientnet_lite2": EfficientNetLite(LITE2, num_classes=1000),
    "resnet50": resnet50(),
    "vgg16": vgg16(),
}


def describe(network: torch.nn.Module) -> dict[str, dict]:
    norms = {
        name: module.num_features
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.BatchNorm2d)
    }
    arrays = {
        name: list(array.shape)
        for name, array in network.state_dict().items()
        if name.rpartition(".")[0] not in norms
    }
    assert len(arrays) + 5 * len(norms) == len(network.state_dict())
    return {"arrays": arrays, "norms": norms}


if __name__ == "__main__":
    lines = [f"{json.dumps(k)}: {json.dumps(describe(v))}" for k, v in NETWORKS.items()]
    path = pathlib.Path(__file__).with_name("torch_names.json")
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")

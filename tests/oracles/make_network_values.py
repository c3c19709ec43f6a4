r"""Logits and gradients of networks in torch, of weights drawn by name, as npz.

python -m venv .venv-peers
.venv-peers/bin/pip install -r requirements.txt torch==2.13.0 torchvision==0.28.0 \
    segmentation-models-pytorch==0.6.0
PYTHONPATH=. .venv-peers/bin/python tests/oracles/make_network_values.py [CASE ...]

It makes all cases, or those named and keeps the others as they are. Of each case of
`network_cases.py` it stores a sample of the logits, the loss, and a sample of its
gradient by the image, all channels last, how far rounding takes the latter, and the
names and shapes of the state dict. The file is read by
`tests/models/test_network_values.py`.
"""

import collections
import json
import pathlib
import sys

import numpy as np
import torch
from network_cases import (
    CASES,
    LITE,
    NUM_CLASSES,
    random_image,
    random_labels,
    random_weights,
    sample,
)
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch_efficientnet_lite import EfficientNetLite, scaled_stages

from benchmarks.torch_imports import import_smp

import_smp()  # which makes torchvision importable where it is built for CUDA
from torchvision.models import resnet as tv_resnet  # noqa: E402
from torchvision.models import vgg as tv_vgg  # noqa: E402
from torchvision.models._utils import IntermediateLayerGetter  # noqa: E402
from torchvision.models.segmentation import deeplabv3 as tv_deeplabv3  # noqa: E402

OUTPUT = pathlib.Path(__file__).parent / "network_values.npz"
TINY = dict(stage_sizes=(1, 1, 2, 2), width=8)
UNTRAINED = dict(weights=None, weights_backbone=None, num_classes=NUM_CLASSES)


class NarrowResNet(tv_resnet.ResNet):
    """torchvision's, of another width."""

    def __init__(self, stage_sizes, width, output_stride):
        self.width = width
        dilate = [stride > output_stride for stride in (8, 16, 32)]
        super().__init__(
            tv_resnet.Bottleneck, stage_sizes, replace_stride_with_dilation=dilate
        )
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)

    def _make_layer(self, block, planes, *args, **kwargs):
        if planes == 64:
            self.inplanes = self.width
        return super()._make_layer(block, planes * self.width // 64, *args, **kwargs)


def tiny_efficientnet_lite():
    stages = scaled_stages(LITE["stage_sizes"], LITE["stage_widths"])
    return EfficientNetLite(stages, LITE["stem_width"])


def without_classifier(resnet):
    return IntermediateLayerGetter(resnet, {"layer4": "out"})


def narrow_deeplab_v3():
    width = TINY["width"]
    head = nn.Sequential(
        tv_deeplabv3.ASPP(32 * width, (12, 24, 36), 4 * width),
        nn.Conv2d(4 * width, 4 * width, 3, padding=1, bias=False),
        nn.BatchNorm2d(4 * width),
        nn.ReLU(),
        nn.Conv2d(4 * width, NUM_CLASSES, 1),
    )
    resnet = NarrowResNet(output_stride=8, **TINY)
    return tv_deeplabv3.DeepLabV3(without_classifier(resnet), head)


class DeepLabV2(nn.Module):
    """With the names and facts of kazuto1011/deeplab-pytorch, of any size.

    Blocks stride in their first convolution, and all of a stage have one rate. The
    logits of further scales are fused with those of the image by the maximum.
    """

    def __init__(self, stage_sizes=(3, 4, 23, 3), width=64, scales=()):
        super().__init__()
        self.scales = scales
        layers = {
            "layer1": named(
                conv1=conv_bn(3, width, 7, stride=2, padding=3),
                relu=nn.ReLU(),
                pool=nn.MaxPool2d(3, 2, 1, ceil_mode=True),
            )
        }
        channels, strides, rates = width, (1, 2, 1, 1), (1, 1, 2, 4)
        for i, size in enumerate(stage_sizes):
            blocks = {}
            for j in range(size):
                stride = strides[i] if j == 0 else 1
                block = BottleneckV1(channels, width << i, stride, rates[i])
                blocks[f"block{j + 1}"] = block
                channels = 4 * width << i
            layers[f"layer{i + 2}"] = named(**blocks)
        layers["aspp"] = SumOf(
            {
                f"c{i}": nn.Conv2d(channels, NUM_CLASSES, 3, padding=r, dilation=r)
                for i, r in enumerate((6, 12, 18, 24))
            }
        )
        self.base = named(**layers)

    def forward(self, x):
        logits = self.base(x)
        for scale in self.scales:
            y = F.interpolate(x, scale_factor=scale, mode="bilinear")
            logits = torch.maximum(logits, resized(self.base(y), logits))
        return {"out": resized(logits, x)}


class SumOf(nn.ModuleDict):
    def forward(self, x):
        return sum(layer(x) for layer in self.values())


class BottleneckV1(nn.Module):
    def __init__(self, channels, features, stride, rate):
        super().__init__()
        self.reduce = conv_bn(channels, features, 1, stride=stride)
        self.conv3x3 = conv_bn(features, features, 3, padding=rate, dilation=rate)
        self.increase = conv_bn(features, 4 * features, 1)
        self.shortcut = nn.Identity()
        if channels != 4 * features:
            self.shortcut = conv_bn(channels, 4 * features, 1, stride=stride)

    def forward(self, x):
        y = F.relu(self.conv3x3(F.relu(self.reduce(x))))
        return F.relu(self.increase(y) + self.shortcut(x))


def conv_bn(channels, features, size, **options):
    conv = nn.Conv2d(channels, features, size, bias=False, **options)
    return named(conv=conv, bn=nn.BatchNorm2d(features))


def named(**layers):
    return nn.Sequential(collections.OrderedDict(layers))


def resized(x, like):
    return F.interpolate(x, like.shape[2:], mode="bilinear")


class FullyConvolutionalVGG16(nn.Module):
    """torchvision's, its dense layers as convolutions and pooled sizes rounded up."""

    def __init__(self, width=64, fc_width=4096):
        super().__init__()
        layers = []
        for factor, convs in ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3)):
            layers += [factor * width] * convs + ["M"]
        self.features = tv_vgg.make_layers(layers)
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                layer.ceil_mode = True
        fc6, fc7 = nn.Linear(8 * width * 7 * 7, fc_width), nn.Linear(fc_width, fc_width)
        self.classifier = nn.ModuleDict({"0": fc6, "3": fc7})

    def forward(self, x):
        x = self.features(x)
        for layer, size in zip(self.classifier.values(), (7, 1), strict=True):
            kernel = layer.weight.view(len(layer.bias), -1, size, size)
            x = F.relu(F.conv2d(x, kernel, layer.bias, padding=size // 2))
        return {"out": x}


# What torch runs for each case.
NETWORKS = {
    "tiny deeplab_v2": lambda: DeepLabV2(**TINY),
    "tiny deeplab_v3": narrow_deeplab_v3,
    "tiny efficientnet_lite": tiny_efficientnet_lite,
    "tiny resnet": lambda: without_classifier(NarrowResNet(output_stride=16, **TINY)),
    "tiny vgg16": lambda: FullyConvolutionalVGG16(width=4, fc_width=16),
    "vgg16": FullyConvolutionalVGG16,
    "resnet50": lambda: without_classifier(tv_resnet.resnet50()),
    "resnet101": lambda: without_classifier(tv_resnet.resnet101()),
    "deeplab_v3 resnet50": lambda: tv_deeplabv3.deeplabv3_resnet50(**UNTRAINED),
    "deeplab_v3 resnet101": lambda: tv_deeplabv3.deeplabv3_resnet101(**UNTRAINED),
    "multi_scale deeplab_v2": lambda: DeepLabV2(scales=(0.5, 0.75)),
}


def values_of(network, hw):
    """Samples of the logits and of the gradient of their loss, and the loss.

    In float64, because in float32 rounding turns some ReLU on or off, and with it the
    gradient of all pixels below: `gradient_rounding` is how far that takes torch.
    """
    exact, rounded = (
        _values_of(network.to(dtype), torch.tensor(random_image(hw), dtype=dtype))
        for dtype in (torch.float64, torch.float32)
    )
    errors = np.abs(rounded["gradient"] - exact["gradient"])
    rounding = np.quantile(errors, 0.99) / np.abs(exact["gradient"]).max()
    return {**exact, "gradient_rounding": np.float32(rounding)}


def _values_of(network, images):
    images = images.movedim(-1, 1).requires_grad_()
    logits = network(images)["out"]
    labels = torch.tensor(random_labels(logits.movedim(1, -1).shape))
    loss = F.cross_entropy(logits, labels)
    loss.backward()
    logits, gradient = (x.detach().movedim(1, -1) for x in (logits, images.grad))
    return {
        "logits": sample(logits.numpy()),
        "loss": np.float32(loss.item()),
        "gradient": sample(gradient.numpy()),
    }


def main(chosen):
    stored = dict(np.load(OUTPUT)) if chosen else {}
    for case in chosen or CASES:
        *_, sizes = CASES[case]
        network = NETWORKS[case]().eval().requires_grad_(False)
        shapes = {k: list(v.shape) for k, v in network.state_dict().items()}
        weights = {k: torch.tensor(v) for k, v in random_weights(shapes).items()}
        network.load_state_dict(weights)
        stored[f"{case}/shapes"] = json.dumps(shapes)
        for hw in sizes:
            values = values_of(network, hw)
            print(f"{case}, {hw}: {values['gradient_rounding']:.1e}", flush=True)
            for name, value in values.items():
                stored[f"{case}/{hw[0]}x{hw[1]}/{name}"] = value
    np.savez_compressed(OUTPUT, **stored)


if __name__ == "__main__":
    main(sys.argv[1:])

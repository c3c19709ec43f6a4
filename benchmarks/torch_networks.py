"""Training steps of the same networks in torch; this module requires torch."""

import os

# Otherwise torch's threads spin between calls and slow the next candidate.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.torch_imports import import_with_torchvision
from segloss.data.colours import MEAN_RGB, STDDEV_RGB


def double_conv(c: int, features: int) -> nn.Sequential:
    layers = []
    for channels in (c, features):
        layers.append(nn.Conv2d(channels, features, 3, padding=1, bias=False))
        layers += [nn.BatchNorm2d(features), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """U-Net with the same layers as `segloss.models.UNet` with its defaults."""

    def __init__(self, num_classes: int, depth: int = 4, width: int = 64):
        super().__init__()
        sizes = [width << level for level in range(depth + 1)]
        inputs = [3, *sizes]
        self.down = nn.ModuleList(map(double_conv, inputs, sizes))
        pairs = list(zip(sizes[1:], sizes, strict=False))[::-1]
        self.upconv = nn.ModuleList(nn.ConvTranspose2d(c, f, 2, 2) for c, f in pairs)
        self.up = nn.ModuleList(double_conv(2 * f, f) for _, f in pairs)
        self.head = nn.Conv2d(width, num_classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = []
        for convs in self.down:
            skips.append(convs(x))
            x = F.max_pool2d(skips[-1], 2, ceil_mode=True)
        x = skips.pop()
        for upconv, convs in zip(self.upconv, self.up, strict=True):
            skip = skips.pop()
            x = upconv(x)[..., : skip.shape[2], : skip.shape[3]]
            x = convs(torch.cat([skip, x], dim=1))
        return self.head(x)


class DeepLabV3(nn.Module):
    """DeepLab v3 of torchvision with ResNet-101, without the auxiliary classifier."""

    def __init__(self, num_classes: int):
        super().__init__()
        module = import_with_torchvision("torchvision.models.segmentation")
        self.network = module.deeplabv3_resnet101(
            weights=None,
            weights_backbone=None,
            num_classes=num_classes,
            aux_loss=False,
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x)["out"]


NETWORKS = {"deeplab_v3": DeepLabV3, "unet": UNet}


def make_step(
    network: nn.Module,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    dtype: str,
    device: str,
    compiled: bool,
) -> Callable[[], None]:
    """Returns a function that trains the network for one step on the given batch.

    Like the timed step of `segloss`, it uses cross-entropy and SGD with momentum; in
    channels-last memory format, and with autocast for bfloat16. `compiled` applies
    `torch.compile`.
    """
    layout = torch.channels_last
    network = network.train().to(device=device, memory_format=layout)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4
    )
    classify = torch.compile(network) if compiled else network
    pixels = torch.from_numpy(images).to(device).permute(0, 3, 1, 2)
    targets = torch.from_numpy(labels).to(device, torch.long)
    mean, stddev = (
        torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (MEAN_RGB, STDDEV_RGB)
    )

    def step() -> None:
        x = ((pixels / 255 - mean) / stddev).contiguous(memory_format=layout)
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            logits = classify(x)
        loss = F.cross_entropy(logits.float(), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def await_device(device: str) -> None:
    """Waits until all work on the device is complete."""
    if device == "cuda":
        torch.cuda.synchronize()


def allocated_bytes(device: str) -> int:
    """Returns the GPU memory in use by tensors; 0 on CPU, where torch has no count."""
    return torch.cuda.memory_allocated() if device == "cuda" else 0


def peak_bytes(step: Callable[[], None], device: str) -> int | None:
    """Runs a step; returns the peak memory of tensors in bytes, or None on CPU."""
    if device != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats()
    step()
    await_device(device)
    return torch.cuda.max_memory_allocated()

"""Depthwise convolutions of EfficientNet-Lite0, ours and their counterparts."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import lax

from segloss.models.depthwise import depthwise_conv, grouped, shifted

OURS, GROUPED, AUTODIFF = "ours", "grouped", "shifted, autodiff"


class Layer(NamedTuple):
    """A depthwise convolution of 9 images.

    Attributes:
        side: height and width of the input.
        channels: number of channels.
        size: height and width of the kernel.
        strides: step between output pixels.
        rate: dilation of the kernel.
    """

    side: int
    channels: int
    size: int
    strides: int = 1
    rate: int = 1

    def __str__(self) -> str:
        text = f"{self.side}x{self.side}x{self.channels}, {self.size}x{self.size}"
        text += f", stride {self.strides}" if self.strides > 1 else ""
        return text + (f", rate {self.rate}" if self.rate > 1 else "")


# For images of 256x256; the last one is of a network with output stride 16.
LAYERS = (
    Layer(128, 32, 3),
    Layer(64, 144, 5, strides=2),
    Layer(32, 240, 5),
    Layer(16, 672, 5, rate=2),
)


def candidates(layer: Layer) -> dict[str, Callable]:
    """Returns functions of (x, kernel) by name."""
    how = dict(strides=layer.strides, rate=layer.rate)
    pads = (layer.rate * (layer.size // 2),) * 2
    on_cpu = functools.partial(shifted, **how, pads=pads, over_images=lax.map)
    return {
        OURS: functools.partial(depthwise_conv, **how),
        GROUPED: functools.partial(grouped, **how, pads=pads),
        AUTODIFF: on_cpu,
    }


def step(conv: Callable, x: Any, kernel: Any, cotangent: Any) -> tuple[Any, Any, Any]:
    """Returns the output, and the gradients of input and kernel."""
    y, pull_back = jax.vjp(conv, x, kernel)
    return y, *pull_back(cotangent)


def input_shapes(layer: Layer, dtype: str) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Returns shapes of the input, the kernel and the gradient of the output."""
    small = -(-layer.side // layer.strides)
    return (
        jax.ShapeDtypeStruct((9, layer.side, layer.side, layer.channels), dtype),
        jax.ShapeDtypeStruct((layer.size, layer.size, 1, layer.channels), "float32"),
        jax.ShapeDtypeStruct((9, small, small, layer.channels), dtype),
    )

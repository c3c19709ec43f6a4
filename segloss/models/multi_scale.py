"""Multi-scale wrapper: one network applied to several scales of the image."""

import functools
import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from segloss.errors import SeglossError
from segloss.models.layers import enlarge


class MultiScale(nn.Module, kw_only=True):
    """Applies one network at several image scales and takes the maximum of the logits.

    Chen et al. 2017 (arXiv:1606.00915), sec. 4.1.2, "multi-scale processing". The
    scales share their weights. The fused logits are the maximum over the scales of each
    logit of a pixel. (A single logit is that of the foreground; the background's is 0
    at every scale.) In training, the loss applies to the logits of each scale and to
    the fused logits, as in the authors' models.

    Any network of `MODELS` works, with two or three spatial dimensions. If it uses
    batch normalisation, each scale is normalised by its own statistics and updates the
    running ones once; the paper freezes them.

    Attributes:
        network: module that accepts images of any size and the argument `resize`; its
            variables are stored under `network`. In a config, a mapping with the `name`
            of a network and its hyperparameters.
        scales: factors of the image size, each in (0, 1]; 1 must be among them.

    Raises:
        ValueError: at construction, if a scale is out of range or given twice, or the
            network is itself a `MultiScale`.
    """

    network: nn.Module
    scales: tuple[float | int, ...] = (0.5, 0.75, 1.0)

    def __post_init__(self):
        if isinstance(self.network, MultiScale):
            raise SeglossError("MultiScale: network must not be a MultiScale itself.")
        if (
            1 not in self.scales
            or not all(0 < scale <= 1 for scale in self.scales)
            or len({*self.scales}) < len(self.scales)
        ):
            raise SeglossError(
                "MultiScale: scales must be distinct, in (0, 1], and include 1, "
                f"got {self.scales}."
            )
        super().__post_init__()

    def __call__(
        self,
        images: Float[Array, "b *spatial _"],
        *,
        train: bool,
        sample_valid: Bool[Array, " b"] | None = None,
        resize: bool = True,
    ) -> Float[Array, "b *fused c"] | tuple[Float[Array, "b *_ c"], ...]:
        """Computes float32 logits, with the arguments of `Network`.

        Args:
            images: normalised colours, of any size.
            train: True returns the logits of every scale, in the order of `scales`,
                followed by the fused logits, none of them resized to the image. False
                returns only the fused logits. It is passed on to the network.
            sample_valid: False for padding samples, whose content is ignored; None
                means that there are none.
            resize: False returns the fused logits at the network's output size at scale
                1 instead of resizing them to the image. It has no effect if `train`.
        """
        logits = [
            self.network(
                _scaled(images, scale),
                train=train,
                sample_valid=sample_valid,
                resize=False,
            )
            for scale in self.scales
        ]
        size = logits[self.scales.index(1)].shape[1:-1]
        fused = functools.reduce(jnp.maximum, [enlarge(x, size) for x in logits])
        if train:
            return *logits, fused
        return enlarge(fused, images.shape[1:-1]) if resize else fused


def _scaled(
    images: Float[Array, "b *spatial c"], scale: float | int
) -> Float[Array, "b *scaled c"]:
    """Resizes bilinearly by the factor `scale`, at most 1, rounding sizes down.

    Equals `torch.nn.functional.interpolate` with `scale_factor=scale`: samples are
    `1 / scale` pixels apart, even where rounding changes the ratio of the sizes, and
    there is no antialiasing.
    """
    if scale == 1:
        return images
    dims = range(1, images.ndim - 1)
    size = [max(1, math.floor(images.shape[dim] * scale)) for dim in dims]
    return jax.image.scale_and_translate(
        images,
        (images.shape[0], *size, images.shape[-1]),
        spatial_dims=dims,
        scale=jnp.full(len(size), scale),
        translation=jnp.zeros(len(size)),
        method="linear",
        antialias=False,
    )

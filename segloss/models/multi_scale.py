"""A network at several scales of the image."""

import functools
import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from segloss.models.layers import enlarge


class MultiScale(nn.Module, kw_only=True):
    """One network on the image at several scales, fused by the maximum.

    Chen et al. 2017 (arXiv:1606.00915), sec. 4.1.2, "multi-scale processing": weights
    are shared, and each class's score of a pixel is the highest that a scale gives it.
    (Of one logit, that of class 1, class 0 has 0 at every scale.)
    Training punishes each scale and the fused scores, as the authors' models do.

    Any network of `MODELS` will do, in two or three spatial dims. One with batch
    statistics normalises each scale by its own, and takes a step of the running ones
    for each; the paper's are frozen.

    Attributes:
        network: takes the images, of any size, and `resize`; its variables lie under
            `network`. From a config, the fields that `make_model` takes.
        scales: factors of the image's size, each in (0, 1]; 1 must be among them.

    Raises:
        ValueError: at construction, if a scale is out of its range or given twice, or
            the network is of several scales itself.
    """

    network: nn.Module
    scales: tuple[float | int, ...] = (0.5, 0.75, 1.0)

    def __post_init__(self):
        if isinstance(self.network, MultiScale):
            raise ValueError("MultiScale: network must not be a MultiScale itself.")
        if (
            1 not in self.scales
            or not all(0 < scale <= 1 for scale in self.scales)
            or len({*self.scales}) < len(self.scales)
        ):
            raise ValueError(
                "MultiScale: scales must be in (0, 1], each once and 1 among them, "
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
        """Class scores, float32.

        Args:
            images: normalised colours, of any size.
            train: True gives the logits of every scale, in the order of `scales`, and
                then the fused ones, each at the size at which they are computed. False
                gives the fused ones alone.
            sample_valid: False marks padding samples.
            resize: False leaves also those of `train=False` at the size at which they
                are computed: that of the whole image's.
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
    """Bilinear interpolation by a factor of at most 1, sizes rounded down.

    Pixels lie exactly `1 / scale` apart, also where that is not the ratio of the sizes,
    and nothing is smoothed before: torch's `interpolate` of a `scale_factor`.
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

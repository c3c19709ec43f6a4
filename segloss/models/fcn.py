"""Fully convolutional networks."""

import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Key

from segloss.models.checks import check_hyperparameters
from segloss.models.layers import enlarge_by
from segloss.models.network import Network
from segloss.models.vgg import VGG16_STAGE_SIZES, check_stage_sizes, make_backbone


class FCN(Network, kw_only=True):
    """FCN-32s, -16s, -8s: Shelhamer et al. 2017 (arXiv:1605.06211), figure 3.

    VGG-16 with its fully connected layers `fc6` and `fc7` as convolutions. The class
    scores of `fc7` are upsampled by 2 and added to the scores of pool4; the sum is
    upsampled by 2 again and added to the scores of pool3 (FCN-8s). As in the paper
    (section 4.2), the score layers are initialised to zero. The up-convolutions between
    them are learned and initialised to bilinear interpolation; the final upsampling to
    the image size is fixed.

    Departs from the authors' models in three points. Layers keep the spatial size and
    pooling rounds it up, so any image size works; the authors pad images by 100 pixels.
    Up-convolutions pad by repeating the edge. The final upsampling is
    `jax.image.resize`.

    Adds these attributes to those of `Network`.

    Attributes:
        stride: stride of the summed scores: 32, 16 or 8 for FCN-32s, -16s or -8s.
        stage_sizes: number of convolutions in each of the five stages of VGG-16.
        width: channels of the first stage of VGG-16; 64 in the paper.
        fc_width: channels of `fc6` and `fc7`; 4096 in the paper.
        fc_window: kernel height and width of `fc6`, odd; 7 in the paper.
        dropout: fraction of the features of `fc6` and of `fc7` that training drops, in
            [0, 1).
        norm: norm after each convolution of the five stages, not of `fc6` and `fc7`;
            "none" in the paper.
    """

    stride: int = 8
    stage_sizes: Sequence[int] = VGG16_STAGE_SIZES
    width: int = 64
    fc_width: int = 4096
    fc_window: int = 7
    dropout: float | int = 0.5
    norm: str = "none"

    def __post_init__(self):
        check_hyperparameters(
            self,
            at_least=dict(width=1, fc_width=1),
            one_of=dict(stride=(8, 16, 32)),
            odd=("fc_window",),
            shares=("dropout",),
        )
        check_stage_sizes(self)
        super().__post_init__()

    @nn.compact
    def _logits(
        self,
        images: Float[Array, "b h w _"],
        *,
        train: bool,
        sample_valid: Bool[Array, " b"] | None,
    ) -> Float[Array, "b h2 w2 {self.num_classes}"]:
        backbone = make_backbone(
            self,
            fc_width=self.fc_width,
            fc_window=self.fc_window,
            dropout=self.dropout,
        )
        *_, pool3, pool4, _, fc7 = backbone(
            images, train=train, sample_valid=sample_valid
        )
        score = functools.partial(
            nn.Conv,
            self.num_classes,
            (1, 1),
            kernel_init=nn.initializers.zeros,
            dtype="float32",
        )
        logits = score(name="score_fr")(fc7)
        for double, name, stride, skip in (
            ("upscore2", "score_pool4", 16, pool4),
            ("upscore_pool4", "score_pool3", 8, pool3),
        ):
            if stride < self.stride:
                break
            logits = self._double(logits, double)
            logits = logits[:, : skip.shape[1], : skip.shape[2]]
            logits += score(name=name)(skip)
        return logits

    def _enlarge(
        self, logits: Float[Array, "b h w c"], size: tuple[Any, ...]
    ) -> Float[Array, "b h2 w2 c"]:
        return enlarge_by(self.stride, logits, size)

    def _double(
        self, x: Float[Array, "b h w c"], name: str
    ) -> Float[Array, "b 2*h 2*w c"]:
        """Learned up-convolution of stride 2, initialised to bilinear interpolation."""
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
        return nn.ConvTranspose(
            self.num_classes,
            (4, 4),
            strides=(2, 2),
            use_bias=False,
            kernel_init=bilinear,
            dtype="float32",
            name=name,
        )(x)[:, 2:-2, 2:-2]


def bilinear(
    key: Key[Array, ""], shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
) -> Float[Array, "4 4 c c"]:
    """Initialiser of an up-convolution of stride 2 that interpolates bilinearly.

    `shape` is that of the kernel, (4, 4, c, c). `key` is not used.
    """
    tent = jnp.array([0.25, 0.75, 0.75, 0.25], dtype)
    return jnp.einsum("i,j,cd->ijcd", tent, tent, jnp.eye(shape[-1], dtype=dtype))

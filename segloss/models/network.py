"""What networks have in common."""

from typing import Any

from flax import linen as nn
from jaxtyping import Array, Bool, Float

from segloss.models.checks import check_hyperparameters
from segloss.models.layers import blank_padding, enlarge, he_normal, multiply_channels
from segloss.models.norms import NormedModule


class Network(NormedModule, kw_only=True):
    """The face of a segmentation network; each brings its `_logits`.

    Parameters are float32, and so are the last layers, which give the logits, in any
    case. Unless said, weights are drawn from He's normal distribution.

    Attributes beside those of `NormedModule`:
        num_classes: channels of the logits.
        remat: True computes each stage's activations again for the gradient instead of
            keeping them (`jax.checkpoint`): less memory, a third more time.

    Raises:
        ValueError: at construction, if a hyperparameter is out of its range.
    """

    num_classes: int
    remat: bool = False

    def __post_init__(self):
        check_hyperparameters(self, at_least=dict(num_classes=1))
        super().__post_init__()

    def __call__(
        self,
        images: Float[Array, "b *spatial _"],
        *,
        train: bool,
        sample_valid: Bool[Array, " b"] | None = None,
        resize: bool = True,
    ) -> Float[Array, "b *size {self.num_classes}"]:
        """Class scores of every pixel, float32.

        Args:
            images: normalised colours, of any size.
            train: True normalises by the batch and updates `batch_stats`, which must
                then be mutable, and drops out, for which networks with drop-out need
                the PRNG stream "dropout".
            sample_valid: False marks padding samples. They may hold anything, and
                change neither the statistics nor the logits of the others.
            resize: False leaves logits at the size at which they are computed.
        """
        images = blank_padding(images, sample_valid)
        logits = self._logits(images, train=train, sample_valid=sample_valid)
        return self._enlarge(logits, images.shape[1:-1]) if resize else logits

    def _logits(
        self,
        images: Float[Array, "b *spatial _"],
        *,
        train: bool,
        sample_valid: Bool[Array, " b"] | None,
    ) -> Float[Array, "b *small {self.num_classes}"]:
        """Float32 scores at the size at which they are computed."""
        raise NotImplementedError

    def _head(
        self, x: Float[Array, "b *small _"], window: int = 1
    ) -> Float[Array, "b *small {self.num_classes}"]:
        """The last convolution, `head`."""
        return nn.Conv(
            self.num_classes,
            (window,) * (x.ndim - 2),
            kernel_init=he_normal,
            dtype="float32",
            # On a GPU a convolution would first copy bfloat16 features to float32.
            conv_general_dilated=multiply_channels if window == 1 else None,
            name="head",
        )(x)

    def _enlarge(
        self, logits: Float[Array, "b *small c"], size: tuple[Any, ...]
    ) -> Float[Array, "b *size c"]:
        """The scores at the size of the images."""
        return enlarge(logits, size)

"""Base class of the segmentation networks."""

from typing import Any

from flax import linen as nn
from jaxtyping import Array, Bool, Float

from segloss.models.checks import check_hyperparameters
from segloss.models.layers import blank_padding, enlarge, he_normal, multiply_channels
from segloss.models.norms import NormedModule


class Network(NormedModule, kw_only=True):
    """Base class of the segmentation networks; subclasses implement `_logits`.

    Parameters are always float32, and so are the last layers, which compute the logits.
    Unless a subclass says otherwise, weights are drawn from He's normal distribution.

    Adds these attributes to those of `NormedModule`.

    Attributes:
        num_classes: number of channels of the logits.
        remat: True recomputes each stage's activations in the backward pass instead of
            storing them (`jax.checkpoint`), which saves memory and takes a third more
            time.

    Raises:
        ValueError: at construction, if a hyperparameter is out of range.
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
        """Computes float32 logits for every pixel.

        Args:
            images: normalised colours, of any size.
            train: True normalises by the statistics of the batch (with `norm="batch"`)
                and updates `batch_stats`, which must then be mutable, and applies
                dropout, which needs the PRNG stream "dropout". False uses the running
                statistics and no dropout.
            sample_valid: False for padding samples. Their content is ignored: it
                affects neither the statistics nor the logits of other samples. None
                means that there are none.
            resize: True resizes the logits to the size of the images. False returns
                them at the network's output size.
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
        """Computes float32 logits at the network's output size, in each subclass.

        The arguments are those of `__call__`.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no _logits.")

    def _head(
        self, x: Float[Array, "b *small _"], window: int = 1
    ) -> Float[Array, "b *small {self.num_classes}"]:
        """Computes float32 class scores by a last convolution, the submodule `head`.

        `window` is its kernel size along each spatial axis. No norm or activation
        follows.
        """
        return nn.Conv(
            self.num_classes,
            (window,) * (x.ndim - 2),
            kernel_init=he_normal,
            dtype="float32",
            # A convolution on a GPU would first copy bfloat16 features to float32.
            conv_general_dilated=multiply_channels if window == 1 else None,
            name="head",
        )(x)

    def _enlarge(
        self, logits: Float[Array, "b *small c"], size: tuple[Any, ...]
    ) -> Float[Array, "b *size c"]:
        """Resizes the logits bilinearly to the spatial size of the images, `size`."""
        return enlarge(logits, size)

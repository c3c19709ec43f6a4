"""Normalisation of activations."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from segloss.errors import SeglossError
from segloss.models.checks import check_hyperparameters

NORMS = ("batch", "frozen", "group", "none")
DTYPES = ("float32", "bfloat16", "float16")


class BatchNorm(nn.Module, kw_only=True):
    """Batch normalisation over the valid samples of all devices.

    `(x - mean) / sqrt(var + epsilon) * scale + bias` per channel: Ioffe & Szegedy 2015
    (arXiv:1502.03167), algorithm 1. With `train=False`, mean and variance are the
    running ones. Where flax averages the means of the devices, this module divides sums
    by counts over all devices of `axis_name`, so devices may hold different numbers of
    valid samples, or none. If no device holds a valid sample, the running statistics
    are used and left unchanged. Invalid samples must be finite.

    If padding leaves a single value per channel, its variance is 0: it is normalised to
    0, and the running variance moves towards 0. If the batch's shape allows no more
    than one value, as for the mean of a single image, training raises an error.

    Statistics and parameters are float32 and named as in flax.

    Attributes:
        momentum: fraction of the running statistics that a training step keeps.
        epsilon: added to the variance, which is always the biased estimate.
        dtype: dtype of the output.
        axis_name: name of a pmap or shard_map axis whose devices share statistics.

    Raises:
        ValueError: in training, if `x` has one value per channel over all devices.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: str = "float32"
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b *spatial c"],
        *,
        train: bool,
        sample_valid: Bool[Array, " b"] | None = None,
    ) -> Float[Array, "b *spatial c"]:
        shape = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape)
        x = x.astype(jnp.float32)
        mean, var = running_mean.value, running_var.value
        if train:
            self._check_values(x)
            count, batch_mean, batch_var = self._moments(x, sample_valid)
            mean = jnp.where(count > 0, batch_mean, mean)
            var = jnp.where(count > 0, batch_var, var)
            if not self.is_initializing():
                step = 1 - self.momentum
                running_mean.value += step * (mean - running_mean.value)
                running_var.value += step * (var - running_var.value)
        gain = scale * jax.lax.rsqrt(var + self.epsilon)
        # `held - mean` is 0 and carries the gradient of the mean, so that it reuses the
        # sum over pixels that the bias needs. A separate sum would cost another pass.
        held = jax.lax.stop_gradient(mean)
        shift = bias + (held - mean) * gain
        y = (x - like(x, held)) * like(x, gain) + like(x, shift)
        return y.astype(self.dtype)

    def _check_values(self, x: Float[Array, "b *spatial c"]) -> None:
        # `init` runs outside the mapped function, on images of any number.
        if self.is_initializing() or math.prod(x.shape[:-1]) > 1:
            return
        if self.axis_name is None or jax.lax.psum(1, self.axis_name) == 1:
            raise SeglossError(
                f"BatchNorm {'/'.join(self.path)}: a batch of one value per channel, "
                f"{'x'.join(map(str, x.shape))}, has no variance; use norm='group', "
                "norm='frozen' or larger batches."
            )

    def _moments(
        self, x: Float[Array, "b *spatial c"], sample_valid: Bool[Array, " b"] | None
    ) -> tuple[Float[Array, " 1"], Float[Array, " c"], Float[Array, " c"]]:
        """Returns count, mean and variance of the valid samples' values per channel.

        They cover all devices of `axis_name`.
        """
        if sample_valid is None:
            sample_valid = jnp.ones(x.shape[0], bool)
        valid = jnp.expand_dims(sample_valid, range(1, x.ndim))

        def total(values):
            values = jnp.sum(values, axis=range(x.ndim - 1), where=valid)
            # `init` runs outside the mapped function, where the axis is undefined.
            if self.axis_name is None or self.is_initializing():
                return values
            return jax.lax.psum(values, self.axis_name)

        count = total(jnp.ones_like(x[..., :1]))
        divisor = jnp.maximum(count, 1)
        mean = total(x) / divisor
        # Deviations from the mean sum to 0, so no gradient passes through it here.
        deviation = x - like(x, jax.lax.stop_gradient(mean))
        return count, mean, total(deviation**2) / divisor


def apply_norm(
    x: Float[Array, "b *spatial c"],
    *,
    name: str,
    norm: str,
    norm_momentum: float = 0.9,
    epsilon: float = 1e-5,
    dtype: str,
    axis_name: str | None,
    train: bool,
    sample_valid: Bool[Array, " b"] | None,
) -> Float[Array, "b *spatial c"]:
    """Normalises activations by a norm, the submodule `name` of the calling module.

    Args:
        x: activations.
        name: name of the submodule; "batch" and "frozen" have the same variables.
        norm: "batch" is `BatchNorm`. "frozen" is `BatchNorm` that uses the running
            statistics in training, too, for pretrained weights and small batches.
            "group" is group normalisation (Wu & He 2018, arXiv:1803.08494); the number
            of groups is the largest power of two, at most 32, that divides the
            channels. "none" returns `x`.
        norm_momentum: fraction of the running statistics that a training step keeps.
        epsilon: added to the variance.
        dtype: dtype of the output.
        axis_name: name of a pmap or shard_map axis whose devices share batch
            statistics.
        train: `norm="batch"` normalises by the batch and updates the running statistics
            if True, and uses the running statistics if False. Other norms ignore it.
        sample_valid: False for padding samples, which batch statistics leave out; None
            means that there are none.
    """
    if norm in ("batch", "frozen"):
        module = BatchNorm(
            momentum=norm_momentum,
            epsilon=epsilon,
            dtype=dtype,
            axis_name=axis_name,
            name=name,
        )
        return module(x, train=train and norm == "batch", sample_valid=sample_valid)
    if norm == "group":
        groups = math.gcd(32, x.shape[-1])
        return nn.GroupNorm(groups, epsilon=epsilon, dtype=dtype, name=name)(x)
    return x


class NormedModule(nn.Module, kw_only=True):
    """Base class of modules that contain norms.

    Attributes:
        norm: "batch" (batch normalisation), "frozen" (the same, always by the running
            statistics), "group" (group normalisation) or "none".
        norm_momentum: fraction of the running statistics that a training step keeps.
        dtype: dtype of the computation and of the output: "float32", "bfloat16" or
            "float16", which needs `config.optimizer.loss_scale` in training.
            Parameters and statistics are float32.
        axis_name: name of a pmap or shard_map axis whose devices share batch
            statistics.
    """

    norm: str = "batch"
    norm_momentum: float = 0.9
    dtype: str = "float32"
    axis_name: str | None = None

    def __post_init__(self):
        check_hyperparameters(
            self,
            one_of=dict(norm=NORMS, dtype=DTYPES),
            shares=("norm_momentum",),
        )
        super().__post_init__()

    @property
    def norm_fields(self) -> dict[str, Any]:
        """These four attributes as keyword arguments of norms and submodules."""
        names = ("norm", "norm_momentum", "dtype", "axis_name")
        return {name: getattr(self, name) for name in names}


def like(x: Float[Array, "..."], channels: Float[Array, " c"]) -> Float[Array, "..."]:
    """Prepends axes of size 1 to `channels` until it has the rank of `x`.

    Implicit rank promotion is an error in the tests.
    """
    return jnp.expand_dims(channels, range(x.ndim - 1))

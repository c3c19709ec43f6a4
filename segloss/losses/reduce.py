"""What all losses share: checks, scores without void, and the one reduction."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Integer, Real

# An array, or the tuple that a config holds.
ClassWeights = Real[Array, " c"] | Sequence[ArrayLike]

# The gradient of a quotient divides by the square, which float32 holds down to 1e-38.
SMALLEST_DIVISOR = 1e-18


def check_choice(
    function: str, argument: str, value: Any, choices: Sequence[str]
) -> None:
    """Raises ValueError unless `value` is one of `choices`."""
    if value not in choices:
        known = " or ".join(repr(choice) for choice in choices)
        raise ValueError(f"{function}: {argument} must be {known}, got {value!r}.")


def check_arrays(
    function: str,
    logits: Array,
    labels: Array,
    valid: Array | None,
    class_weights: ClassWeights | None = None,
    *,
    multi_label: bool = False,
) -> None:
    """Raises ValueError where shapes would broadcast or types convert in silence."""
    shape = logits.shape if multi_label else logits.shape[:-1]
    if labels.shape != shape:
        raise ValueError(
            f"{function}: labels must have shape {shape} for logits "
            f"{logits.shape}, got {labels.shape}."
        )
    integer = jnp.issubdtype(labels.dtype, jnp.integer)
    if integer == multi_label:
        wanted = "float or bool" if multi_label else "integer"
        raise ValueError(f"{function}: labels must be {wanted}, got {labels.dtype}.")
    if valid is not None:
        if valid.dtype != bool:
            raise ValueError(f"{function}: valid must be bool, got {valid.dtype}.")
        sizes = zip(valid.shape[::-1], shape[::-1], strict=False)
        if valid.ndim > len(shape) or any(v not in (1, size) for v, size in sizes):
            raise ValueError(
                f"{function}: valid must be broadcastable to labels {shape}, "
                f"got {valid.shape}."
            )
    if class_weights is not None:
        weights = jnp.asarray(class_weights)
        if weights.shape != logits.shape[-1:]:
            raise ValueError(
                f"{function}: class_weights must have shape {logits.shape[-1:]}, "
                f"one per class, got {weights.shape}."
            )


def valid_or_all(
    labels: Real[Array, "*shape"] | Bool[Array, "*shape"],
    valid: Bool[Array, "..."] | None,
) -> Bool[Array, "*shape"]:
    """`valid` in the shape of `labels`."""
    return jnp.broadcast_to(True if valid is None else valid, labels.shape)


def one_hot(
    labels: Integer[Array, "*pixels"], num_classes: int
) -> Bool[Array, "*pixels {num_classes}"]:
    """True at the label; all False where the label is no class.

    Meant to be read inside a reduction, into which XLA fuses it.
    """
    # int32 first, because uint8 cannot count to more than 256 classes.
    return jax.nn.one_hot(labels.astype(jnp.int32), num_classes, dtype=bool)


@jax.custom_jvp
def at_label(
    values: Float[Array, "*pixels c"], labels: Integer[Array, "*pixels"]
) -> Float[Array, "*pixels"]:
    """The value of each pixel's label; of some class where the label is none."""
    labels = jnp.clip(labels.astype(jnp.int32), 0, values.shape[-1] - 1)
    return jnp.take_along_axis(values, labels[..., None], axis=-1)[..., 0]


@at_label.defjvp
def _at_label_jvp(primals, tangents):
    # The same as a gather's own derivative, but the transpose of a sum is fused where
    # the transpose of a gather is a scatter into an array of its own.
    values, labels = primals
    chosen = jnp.where(one_hot(labels, values.shape[-1]), tangents[0], 0.0)
    return at_label(values, labels), chosen.sum(axis=-1)


def softmax_parts(
    logits: Float[Array, "*pixels c"],
    labels: Integer[Array, "*pixels"],
    valid: Bool[Array, "..."] | None,
) -> tuple[Float[Array, "*pixels c"], Float[Array, "*pixels"], Float[Array, "*pixels"]]:
    """Logits in float32, their maximum, and the sum of `exp(logits - maximum)`.

    A pixel that is not valid gets logits 0, whatever it holds, and no gradient. Where
    a valid pixel's label is no class the sum is NaN: void that was not masked must not
    pass for a pixel without error.
    """
    valid = valid_or_all(labels, valid)
    logits = jnp.where(valid[..., None], logits.astype(jnp.float32), 0.0)
    top = jax.lax.stop_gradient(logits.max(axis=-1))
    total = jnp.exp(logits - top[..., None]).sum(axis=-1)
    labels = labels.astype(jnp.int32)
    known = (labels >= 0) & (labels < logits.shape[-1])
    # Not before exp, which XLA for CPU (jaxlib 0.10.2) compiles wrongly for a constant
    # NaN: exp(where(a, nan, x)).sum() is not NaN.
    return logits, top, jnp.where(valid & ~known, jnp.nan, total)


def log_probs(
    logits: Float[Array, "*pixels c"],
    labels: Integer[Array, "*pixels"],
    valid: Bool[Array, "..."] | None,
) -> Float[Array, "*pixels c"]:
    """Log-probability of every class in float32; see `softmax_parts` for void."""
    logits, top, total = softmax_parts(logits, labels, valid)
    # In this order, because the logits may be large and their differences small.
    return (logits - top[..., None]) - jnp.log(total)[..., None]


def log_prob_of_label(
    logits: Float[Array, "*pixels c"],
    labels: Integer[Array, "*pixels"],
    valid: Bool[Array, "..."] | None,
) -> Float[Array, "*pixels"]:
    """Log-probability of the label in float32, at most 0; see `softmax_parts`."""
    logits, top, total = softmax_parts(logits, labels, valid)
    return (at_label(logits, labels) - top) - jnp.log(total)


def weigh(
    loss: Float[Array, "*pixels"],
    labels: Integer[Array, "*pixels"],
    class_weights: ClassWeights | None,
) -> Float[Array, "*pixels"]:
    """Each pixel's loss times the weight of its label; None weighs all alike."""
    if class_weights is None:
        return loss
    weights = jnp.asarray(class_weights, jnp.float32)
    # A void label may lie outside; what it finds is not counted.
    return loss * weights[jnp.clip(labels.astype(jnp.int32), 0, weights.size - 1)]


def sum_over_devices(sums: Any, axis_name: str | None) -> Any:
    """A tree of sums over this device's pixels, made sums over all devices'."""
    return sums if axis_name is None else jax.lax.psum(sums, axis_name)


def safe_divide(
    numerator: Float[Array, "*shape"], divisor: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """The quotient, and 0 without gradient where there is nothing to divide by."""
    empty = divisor < SMALLEST_DIVISOR  # False for NaN, which has to stay NaN
    return jnp.where(empty, 0.0, numerator / jnp.where(empty, 1.0, divisor))


def count_samples(
    valid: Bool[Array, " b *rest"], axis_name: str | None
) -> Float[Array, ""]:
    """Number of samples that hold a valid pixel, over all devices: m of the paper."""
    samples = valid.any(axis=range(1, valid.ndim)).sum().astype(jnp.float32)
    return sum_over_devices(samples, axis_name)


def mean_over_pixels(
    loss: Float[Array, " b *spatial"],
    valid: Bool[Array, "..."] | None = None,
    *,
    normalize_by: str = "pixels",
    pixel_weights: Float[Array, " b *spatial"] | None = None,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Sum of `loss` over the valid pixels of all devices, divided; 0 if none is valid.

    Args:
        loss: loss of each pixel (or of each image, `[b]`), already weighted.
        valid: True where a pixel counts, broadcastable to `loss`; None is all.
        normalize_by: what the sum is divided by. "pixels": the number of valid
            pixels. "weights": the sum of their `pixel_weights`. "samples": the
            number of samples that hold a valid pixel.
        pixel_weights: the weights that `loss` holds as factors; None means ones.
        axis_name: mapped device axis whose devices share one mean.
    """
    valid = valid_or_all(loss, valid)
    total = sum_over_devices(jnp.where(valid, loss, 0.0).sum(), axis_name)
    if normalize_by == "samples":
        return safe_divide(total, count_samples(valid, axis_name))
    if normalize_by == "weights" and pixel_weights is not None:
        count = jnp.where(valid, pixel_weights, 0.0).sum()
    else:
        count = valid.sum().astype(jnp.float32)
    return safe_divide(total, sum_over_devices(count, axis_name))


def mean_over_classes(
    cost: Float[Array, "rows c"],
    takes_part: Bool[Array, "rows c"],
    valid: Bool[Array, " b *rest"],
    *,
    class_weights: ClassWeights | None,
    per_image: bool,
    normalize_by: str,
    axis_name: str | None,
) -> Float[Array, ""]:
    """Weighted mean of the classes' costs; 0 if none takes part.

    Args:
        cost: a row for each image if `per_image`, else one for the global batch.
        takes_part: False where a cost is left out.
        valid: True where a pixel counts.
        class_weights: a factor per class; None means ones.
        per_image: average the rows over the images that hold a valid pixel.
        normalize_by: what a row's sum is divided by. "classes": the sum of the
            weights that take part. "samples": nothing if `per_image`, whose mean does
            it, else the number of samples that hold a valid pixel.
        axis_name: mapped device axis whose devices share one mean.
    """
    weights = jnp.ones(cost.shape[-1:])
    if class_weights is not None:
        weights = jnp.asarray(class_weights, jnp.float32)
    weights = jnp.where(takes_part, weights[None], 0.0)
    loss = (jnp.where(takes_part, cost, 0.0) * weights).sum(axis=-1)
    if normalize_by == "classes":
        loss = safe_divide(loss, weights.sum(axis=-1))
    if per_image:
        images = valid.any(axis=range(1, valid.ndim))
        return mean_over_pixels(loss, images, axis_name=axis_name)
    if normalize_by == "samples":
        return safe_divide(loss[0], count_samples(valid, axis_name))
    return loss[0]

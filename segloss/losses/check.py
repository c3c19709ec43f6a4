"""Argument checks of the losses, with one-line error messages."""

import math
import numbers
from collections.abc import Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Integer, Real

from segloss.errors import SeglossError
from segloss.losses.numerics import SMALLEST_DIVISOR

# A hyperparameter that takes part in arithmetic only. The value of a number is checked;
# that of a scalar array is not, because it is unknown while a function is traced.
Scalar = Real[Array, ""] | float | int

# An array, or a tuple as in a config.
ClassWeights = Real[Array | np.ndarray, " c"] | Sequence[ArrayLike]
Penalty = Real[Array | np.ndarray, "c c"] | Sequence[Sequence[ArrayLike]]

# The share of the pixel that belongs to each class.
SoftLabels = Float[Array, "b *spatial c"] | Bool[Array, "b *spatial c"]
Labels = Integer[Array, " b *spatial"] | SoftLabels

# How far a mask or soft label may lie outside [0, 1]. Mixing and resizing in bfloat16
# gives up to 1 + 1/128.
ROUNDING = 0.01

# A factor per pixel, broadcastable to the array that it weights.
PixelWeights = Real[Array | np.ndarray, "..."]


def check_choice(
    function: str, argument: str, value: Any, choices: Sequence[str | bool]
) -> None:
    """Raises ValueError unless `value` is one of `choices`.

    `function` and `argument` are names for the message.
    """
    if value not in choices:
        known = " or ".join(repr(choice) for choice in choices)
        raise SeglossError(f"{function}: {argument} must be {known}, got {value!r}.")


def takes_scalar(annotation: Any) -> bool:
    """Returns whether a type annotation includes all types of `Scalar`.

    An argument with such an annotation may be a traced array.
    """
    return set(get_args(Scalar)) <= set(get_args(annotation))


def check_range(
    function: str,
    argument: str,
    value: Scalar,
    low: float | int,
    high: float | int = math.inf,
    *,
    without_low: bool = False,
    whole: bool = False,
) -> None:
    """Raises ValueError unless `value` is a finite number in `[low, high]`.

    `function` and `argument` are names for the message. With `without_low` the value
    must exceed `low`; with `whole` it must be an integer. Of an array, refused if
    `whole`, only the shape is checked: its values are unknown while traced.
    """
    if isinstance(value, Array) and not whole:
        check_shape(function, argument, value)
        return
    kind = numbers.Integral if whole else numbers.Real
    if not isinstance(value, kind) or isinstance(value, bool):
        wanted = "an integer" if whole else "a number"
        raise SeglossError(f"{function}: {argument} must be {wanted}, got {value!r}.")
    if low <= value <= high and value < math.inf and not (without_low and value == low):
        return
    closed = "(" if without_low else "["
    end = f"{high}]" if high < math.inf else "inf)"
    raise SeglossError(
        f"{function}: {argument} must be in {closed}{low}, {end}, got {value}."
    )


def check_shape(function: str, argument: str, value: Array) -> None:
    """Raises ValueError unless the array is a scalar, i.e. has no axes."""
    if value.ndim:
        raise SeglossError(
            f"{function}: {argument} must be a number or a scalar array, got shape "
            f"{value.shape}."
        )


def check_smooth(function: str, smooth: Scalar) -> None:
    """Raises ValueError unless `smooth` is 0, or finite and at least 1e-18.

    float32 cannot represent the squares of smaller values. Of an array only the shape
    is checked. `function` is the caller's name, for the message.
    """
    if isinstance(smooth, Array):
        check_shape(function, "smooth", smooth)
        return
    number = isinstance(smooth, numbers.Real) and not isinstance(smooth, bool)
    if not number or (smooth != 0 and not SMALLEST_DIVISOR <= smooth < math.inf):
        raise SeglossError(
            f"{function}: smooth must be 0, or at least {SMALLEST_DIVISOR} and finite, "
            f"got {smooth!r}."
        )


def check_weights(function: str, argument: str, value: Any) -> None:
    """Raises ValueError unless numbers are finite and >= 0, and one is above 0.

    `value` is a number per class; see `check_nonnegative`.
    """
    weights = check_nonnegative(function, argument, value)
    if weights is not None and not weights.any():
        raise SeglossError(
            f"{function}: {argument} must not all be 0, got {weights.tolist()}."
        )


def check_nonnegative(function: str, argument: str, value: Any) -> np.ndarray | None:
    """Raises ValueError unless all numbers of an array are finite and >= 0.

    `value` is a number per class, or per pair of classes. None and single numbers are
    accepted. Values that are unknown on this host, because they are traced by `jax.jit`
    or lie on other hosts, are not checked. `function` and `argument` are names for the
    message.

    Returns:
        The numbers; None if they were not checked.
    """
    try:
        weights = _known_values(value)
        if weights is None or weights.ndim == 0:
            return None
        weights = weights.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise SeglossError(
            f"{function}: {argument} must be numbers, got {value!r}."
        ) from error
    wrong = ~(np.isfinite(weights) & (weights >= 0))
    if wrong.any():
        place = ", ".join(map(str, np.argwhere(wrong)[0]))
        raise SeglossError(
            f"{function}: {argument} must be finite and >= 0, got "
            f"{weights[wrong][0]:g} for class {place}."
        )
    return weights


def check_label_values(
    function: str, labels: Array, valid: Array | None, num_classes: int
) -> None:
    """Raises ValueError if a valid label is no class id, or no mask value in `[0, 1]`.

    Integer labels are class ids of `num_classes` classes, others masks. Labels that are
    unknown on this host, because they are traced by `jax.jit` or lie on other hosts,
    are not checked. `function` is the caller's name, for the message.
    """
    known = _known_values(labels)
    counts = np.array(True) if valid is None else _known_values(valid)
    if known is None or counts is None or known.dtype == bool:
        return
    ids = jnp.issubdtype(known.dtype, jnp.integer)
    known = known[np.broadcast_to(counts, known.shape)]
    if ids:
        stray = known[(known < 0) | (known >= num_classes)]
        rule = f"labels must be class ids in [0, {num_classes})"
        cure = "leave void pixels out with `valid`, or check num_classes"
    else:
        known = known.astype(np.float64)
        stray = known[~((known >= -ROUNDING) & (known <= 1 + ROUNDING))]
        rule = "masks must be in [0, 1]"
        cure = "leave void elements out with `valid`"
        if stray.size and (top := stray.max()) > 1:
            cure = f"divide by {top:g} or compare with > 0"
    if stray.size:
        raise SeglossError(
            f"{function}: {rule}, got {stray.max():g} ({stray.size} of {known.size} "
            f"valid values are out of range): {cure}."
        )


def _known_values(x: Any) -> np.ndarray | None:
    """Converts to NumPy; None for None and if a value is unknown on this host."""
    leaves = jax.tree.leaves(x)
    known = (getattr(leaf, "is_fully_addressable", True) for leaf in leaves)
    if not leaves or any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        return None
    return np.asarray(x) if all(known) else None


def check_arrays(
    function: str,
    logits: Array,
    labels: Array,
    valid: Array | None,
    class_weights: ClassWeights | None = None,
    *,
    pixel_weights: PixelWeights | None = None,
    multi_label: bool = False,
    soft: bool = False,
) -> None:
    """Raises ValueError if an array's shape or type does not match `logits`.

    JAX would broadcast or convert such arrays silently.

    Args:
        function: name of the calling function, for the message.
        logits: class scores `[b, *spatial, c]`; must not be empty.
        labels: integer class ids `[b, *spatial]`, or float or bool values per class,
            `[b, *spatial, c]`.
        valid: None, or bool and broadcastable to `[b, *spatial]`; with `multi_label`,
            to `[b, *spatial, c]`.
        class_weights: None, or one number per class.
        pixel_weights: None, or floats with the same broadcasting rule as `valid`.
        multi_label: True requires `labels` with one value per class.
        soft: True also allows `labels` with one value per class, if `logits` has at
            least 2 classes.
    """
    if logits.size == 0:
        raise SeglossError(f"{function}: logits must not be empty, got {logits.shape}.")
    pixels = logits.shape if multi_label else logits.shape[:-1]
    integer = jnp.issubdtype(labels.dtype, jnp.integer)
    of_classes = multi_label or (soft and not integer and labels.ndim == logits.ndim)
    shape = logits.shape if of_classes else pixels
    if labels.shape != shape:
        raise SeglossError(
            f"{function}: labels must have shape {shape} for logits {logits.shape}, "
            f"got {labels.shape}{_hint_of_layout(logits, labels, shape)}."
        )
    if integer == of_classes:
        wanted = "float or bool" if of_classes else "integer"
        hint = "; masks of integers: pass labels > 0" if of_classes else ""
        raise SeglossError(
            f"{function}: labels must be {wanted}, got {labels.dtype}{hint}."
        )
    if of_classes and not multi_label and logits.shape[-1] == 1:
        raise SeglossError(
            f"{function}: logits must have at least 2 classes, got {logits.shape}: the "
            "softmax of a single class is always 1. For binary masks use a sigmoid "
            "loss or multi_label=True."
        )
    if valid is not None:
        if valid.dtype != bool:
            raise SeglossError(f"{function}: valid must be bool, got {valid.dtype}.")
        _check_broadcastable(function, "valid", valid, pixels)
    if pixel_weights is not None:
        weights = jnp.asarray(pixel_weights)
        if not jnp.issubdtype(weights.dtype, jnp.floating):
            raise SeglossError(
                f"{function}: pixel_weights must be float, got {weights.dtype}."
            )
        _check_broadcastable(function, "pixel_weights", weights, pixels)
    if class_weights is not None:
        weights = jnp.asarray(class_weights)
        if weights.shape != logits.shape[-1:]:
            raise SeglossError(
                f"{function}: class_weights must have shape {logits.shape[-1:]}, "
                f"one per class, got {weights.shape}."
            )


def _hint_of_layout(logits: Array, labels: Array, wanted: tuple[int, ...]) -> str:
    """Says what to do if the labels fit logits whose axis 1 is that of the classes."""
    as_last = (logits.shape[0], *logits.shape[2:], *logits.shape[1:2])
    fitting = as_last if wanted == logits.shape else as_last[:-1]
    if logits.ndim < 3 or labels.shape != fitting:
        return ""
    return "; logits must be channels last: pass jnp.moveaxis(logits, 1, -1)"


def _check_broadcastable(
    function: str, argument: str, x: Array, shape: tuple[int, ...]
) -> None:
    sizes = zip(x.shape[::-1], shape[::-1], strict=False)
    if x.ndim > len(shape) or any(n not in (1, size) for n, size in sizes):
        raise SeglossError(
            f"{function}: {argument} must be broadcastable to labels {shape}, "
            f"got {x.shape}."
        )

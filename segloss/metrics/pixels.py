"""Checks shared by the metrics: which pixels count."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Integer

from segloss.errors import SeglossError


def check_pixels(
    function: str,
    valid: Array | None,
    num_classes: int,
    **class_ids: Array,
) -> tuple[Array, ...]:
    """Checks the arrays of a metric; returns the class ids as int32, then `valid`.

    `class_ids` are arrays of one shape by argument name, among them `labels`; `valid`
    is broadcast to this shape, and None gives all True. `function` is the caller's
    name, for messages.

    Raises:
        ValueError: if `num_classes` is less than 1, ids are not integers or differ in
            shape, or `valid` is not bool or not broadcastable to `labels`.
    """
    if num_classes < 1:
        raise SeglossError(f"{function}: num_classes must be >= 1, got {num_classes}.")
    shape = class_ids["labels"].shape
    for name, ids in class_ids.items():
        if not jnp.issubdtype(ids.dtype, jnp.integer):
            raise SeglossError(f"{function}: {name} must be integer, got {ids.dtype}.")
        if ids.shape != shape:
            raise SeglossError(
                f"{function}: {name} must have the shape of labels {shape}, "
                f"got {ids.shape}."
            )
    if valid is None:
        valid = jnp.array(True)
    if valid.dtype != bool:
        raise SeglossError(f"{function}: valid must be bool, got {valid.dtype}.")
    sizes = zip(valid.shape[::-1], shape[::-1], strict=False)
    if valid.ndim > len(shape) or any(v not in (1, size) for v, size in sizes):
        raise SeglossError(
            f"{function}: valid must be broadcastable to labels {shape}, "
            f"got {valid.shape}."
        )
    # In the caller's type, index arithmetic could overflow: uint8 from 16 classes on.
    in_int32 = [ids.astype(jnp.int32) for ids in class_ids.values()]
    return *in_int32, jnp.broadcast_to(valid, shape)


def are_classes(
    ids: Integer[Array, "*pixels"], num_classes: int
) -> Bool[Array, "*pixels"]:
    """True where an id is in `[0, num_classes)`."""
    return (ids >= 0) & (ids < num_classes)

"""Checks shared by the metrics: which pixels count, and which labels are wrong."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Integer

from segloss.errors import SeglossError

# Added up over fewer than 1024 devices, these stay within int32, and so negative. They
# outweigh the pixels that the other batches add to some count.
SPOILED = -(2**21)


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
                f"got {ids.shape}; logits are channels last: logits.argmax(axis=-1)."
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


def spoil(counts: Array, wrong: Bool[Array, ""]) -> Array:
    """Makes all counts negative if `wrong`, i.e. if a valid label is no class.

    Compiled code cannot raise an error; the scores do: see `check_counts`.
    """
    return jnp.where(wrong, jnp.asarray(SPOILED, counts.dtype), counts)


def check_counts(function: str, counts: np.ndarray) -> None:
    """Raises ValueError if a count is negative; `function` is the name of the score."""
    if (counts < 0).any():
        raise SeglossError(
            f"{function}: the counts are negative because there were valid labels that "
            "are no class; mask them with `valid`, or check num_classes."
        )

"""Validation of the attributes of Flax modules."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from flax import linen as nn

from segloss.errors import SeglossError

# XLA ends the process at an array with more elements than 64 bits can count.
LARGEST = 2**20


def check_hyperparameters(
    module: nn.Module,
    *,
    at_least: Mapping[str, int] = MappingProxyType({}),
    one_of: Mapping[str, Sequence[Any]] = MappingProxyType({}),
    odd: Sequence[str] = (),
    shares: Sequence[str] = (),
) -> None:
    """Checks the attributes of a module; its `__post_init__` calls this.

    Args:
        module: the module to check.
        at_least: maps an attribute's name to its smallest allowed value; the largest is
            `LARGEST`.
        one_of: maps an attribute's name to its allowed values.
        odd: names of attributes that must be odd and at least 1.
        shares: names of attributes that must be in [0, 1).

    Raises:
        ValueError: if an attribute breaks its rule; the message names it.
    """
    network = type(module).__name__
    for name, least in at_least.items():
        if (value := getattr(module, name)) < least:
            raise SeglossError(f"{network}: {name} must be >= {least}, got {value}.")
        if value > LARGEST:
            raise SeglossError(f"{network}: {name} must be <= {LARGEST}, got {value}.")
    for name, known in one_of.items():
        if (value := getattr(module, name)) not in known:
            raise SeglossError(
                f"{network}: {name} must be one of {', '.join(map(str, known))}, "
                f"got {value!r}."
            )
    for name in odd:
        if (value := getattr(module, name)) < 1 or value % 2 == 0:
            raise SeglossError(f"{network}: {name} must be odd and >= 1, got {value}.")
    for name in shares:
        if not 0 <= (value := getattr(module, name)) < 1:
            raise SeglossError(f"{network}: {name} must be in [0, 1), got {value}.")


def are_counts(values: Any, length: int | None = None) -> bool:
    """True if `values` is a nonempty sequence of numbers >= 1.

    If `length` is not None, the sequence must also have this length.
    """
    if not isinstance(values, Sequence) or not values:
        return False
    return length in (None, len(values)) and min(values) >= 1

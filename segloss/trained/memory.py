"""Says in one line what did not fit into memory, and which fields to lower."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from segloss.errors import OutOfMemoryError, find_out_of_memory

_SHOWN = 2


@contextlib.contextmanager
def memory_named(
    doing: str, parts: Callable[[], Mapping[str, int]], fields: Mapping[str, Any]
) -> Iterator[None]:
    """Context manager in which a lack of memory becomes an `OutOfMemoryError`.

    Args:
        doing: what the block does, such as "training".
        parts: called after the error; maps the names of what needs most memory to
            numbers of bytes.
        fields: the fields of the config to lower, with their values; None are left out.
    """
    try:
        yield
    except OutOfMemoryError:
        raise
    # `RuntimeError` is the base class of JAX's error.
    except (MemoryError, RuntimeError) as error:
        if (asked := find_out_of_memory(error)) is None:
            raise
        largest = sorted(parts().items(), key=lambda part: -part[1])
        sizes = " and ".join(f"{name} {in_gib(x)}" for name, x in largest[:_SHOWN])
        values = (f"{k}={v!r}" for k, v in fields.items() if v is not None)
        raise OutOfMemoryError(
            f"out of memory while {doing}: {asked}; of the parts with a known size, "
            f"the largest are {sizes}; lower {' or '.join(values)}."
        ) from error


def in_gib(num_bytes: int) -> str:
    """Formats a number of bytes.

    >>> in_gib(3 * 2**29)
    '1.50 GiB'
    """
    return f"{num_bytes / 2**30:.2f} GiB"


def bytes_of(tree: Any) -> int:
    """Number of bytes of a tree of arrays or of their shapes."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))

"""Sends arrays of the first process to all others, over the links between devices."""

import math
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from segloss.hosts.exchange import is_first, of_first, process_count

# Each array starts at a multiple of this number of bytes, so that it can be a view.
_ALIGN = 16
# Sent at a time, so that little memory of the devices is needed: 64 MiB.
_WORDS = 2**24


def arrays_of_first(
    arrays: Mapping[str, np.ndarray] | None,
) -> dict[str, np.ndarray]:
    """Returns the arrays of the first process in all processes, with their names.

    All processes must call this. Types and bits arrive unchanged. The first process
    needs as much further memory as its arrays take.

    Args:
        arrays: arrays by name; only those of the first process are used, so the others
            may give None.
    """
    if process_count() == 1:
        return dict(arrays)

    def describe() -> list[tuple[str, str, tuple[int, ...]]]:
        return [(name, str(x.dtype), x.shape) for name, x in arrays.items()]

    placed, end = {}, 0
    # This also waits until all processes are here: a collective waits only for a while.
    for name, dtype, shape in of_first(describe):
        size = math.prod(shape) * jnp.dtype(dtype).itemsize
        placed[name] = slice(end, end + size), jnp.dtype(dtype), shape
        end += -(-size // _ALIGN) * _ALIGN
    # As 32-bit words, which the collectives of all kinds of devices can add.
    words = np.zeros(end // 4, np.uint32)
    flat = words.view(np.uint8)
    if is_first():
        for name, (place, *_) in placed.items():
            flat[place] = np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8)
    for start in range(0, len(words), _WORDS):
        part = words[start : start + _WORDS]
        part[:] = multihost_utils.broadcast_one_to_all(part)
    return {
        name: flat[place].view(dtype).reshape(shape)
        for name, (place, dtype, shape) in placed.items()
    }

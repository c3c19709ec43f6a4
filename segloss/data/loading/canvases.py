"""Reuses the memory of batches once no array refers to it."""

import functools
import math
from typing import Any

import numpy as np
from jaxtyping import UInt8

_ALIGNMENT = 64  # bytes


class Canvases:
    """A pool of uint8 arrays of one shape, filled with one value.

    An array returns to the pool once nothing refers to it. Only the rows that were
    written are then filled again: a batch with few samples is mostly padding, and
    filling all of it would take a considerable part of the time to decode its images.
    """

    def __init__(self, shape: tuple[int, ...], value: int):
        self._shape = shape
        self._value = value
        self._free: list[UInt8[np.ndarray, ...]] = []

    def take(self, rows: int) -> UInt8[np.ndarray, "..."]:
        """Returns a filled array; the caller may write only its first `rows` rows."""
        try:
            memory = self._free.pop()
        except IndexError:
            memory = _aligned(self._shape, self._value)
        return np.asarray(_Loan(memory, rows, self))

    def take_back(self, memory: UInt8[np.ndarray, "..."], rows: int) -> None:
        memory[:rows] = self._value
        self._free.append(memory)

    def __reduce__(self) -> tuple[Any, ...]:
        return Canvases, (self._shape, self._value)


class _Loan:
    """Owner of an array's memory, which it returns to the pool when it is deleted.

    NumPy keeps this object alive as long as NumPy or JAX uses the memory.
    """

    def __init__(self, memory: UInt8[np.ndarray, "..."], rows: int, canvases: Canvases):
        self.__array_interface__ = memory.__array_interface__
        self._end = functools.partial(canvases.take_back, memory, rows)

    def __del__(self) -> None:
        self._end()


def _aligned(shape: tuple[int, ...], value: int) -> UInt8[np.ndarray, "..."]:
    """Returns a uint8 array at an aligned address; XLA:CPU uses it without a copy."""
    size = math.prod(shape)
    memory = np.full(size + _ALIGNMENT, value, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].reshape(shape)

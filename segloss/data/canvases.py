"""Memory for batches that is used again once no array of it is left."""

import functools
import math
from typing import Any

import numpy as np
from jaxtyping import UInt8

_ALIGNMENT = 64  # bytes


class Canvases:
    """Arrays of one shape that hold one value, in memory that is used again.

    A batch of few samples is mostly padding, and to write all of that anew takes a
    sizeable part of the time that its images take to decode. Here only rows that were
    written are cleared.
    """

    def __init__(self, shape: tuple[int, ...], value: int):
        self._shape = shape
        self._value = value
        self._free: list[UInt8[np.ndarray, ...]] = []

    def take(self, rows: int) -> UInt8[np.ndarray, "..."]:
        """An array of which only the first so many rows may be written."""
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
    """What numpy holds for as long as any array, numpy's or JAX's, shows the memory."""

    def __init__(self, memory: UInt8[np.ndarray, "..."], rows: int, canvases: Canvases):
        self.__array_interface__ = memory.__array_interface__
        self._end = functools.partial(canvases.take_back, memory, rows)

    def __del__(self) -> None:
        self._end()


def _aligned(shape: tuple[int, ...], value: int) -> UInt8[np.ndarray, "..."]:
    """Equal bytes at an address from which XLA on CPU uses them without a copy."""
    size = math.prod(shape)
    memory = np.full(size + _ALIGNMENT, value, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].reshape(shape)

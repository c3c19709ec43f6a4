"""Reuses the memory of batches once no array refers to it."""

import functools
import math
from typing import Any

import numpy as np
from jaxtyping import Shaped
from numpy.typing import DTypeLike

_ALIGNMENT = 64  # bytes


class Canvases:
    """A pool of arrays of one shape and type, filled with one value.

    An array returns to the pool once nothing refers to it. Only the rows that were
    written are then filled again: a batch with few samples is mostly padding, and
    filling all of it would take a considerable part of the time to decode its images.
    """

    def __init__(self, shape: tuple[int, ...], value: int, dtype: DTypeLike = np.uint8):
        self._shape = shape
        self._value = value
        self._dtype = np.dtype(dtype)
        self._free: list[Shaped[np.ndarray, ...]] = []

    def take(self, rows: int) -> Shaped[np.ndarray, "..."]:
        """Returns a filled array; the caller may write only its first `rows` rows."""
        try:
            memory = self._free.pop()
        except IndexError:
            memory = _aligned(self._shape, self._value, self._dtype)
        return np.asarray(_Loan(memory, rows, self))

    def take_back(self, memory: Shaped[np.ndarray, "..."], rows: int) -> None:
        memory[:rows] = self._value
        self._free.append(memory)

    def __reduce__(self) -> tuple[Any, ...]:
        return Canvases, (self._shape, self._value, self._dtype)


class _Loan:
    """Owner of an array's memory, which it returns to the pool when it is deleted.

    NumPy keeps this object alive as long as NumPy or JAX uses the memory.
    """

    def __init__(
        self, memory: Shaped[np.ndarray, "..."], rows: int, canvases: Canvases
    ):
        self.__array_interface__ = memory.__array_interface__
        self._end = functools.partial(canvases.take_back, memory, rows)

    def __del__(self) -> None:
        self._end()


def _aligned(
    shape: tuple[int, ...], value: int, dtype: np.dtype
) -> Shaped[np.ndarray, "..."]:
    """Returns an array at an aligned address; XLA:CPU uses it without a copy."""
    size = math.prod(shape)
    memory = np.full(size + _ALIGNMENT // dtype.itemsize, value, dtype)
    start = -memory.ctypes.data % _ALIGNMENT // dtype.itemsize
    return memory[start : start + size].reshape(shape)

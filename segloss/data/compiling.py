"""Compiles loops with numba, which takes most of a second to import.

Modules with such loops are therefore imported where they are called.
"""

from collections.abc import Callable

import numba


def compiled(function: Callable) -> Callable:
    """Compiles a function that releases the GIL, and caches the machine code.

    The cache is next to the function's file, or in the user's cache directory.
    """
    try:
        return numba.njit(function, nogil=True, cache=True)
    except RuntimeError:  # numba found no writable cache directory
        return numba.njit(function, nogil=True)

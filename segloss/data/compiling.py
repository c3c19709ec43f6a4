"""Compiles loops with numba.

Importing numba takes most of a second, so modules with compiled loops are imported
inside the functions that call them.
"""

from collections.abc import Callable

import numba


def compiled(function: Callable) -> Callable:
    """Decorator: numba compiles `function` on its first call and caches the result.

    The compiled function releases the GIL. The cache is next to the function's file, or
    in the user's cache directory; if neither is writable, nothing is cached.
    """
    try:
        return numba.njit(function, nogil=True, cache=True)
    except RuntimeError:  # numba found no writable cache directory
        return numba.njit(function, nogil=True)

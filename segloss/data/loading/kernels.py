"""Sequential loops over the pixels of a crop, compiled by numba."""

from typing import no_type_check

import numpy as np

from segloss.data.compiling import compiled


# `no_type_check` keeps jaxtyping's import hook from wrapping what numba compiles.
@compiled
@no_type_check
def holds(labels, rows, columns, classes, min_pixels):
    """Whether the given rows and columns hold enough pixels of each class.

    Stops as soon as they do, which is after few pixels where the classes are large.
    """
    missing = np.zeros(256, np.int64)
    for c in classes:
        missing[c] = min_pixels
    left = len(classes)
    for row in rows:
        for column in columns:
            c = labels[row, column]
            if missing[c] > 0:
                missing[c] -= 1
                if missing[c] == 0:
                    left -= 1
                    if left == 0:
                        return True
    return False

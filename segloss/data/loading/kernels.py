"""Sequential loops over the pixels of a crop, compiled by numba."""

from typing import no_type_check

import numpy as np

from segloss.data.compiling import compiled
from segloss.data.loading.window import SCALE_ONE


# `no_type_check` keeps jaxtyping's import hook from wrapping what numba compiles.
@compiled
@no_type_check
def holds(labels, crop_hw, scale, offset, classes, min_pixels):
    """Returns whether a crop has at least `min_pixels` pixels of each of `classes`.

    `scale` is the scale factor times `SCALE_ONE`; `offset` is the crop's first row and
    column in the scaled image. Stops as soon as enough pixels are found.
    """
    missing = np.zeros(1 << 8 * labels.itemsize, np.int64)
    for c in classes:
        missing[c] = min_pixels
    left = len(classes)
    # Unsigned, or numba would check each for a negative index.
    columns = np.empty(crop_hw[1], np.uint64)
    size = 0
    for j in range(crop_hw[1]):
        column = (2 * (offset[1] + j) + 1) * (SCALE_ONE // 2) // scale
        if 0 <= column < labels.shape[1]:
            columns[size] = column
            size += 1
    # Every eighth row first, since a region of a few rows then ends the search early.
    for first in range(8):
        for i in range(first, crop_hw[0], 8):
            row = (2 * (offset[0] + i) + 1) * (SCALE_ONE // 2) // scale
            if not 0 <= row < labels.shape[0]:
                continue
            line = labels[row]
            for j in range(size):
                c = line[columns[j]]
                if missing[c] > 0:
                    missing[c] -= 1
                    if missing[c] == 0:
                        left -= 1
                        if left == 0:
                            return True
    return False

"""Examines all crops on a grid of positions; used where random draws fail."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int, UInt

from segloss.data.loading.window import nearest_source, scaled_size

# Positions in the grid are this fraction of a crop apart.
_GRID_STEP = 1 / 8


def grid_positions(size: int, crop: int, scale: int) -> Int[np.ndarray, " n"]:
    """Returns evenly spaced positions of a crop along one side of a scaled image.

    They include the first and the last possible one; 0 is the only one if the scaled
    image fits into the crop. Unscaled, the side has `size` pixels; `scale` is the scale
    factor times `SCALE_ONE`.
    """
    slack = max(0, scaled_size(size, scale) - crop)
    intervals = -(-slack // max(1, int(crop * _GRID_STEP)))
    return np.linspace(0, slack, 1 + intervals).round().astype(np.int64)


def count_in_grid(
    labels: UInt[np.ndarray, "h w"],
    crop_hw: tuple[int, int],
    scale: int,
    num_classes: int,
) -> Int[np.ndarray, "rows columns c"]:
    """Counts the pixels of each class, after scaling, in each crop of the grid.

    Rows and columns are those of `grid_positions`. Labels from `num_classes` on do not
    count.
    """
    lines, blocks, first, last = [], [], [], []
    for size, crop in zip(labels.shape, crop_hw, strict=True):
        scaled = scaled_size(size, scale)
        begin = grid_positions(size, crop, scale)
        end = np.minimum(begin + crop, scaled)
        begin = np.maximum(begin, 0)
        # Between two neighbouring edges, all pixels are in the same windows.
        edges = np.unique(np.concatenate([begin, end]))
        pixels = np.arange(edges[0], edges[-1])
        lines.append(nearest_source(pixels, scale))
        blocks.append(np.searchsorted(edges, pixels, side="right") - 1)
        first.append(np.searchsorted(edges, begin))
        last.append(np.searchsorted(edges, end))
    shape = len(first[0]), len(first[1]), num_classes
    if any(line[-1] >= n for line, n in zip(lines, labels.shape, strict=True)):
        # The image is so small that the centre of no scaled pixel lies in it.
        return np.zeros(shape, np.int64)
    counts = []
    # Row by row of blocks, since all scaled pixels of a large image take gigabytes.
    for rows in np.split(lines[0], np.flatnonzero(np.diff(blocks[0])) + 1):
        seen = np.minimum(labels[rows[:, None], lines[1]], num_classes)
        place = blocks[1] * (num_classes + 1) + seen
        size = int(blocks[1][-1] + 1) * (num_classes + 1)
        counts.append(np.bincount(place.ravel(), minlength=size))
    counts = np.reshape(counts, (len(counts), -1, num_classes + 1))[..., :-1]
    for axis in range(2):
        total = np.cumsum(counts, axis=axis)
        total = np.concatenate([np.zeros_like(total.take([0], axis)), total], axis=axis)
        counts = total.take(last[axis], axis) - total.take(first[axis], axis)
    return counts


def most_kept(
    enough: Bool[np.ndarray, "rows columns c"], order: Sequence[int]
) -> tuple[list[int], Bool[np.ndarray, "rows columns"]]:
    """Chooses classes that one crop holds together, in the given order of priority.

    `enough` is True where a crop holds a class. Returns the chosen classes, and True
    for the crops that hold all of them.
    """
    kept, alive = [], np.ones(enough.shape[:2], bool)
    for c in order:
        still = alive & enough[..., c]
        if still.any():
            kept.append(c)
            alive = still
    return kept, alive

"""Shares the images of a split between the processes that evaluate it."""

import collections
import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Int64

from segloss import hosts
from segloss.data import count_rows
from segloss.errors import SeglossError
from segloss.trained.tiles import Tiling


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Images of one padded size that one process evaluates.

    Attributes:
        canvas_hw: height and width of the images with padding.
        is_whole: False if the images are predicted in tiles.
        rows: number of images that are loaded as one batch, on all devices of the
            process; 1 if they are predicted in tiles.
        ids: positions of the images in the split.
    """

    canvas_hw: tuple[int, int]
    is_whole: bool
    rows: int
    ids: Int64[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True)
class Share:
    """The images that one process evaluates; there may be none."""

    groups: tuple[Group, ...]

    @functools.cached_property
    def ids(self) -> Int64[np.ndarray, " n"]:
        """Positions of all images of the share in the split."""
        parts = [np.empty(0, np.int64), *(group.ids for group in self.groups)]
        return np.concatenate(parts)

    @property
    def num_images(self) -> int:
        return len(self.ids)


def share_out(tilings: Sequence[Tiling], *, batch_size: int) -> list[Share]:
    """Gives each image of a split to one process; all processes get the same result.

    A device gets as many images at a time for any number of processes. The images of
    one padded size form loads, which fill the devices of a process once. A process gets
    loads that follow each other, so it compiles few sizes. The shares have about the
    same number of pixels; an image that is predicted in tiles is a load of its own.

    Args:
        tilings: how each image of the split is predicted.
        batch_size: number of images in a batch, over all devices of the run.

    Returns:
        The share of each process.

    Raises:
        SeglossError: if the processes have different numbers of devices.
    """
    count, local_devices = hosts.process_count(), jax.local_device_count()
    if jax.device_count() != count * local_devices:
        raise SeglossError(
            f"evaluate: {count} processes must have the same number of devices, but "
            f"process {hosts.process_index()} has {local_devices} of "
            f"{jax.device_count()}."
        )
    rows = count_rows(batch_size, jax.device_count()) // count
    groups = collections.defaultdict(list)
    for i, tiling in enumerate(tilings):
        groups[tiling.canvas_hw, tiling.is_whole].append(i)
    loads, pixels = [], []  # pixels: those that each device sees
    for (canvas_hw, whole), ids in groups.items():
        size = rows if whole else 1
        for start in range(0, len(ids), size):
            loads.append((canvas_hw, whole, ids[start : start + size]))
            tiling = tilings[ids[start]]
            times = rows // local_devices
            if not whole:
                times = -(-len(tiling.tiles) // local_devices)
            pixels.append(times * math.prod(tiling.tile_hw))
    # The process in whose part of all pixels the middle of a load lies.
    middles = 2 * np.cumsum(pixels, dtype=np.int64) - np.array(pixels, np.int64)
    owners = middles * count // (2 * sum(pixels))
    # The first process, which shows the progress, is never one that has nothing to do.
    _, owners = np.unique(owners, return_inverse=True)
    shares = [collections.defaultdict(list) for _ in range(count)]
    for owner, (canvas_hw, whole, ids) in zip(owners, loads, strict=True):
        shares[owner][canvas_hw, whole] += ids
    return [
        Share(
            tuple(
                Group(canvas_hw, whole, rows if whole else 1, np.array(ids))
                for (canvas_hw, whole), ids in share.items()
            )
        )
        for share in shares
    ]

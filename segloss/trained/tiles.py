"""Cuts large images into overlapping tiles, so that memory does not grow with them."""

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import NamedTuple

from segloss.data import round_up

# Side of a tile in pixels, unless `evaluate.max_pixels` asks for less.
TILE_PX = 1024
# A tile keeps its predictions at this distance in pixels, or more, from each of its
# borders that is not the image's. A U-Net of depth 4 sees at most 107 pixels far.
MARGIN_PX = 128
# Tiles start at multiples of this number of pixels, so that networks of this stride
# pool the same pixels in a tile as in the image.
GRID_PX = 32


class Tile(NamedTuple):
    """One tile of an image.

    Attributes:
        corner: the tile's first row and column in the image.
        rows: the rows of the image that take this tile's prediction.
        columns: the columns of the image that take this tile's prediction.
    """

    corner: tuple[int, int]
    rows: slice
    columns: slice

    @property
    def kept(self) -> tuple[slice, slice]:
        """`rows` and `columns`, to index the image."""
        return self.rows, self.columns

    @property
    def kept_inside(self) -> tuple[slice, slice]:
        """The pixels of `kept`, to index the tile."""
        (top, left), rows, columns = self
        return (
            slice(rows.start - top, rows.stop - top),
            slice(columns.start - left, columns.stop - left),
        )


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How an image is predicted: as one tile, or as several that overlap.

    Attributes:
        image_hw: height and width of the image in pixels.
        canvas_hw: height and width of the image with padding.
        tile_hw: height and width of each tile; tiles lie inside the canvas.
        tiles: the tiles; each pixel of the image is kept in exactly one of them.
    """

    image_hw: tuple[int, int]
    canvas_hw: tuple[int, int]
    tile_hw: tuple[int, int]
    tiles: tuple[Tile, ...]

    @property
    def is_whole(self) -> bool:
        """Whether one tile covers the image."""
        return len(self.tiles) == 1

    @property
    def cut_hw(self) -> tuple[int, int] | None:
        """Height and width of the tiles; None if one tile covers the image."""
        return None if self.is_whole else self.tile_hw

    def hw_inside(self, tile: Tile) -> tuple[int, int]:
        """Height and width of the part of the tile that lies in the image."""
        (top, left), (h, w), (tile_h, tile_w) = tile.corner, self.image_hw, self.tile_hw
        return min(tile_h, h - top), min(tile_w, w - left)


def plan_tiles(hw: tuple[int, int], *, size_multiple: int, max_pixels: int) -> Tiling:
    """Plans how an image is predicted; only a large one is cut into tiles.

    This is the overlap-tile strategy: Ronneberger et al. 2015 (arXiv:1505.04597),
    figure 2. Each pixel takes the prediction of one tile in which it is at least
    `MARGIN_PX` (a quarter of the tile, if that is less) from each border that is not
    the image's. It equals the prediction of the whole image wherever the receptive
    field of the network stays inside the tile. Networks that see the whole image, such
    as those with image pooling, see the tile instead. The mirrored image of `flip`,
    scales other than 1 and sliding windows may pool other pixels in a tile than in the
    image, so their predictions can differ a little everywhere.

    Tiles are squares of `TILE_PX`, or of the largest multiple of the grid with at most
    `max_pixels` (at least twice the grid), so one compilation serves all images. Only
    images that are narrower than that have tiles of their own shape. The grid is
    `GRID_PX`, rounded up to `size_multiple`.

    Args:
        hw: height and width of the image in pixels.
        size_multiple: images are padded to multiples of this number of pixels.
        max_pixels: images with more pixels, after padding, are cut into tiles.

    >>> plan_tiles((30, 40), size_multiple=32, max_pixels=4096).tile_hw
    (32, 64)
    >>> tiling = plan_tiles((30, 140), size_multiple=32, max_pixels=4096)
    >>> tiling.tile_hw, [tile.columns for tile in tiling.tiles]
    ((32, 64), [slice(0, 48, None), slice(48, 80, None), slice(80, 112, None), \
slice(112, 140, None)])
    """
    canvas_hw = round_up(hw, size_multiple)
    if math.prod(canvas_hw) <= max_pixels:
        whole = Tile((0, 0), slice(0, hw[0]), slice(0, hw[1]))
        return Tiling(hw, canvas_hw, canvas_hw, (whole,))
    grid = -(-GRID_PX // size_multiple) * size_multiple
    side = min(TILE_PX, math.isqrt(max_pixels)) // grid * grid
    side = max(side, 2 * grid)
    canvas_hw = round_up(hw, grid)
    tile_hw = min(side, canvas_hw[0]), min(side, canvas_hw[1])
    stride = (side - 2 * min(MARGIN_PX, side // 4)) // grid * grid
    rows, columns = (
        _cut(n, canvas, tile, stride, grid)
        for n, canvas, tile in zip(hw, canvas_hw, tile_hw, strict=True)
    )
    tiles = (
        Tile((top, left), kept_rows, kept_columns)
        for top, kept_rows in rows
        for left, kept_columns in columns
    )
    return Tiling(hw, canvas_hw, tile_hw, tuple(tiles))


def describe_tiles(
    counts: Mapping[tuple[int, int] | None, int], *, max_pixels: int
) -> str:
    """Returns a line about the images that are predicted in tiles; "" if none is.

    `counts` maps `Tiling.cut_hw` to the number of images that have it.
    """
    largest = max((hw for hw in counts if hw), default=None)
    if largest is None:
        return ""
    total = sum(counts.values())
    return (
        f"{total - counts.get(None, 0)} of {total} images have more than "
        f"{max_pixels:,} pixels: predicted in overlapping tiles of "
        f"{'x'.join(map(str, largest))}"
    )


def _cut(
    size: int, canvas: int, tile: int, stride: int, grid: int
) -> list[tuple[int, slice]]:
    """Returns, for each tile along one side, its first pixel and the pixels it keeps.

    The side has `size` pixels, `canvas` with padding. Tiles of `tile` pixels start at
    multiples of `grid`, evenly spread and at most `stride` apart. Where two overlap,
    each keeps its half.
    """
    last = canvas - tile
    gaps = -(-last // stride)
    starts = [last * i // max(gaps, 1) // grid * grid for i in range(gaps + 1)]
    middles = [(a + tile + b) // 2 for a, b in itertools.pairwise(starts)]
    ends = zip([0, *middles], [*middles, size], strict=True)
    return [(start, slice(*kept)) for start, kept in zip(starts, ends, strict=True)]

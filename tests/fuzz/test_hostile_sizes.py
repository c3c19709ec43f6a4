"""Images of hostile sizes do not size the memory of training or of evaluation."""

import math

import pytest

from segloss.config import MAX_PIXELS
from segloss.data import Windows
from segloss.trained.tiles import plan_tiles


def test_a_thin_image_does_not_size_the_batches():
    # One image of 20000x3 and one of 3x20000 have the largest sides 20000x20000.
    windows = Windows(crop_hw=(360, 480), scale_range=(0.5, 2.0))
    assert windows.canvas_hw((20_000, 20_000)) == (724, 964)


@pytest.mark.parametrize("hw", [(20_000, 3), (3, 20_000), (3000, 4000), (10**6, 90)])
def test_a_large_image_is_evaluated_in_small_parts(hw):
    tiling = plan_tiles(hw, size_multiple=32, max_pixels=MAX_PIXELS)
    assert math.prod(tiling.tile_hw) <= MAX_PIXELS

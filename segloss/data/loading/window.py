"""The geometry of scaled crops, in integers, so that host and device agree exactly.

Scales are integers, namely scale factors times `SCALE_ONE`. Crops start at whole pixels
of the scaled image.
"""

from typing import Any, NamedTuple

SCALE_ONE = 4096  # the integer that stands for scale 1


class Window(NamedTuple):
    """A crop of a scaled image, and the window: the part of the image that it needs.

    In a batch each field is an array with one row per sample.

    Attributes:
        scale: scale factor times `SCALE_ONE`.
        offset: first row and column of the crop in the scaled image; negative if the
            crop starts before the image.
        start: first row and column of the window, in pixels of the unscaled image.
        hw: height and width of the window, in pixels of the unscaled image.
    """

    scale: Any
    offset: Any
    start: Any
    hw: Any

    @property
    def slices(self) -> tuple[slice, slice]:
        """Index of the window in the unscaled image: its rows and columns."""
        (top, left), (h, w) = self.start, self.hw
        return slice(top, top + h), slice(left, left + w)


def nearest_source(pixel: Any, scale: Any) -> Any:
    """Returns the row of the image that row `pixel` of the scaled image shows.

    It is `floor((pixel + 0.5) * SCALE_ONE / scale)` in integers, for NumPy and JAX, and
    may lie outside the image. The same holds for columns.

    >>> nearest_source(3, SCALE_ONE // 2), nearest_source(3, 2 * SCALE_ONE)
    (7, 1)
    """
    return (2 * pixel + 1) * (SCALE_ONE // 2) // scale


def in_units(scale: float | int) -> int:
    """Returns the scale factor times `SCALE_ONE`, rounded, and at least 1."""
    return max(1, round(scale * SCALE_ONE))


def interpolation_margin(scale: int) -> int:
    """Returns how many pixels beyond a crop's outermost ones interpolation can read.

    Counts unscaled pixels on each side, for bilinear interpolation with antialiasing.
    """
    return max(1, -(-SCALE_ONE // scale))


def scaled_size(size: int, scale: int) -> int:
    """Returns the height (or width) of an image after scaling, at least 1.

    Counts the scaled pixels whose centres lie in the image; `scale` is the factor times
    `SCALE_ONE`.
    """
    return max(1, (size * scale + SCALE_ONE // 2 - 1) // SCALE_ONE)

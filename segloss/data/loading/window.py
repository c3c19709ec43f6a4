"""The geometry of scaled crops, in integers, so that host and device agree on it.

Scales are multiples of 1 / `SCALE_ONE` and crops start at whole pixels.
"""

from typing import Any, NamedTuple

SCALE_ONE = 4096  # the integer that stands for scale 1


class Window(NamedTuple):
    """Where a crop lies in its image; a batch has an array for each field.

    Attributes:
        scale: scale factor times `SCALE_ONE`.
        offset: first row and column of the crop in the scaled image; negative if the
            crop starts before the image.
        start: first row and column of the window in the image.
        hw: height and width of the window in the image.
    """

    scale: Any
    offset: Any
    start: Any
    hw: Any

    @property
    def slices(self) -> tuple[slice, slice]:
        """The rows and columns of the window in the image."""
        (top, left), (h, w) = self.start, self.hw
        return slice(top, top + h), slice(left, left + w)


def nearest_source(pixel: Any, scale: Any) -> Any:
    """Row or column of the image that row or column `pixel` of the scaled image shows.

    It is `floor((pixel + 0.5) * SCALE_ONE / scale)` in integers, for NumPy and JAX.

    >>> nearest_source(3, SCALE_ONE // 2), nearest_source(3, 2 * SCALE_ONE)
    (7, 1)
    """
    return (2 * pixel + 1) * (SCALE_ONE // 2) // scale


def in_units(scale: float | int) -> int:
    """A scale factor as a multiple of 1 / `SCALE_ONE`, at least 1."""
    return max(1, round(scale * SCALE_ONE))


def interpolation_margin(scale: int) -> int:
    """Pixels around a window that bilinear interpolation with antialiasing uses."""
    return max(1, -(-SCALE_ONE // scale))


def scaled_size(size: int, scale: int) -> int:
    """Number of pixels of a scaled image whose centres lie in the image; at least 1."""
    return max(1, (size * scale + SCALE_ONE // 2 - 1) // SCALE_ONE)

"""Colours for class ids, and images of any bands as RGB."""

import functools

import numpy as np
from jaxtyping import Int, Shaped, UInt8

from segloss.errors import SeglossError

VOID_COLOR = (224, 224, 224)
MAX_CLASSES = 65_536
# Rows of an image that are blended at a time.
_ROWS = 64


def voc_palette(num_classes: int = 256) -> UInt8[np.ndarray, "{num_classes} 3"]:
    """Returns the RGB colours of PASCAL VOC by class id; class 0 is black.

    The lowest three bits of the class id are the highest bits of red, green and blue;
    the next three bits are the second highest bits, and so on (`VOClabelcolormap` of
    the VOC 2012 devkit).

    Raises:
        ValueError: if `num_classes` is not in [1, 65,536].
    """
    if not 1 <= num_classes <= MAX_CLASSES:
        raise SeglossError(
            f"voc_palette: num_classes must be in [1, {MAX_CLASSES}], "
            f"got {num_classes}."
        )
    return _all_colors()[:num_classes].copy()


@functools.cache
def _all_colors() -> UInt8[np.ndarray, "n 3"]:
    bits = np.arange(MAX_CLASSES)[:, None] >> np.arange(24) & 1
    # Groups of three bits: of red, green and blue.
    return np.packbits(bits.astype(bool).reshape(-1, 8, 3), axis=1)[:, 0]


def to_colors(
    labels: Int[np.ndarray, "h w"] | UInt8[np.ndarray, "h w"],
    *,
    ignore_label: int = 255,
) -> UInt8[np.ndarray, "h w 3"]:
    """Converts class ids to VOC colours, and `ignore_label` to light grey.

    Raises:
        ValueError: if a label is neither in [0, 65,535] nor `ignore_label`.
    """
    void = labels == ignore_label
    classes = np.where(void, 0, labels)
    if classes.size and not 0 <= classes.min() <= classes.max() < MAX_CLASSES:
        raise SeglossError(
            f"to_colors: labels must be in [0, {MAX_CLASSES - 1}], "
            f"got {classes.min()} to {classes.max()}."
        )
    return np.where(void[..., None], np.uint8(VOID_COLOR), _all_colors()[classes])


def overlay(
    image: UInt8[np.ndarray, "h w 3"],
    labels: Int[np.ndarray, "h w"] | UInt8[np.ndarray, "h w"],
    *,
    alpha: float = 0.5,
    ignore_label: int = 255,
    clear_background: bool = False,
) -> UInt8[np.ndarray, "h w 3"]:
    """Blends an image with VOC colours: `(1 - alpha) * image + alpha * class_colour`.

    Args:
        image: RGB.
        labels: class ids or `ignore_label`.
        alpha: opacity of the colours, in [0, 1].
        ignore_label: pixels with this label keep the image's colour.
        clear_background: True also keeps the image's colour where the class is 0; False
            darkens these pixels, as the colour of class 0 is black.

    Raises:
        ValueError: if `alpha` is not in [0, 1], or a label is neither in [0, 65,535]
            nor `ignore_label`.
    """
    if not 0 <= alpha <= 1:
        raise SeglossError(f"overlay: alpha must be in [0, 1], got {alpha}.")
    result = np.empty_like(image)
    # A few rows at a time, since the sums are float64.
    for start in range(0, len(image), _ROWS):
        rows = slice(start, start + _ROWS)
        colors = to_colors(labels[rows], ignore_label=ignore_label)
        blend = (1 - alpha) * image[rows] + alpha * colors
        clear = labels[rows] == ignore_label
        if clear_background:
            clear |= labels[rows] == 0
        blend = np.rint(blend).astype(np.uint8)
        result[rows] = np.where(clear[..., None], image[rows], blend)
    return result


def to_rgb(image: Shaped[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w 3"]:
    """Converts an image of any number of bands and any range to RGB, to be looked at.

    The first three bands are red, green and blue; with fewer bands, the first is grey.
    Numbers other than uint8 are scaled so that the 2nd and 98th percentile of all three
    bands become 0 and 255; those that are not finite become 0.
    """
    bands = image[..., :3] if image.shape[-1] >= 3 else image[..., [0, 0, 0]]
    if bands.dtype == np.uint8:
        return bands
    bands = bands.astype(np.float32)
    finite = np.isfinite(bands)
    if not finite.any():
        return np.zeros(bands.shape, np.uint8)
    low, high = np.percentile(bands[finite], [2, 98])
    scaled = (np.where(finite, bands, low) - low) / max(high - low, np.float32(1e-12))
    return np.rint(255 * np.clip(scaled, 0, 1)).astype(np.uint8)

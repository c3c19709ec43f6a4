"""Colours for class ids."""

import numpy as np
from jaxtyping import Integer, UInt8

from segloss.errors import SeglossError

# The largest class id that has a colour.
MAX_ID = 2**16 - 1
VOID_COLOR = (224, 224, 224)
# Rows of an image that are blended at a time.
_ROWS = 64


def voc_palette(num_classes: int = 256) -> UInt8[np.ndarray, "{num_classes} 3"]:
    """Returns the RGB colours of PASCAL VOC by class id; class 0 is black.

    The lowest three bits of the class id are the highest bits of red, green and blue;
    the next three bits are the second highest bits, and so on (`VOClabelcolormap` of
    the VOC 2012 devkit, which has 256 colours). All colours differ.

    Raises:
        ValueError: if `num_classes` is not in [1, 65536].
    """
    if not 1 <= num_classes <= MAX_ID + 1:
        raise SeglossError(
            f"voc_palette: num_classes must be in [1, {MAX_ID + 1}], got {num_classes}."
        )
    ids = np.arange(num_classes, dtype="<u4")[:, None].view(np.uint8)
    bits = np.unpackbits(ids, axis=1, count=24, bitorder="little")
    # Eight groups of bits (of R, of G, of B).
    return np.packbits(bits.reshape(num_classes, 8, 3), axis=1)[:, 0]


def to_colors(
    labels: Integer[np.ndarray, "h w"],
    *,
    ignore_label: int = 255,
) -> UInt8[np.ndarray, "h w 3"]:
    """Converts class ids to VOC colours, and `ignore_label` to light grey.

    Raises:
        ValueError: if a label is neither in [0, 65535] nor `ignore_label`.
    """
    void = labels == ignore_label
    classes = np.where(void, 0, labels)
    if classes.size and (classes.min() < 0 or classes.max() > MAX_ID):
        raise SeglossError(
            f"to_colors: labels must be in [0, {MAX_ID}], "
            f"got {classes.min()} to {classes.max()}."
        )
    palette = voc_palette(1 + int(classes.max(initial=0)))
    return np.where(void[..., None], np.uint8(VOID_COLOR), palette[classes])


def overlay(
    image: UInt8[np.ndarray, "h w 3"],
    labels: Integer[np.ndarray, "h w"],
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
        ValueError: if `alpha` is not in [0, 1], or a label is neither in [0, 65535] nor
            `ignore_label`.
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

"""Decodes image and label files; tells whether their bytes can be stored unchanged."""

from io import BytesIO

import numpy as np
from PIL import Image, ImageOps

from segloss.errors import SeglossError

_EXIF_ORIENTATION = 0x0112
_TURNED = range(2, 9)  # orientations that differ from the stored pixels
_PNG_BITS = 24  # position of the byte with a PNG's bit depth
_KEPT_FORMATS = ("JPEG", "MPO", "PNG")  # MPO is the JPEG variant of many phones
# Modes that PIL converts to RGB without loss of range; not 16-bit and float images.
_MODES_TO_RGB = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")


class UnfitError(SeglossError):
    """A file is empty, or of an unsupported format, mode or bit depth."""


def read_image(
    data: bytes, label_hw: tuple[int, int] | None = None
) -> tuple[Image.Image, bool]:
    """Decodes an image to RGB.

    The EXIF orientation is applied, as annotation tools do. There is one exception: if
    the size of the label matches the stored pixels but not the turned ones, the label
    was drawn on the stored pixels, and the orientation is ignored.

    Args:
        data: content of the file.
        label_hw: height and width of the image's label; None if unknown.

    Returns:
        The image, and True if the bytes of the file can be stored unchanged.

    Raises:
        UnfitError: if the file is empty, or has more than 8 bits per channel.

    >>> from io import BytesIO
    >>> from PIL import Image
    >>> buffer = BytesIO()
    >>> Image.new("L", (4, 2), color=7).save(buffer, "PNG")
    >>> image, unchanged = read_image(buffer.getvalue())
    >>> image.mode, image.size, unchanged
    ('RGB', (4, 2), False)
    """
    if not data:
        raise UnfitError("is empty; replace the file")
    with Image.open(BytesIO(data)) as image:
        image.load()
        bits = data[_PNG_BITS] if image.format == "PNG" else 8
        # PIL silently keeps only the high bytes of 16-bit colours.
        if bits > 8 or image.mode not in _MODES_TO_RGB:
            raise UnfitError(
                f"must have 8 bits per channel, got mode {image.mode}"
                f"{f' of {bits} bits' * (bits > 8)}; convert it"
            )
        turned = image.getexif().get(_EXIF_ORIENTATION) in _TURNED
        if image.mode == "RGB" and image.format in _KEPT_FORMATS and not turned:
            return image, True
        upright = ImageOps.exif_transpose(image)
        if label_hw in (None, upright.size[::-1]) or label_hw != image.size[::-1]:
            image = upright
        if "transparency" in image.info:  # otherwise PIL warns
            image = image.convert("RGBA")
        return image.convert("RGB"), False


def read_labels(data: bytes) -> tuple[Image.Image, bool]:
    """Decodes a label image to class ids, as an 8-bit grey image (mode L).

    The class ids of a palette image are its indices.

    Args:
        data: content of the file.

    Returns:
        The class ids, and True if the bytes of the file can be stored unchanged.

    Raises:
        UnfitError: if the file is empty, is not a PNG, or is not 8-bit grey or palette.

    >>> from io import BytesIO
    >>> from PIL import Image
    >>> buffer = BytesIO()
    >>> Image.new("L", (4, 2), color=7).convert("P").save(buffer, "PNG")
    >>> labels, unchanged = read_labels(buffer.getvalue())
    >>> labels.mode, labels.getpixel((0, 0)), unchanged
    ('L', 7, False)
    """
    if not data:
        raise UnfitError("is empty; replace the file")
    with Image.open(BytesIO(data)) as image:
        image.load()
        if image.format != "PNG":
            raise UnfitError(f"must contain a PNG, got {image.format}; convert it")
        # PIL scales grey of fewer bits to 0..255, which destroys the class ids.
        if image.mode not in ("L", "P") or (image.mode == "L" and data[_PNG_BITS] != 8):
            raise UnfitError(
                "must hold class ids as 8-bit grey (L) or palette (P) image, got mode "
                f"{image.mode} of {data[_PNG_BITS]} bits; convert it"
            )
        if image.mode == "L":
            return image, True
        return Image.fromarray(np.asarray(image)), False

"""What an image or a label file shows, and whether its bytes may be stored."""

from io import BytesIO

import numpy as np
from PIL import Image, ImageOps

_EXIF_ORIENTATION = 0x0112
_TURNED = range(2, 9)  # orientations that show other pixels than are stored
_PNG_BITS = 24  # the byte of a PNG that holds the bit depth
_KEPT_FORMATS = ("JPEG", "MPO", "PNG")  # MPO is the JPEG of many phones
# What PIL turns into RGB without losing range: 16-bit and float images are not here.
_MODES_TO_RGB = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")


class UnfitError(ValueError):
    """A sound file of the wrong kind."""


def read_image(
    data: bytes, label_hw: tuple[int, int] | None = None
) -> tuple[Image.Image, bool]:
    """Decodes an image to RGB; True if its bytes can be stored as they are.

    An EXIF orientation is applied, as annotation tools do, since a label has none; but
    where the stored pixels are as large as the label and the upright ones are not, the
    label was drawn on the stored ones, and they are taken.

    Args:
        data: the file.
        label_hw: height and width of the image's label; None if there is none.

    Raises:
        UnfitError: if the file is empty, or has more than 8 bits per channel.
    """
    if not data:
        raise UnfitError("is empty; replace the file")
    with Image.open(BytesIO(data)) as image:
        image.load()
        bits = data[_PNG_BITS] if image.format == "PNG" else 8
        # Of 16-bit colours PIL keeps the high bytes, and says nothing.
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
        if "transparency" in image.info:  # else PIL warns
            image = image.convert("RGBA")
        return image.convert("RGB"), False


def read_labels(data: bytes) -> tuple[Image.Image, bool]:
    """Decodes class ids to mode L, as `read_image`; of a palette, its indices."""
    if not data:
        raise UnfitError("is empty; replace the file")
    with Image.open(BytesIO(data)) as image:
        image.load()
        if image.format != "PNG":
            raise UnfitError(f"must be PNG inside, got {image.format}; convert it")
        # PIL stretches grey of fewer bits to 0..255, which are no ids any more.
        if image.mode not in ("L", "P") or (image.mode == "L" and data[_PNG_BITS] != 8):
            raise UnfitError(
                "must hold class ids as 8-bit grey (L) or palette (P), got mode "
                f"{image.mode} of {data[_PNG_BITS]} bits; convert it"
            )
        if image.mode == "L":
            return image, True
        return Image.fromarray(np.asarray(image)), False

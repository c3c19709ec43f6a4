"""Decodes image files to RGB, or to bands of 8, 16 or 32 bits."""

from typing import NamedTuple

import imagecodecs
import numpy as np
import tifffile
from PIL import ImageOps

from segloss.data.bands import DTYPES
from segloss.data.decoding.opening import (
    MAX_IMAGE_PIXELS,
    UnfitError,
    check_not_empty,
    damage_named,
    is_npy,
    is_tiff,
    open_image,
    open_tiff,
    png_bits,
    read_npy,
    read_tiff,
)
from segloss.errors import SeglossError

ALPHA = ("drop", "void", "band")
_EXIF_ORIENTATION = 0x0112
_TURNED = range(2, 9)  # orientations that differ from the stored pixels
_KEPT_FORMATS = ("JPEG", "MPO", "PNG")  # MPO is the JPEG variant of many phones
# Modes that PIL converts to RGB without loss of range; not 16-bit and float images.
_MODES_TO_RGB = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
# Kinds of TIFF whose colours PIL converts; tifffile would return them as they are.
_CONVERTED = tuple(
    tifffile.PHOTOMETRIC[name] for name in ("MINISWHITE", "PALETTE", "SEPARATED")
)
# An array whose first axis is this short, but no other, has its bands first.
_FEW = 16
_ALPHAS = tifffile.EXTRASAMPLE.ASSOCALPHA, tifffile.EXTRASAMPLE.UNASSALPHA


class DecodedImage(NamedTuple):
    """A decoded image.

    Attributes:
        pixels: `[h, w, bands]`: uint8 RGB, or any number of bands of a type
            in `bands.DTYPES`.
        unchanged: True if the bytes of the file can be stored in a dataset unchanged.
        alpha: opacity, uint8 or uint16 `[h, w]`; None if the image has none.
        nodata: True where the image had no data and was filled, bool `[h, w]`; None if
            that was not looked for.
    """

    pixels: np.ndarray
    unchanged: bool
    alpha: np.ndarray | None = None
    nodata: np.ndarray | None = None


def read_image(
    data: bytes,
    label_hw: tuple[int, int] | None = None,
    *,
    alpha: str = "drop",
    max_pixels: int = MAX_IMAGE_PIXELS,
) -> DecodedImage:
    """Decodes an image to RGB, or to its bands.

    PNG, JPEG, WebP and BMP of 8 bits per channel become RGB: grey is repeated, and
    palettes and CMYK are converted. So do TIFF and `.npy` of 8 bits with one or three
    bands, besides an opacity. All others keep their bands, in a type of `bands.DTYPES`;
    numbers of other types are converted to float32.

    The EXIF orientation is applied, as annotation tools do. There is one exception: if
    the size of the label matches the stored pixels but not the turned ones, the label
    was drawn on the stored pixels, and the orientation is ignored.

    Args:
        data: content of the file.
        label_hw: height and width of the image's label; None if unknown.
        alpha: "drop" and "void" leave the opacity out of the pixels, "band" makes it
            the last band.
        max_pixels: largest number of pixels.

    Raises:
        UnfitError: if the file is empty, damaged, too large or of another format.
        SeglossError: if `alpha` is unknown.

    >>> from io import BytesIO
    >>> from PIL import Image
    >>> buffer = BytesIO()
    >>> Image.new("L", (4, 2), color=7).save(buffer, "PNG")
    >>> image = read_image(buffer.getvalue())
    >>> image.pixels.shape, image.unchanged
    ((2, 4, 3), False)
    """
    if alpha not in ALPHA:
        known = ", ".join(map(repr, ALPHA))
        raise SeglossError(f"read_image: alpha must be one of {known}, got {alpha!r}.")
    check_not_empty(data)
    with damage_named():
        if is_npy(data):
            image = _from_array(_bands_last(read_npy(data, max_pixels)))
        elif is_tiff(data):
            image = _read_tiff(data, label_hw, max_pixels)
        else:
            image = _read_picture(data, label_hw, max_pixels)
    if alpha == "band" and image.alpha is not None:
        pixels = np.concatenate([image.pixels, image.alpha[..., None]], axis=-1)
        image = DecodedImage(pixels, unchanged=False)
    return image


def _read_picture(
    data: bytes, label_hw: tuple[int, int] | None, max_pixels: int
) -> DecodedImage:
    """Decodes a file that PIL reads."""
    image = open_image(data, max_pixels)
    # PIL silently keeps only the high bytes of 16-bit colours.
    if image.format == "PNG" and png_bits(data) > 8:
        pixels = np.atleast_3d(imagecodecs.png_decode(data))
        if pixels.shape[-1] in (1, 3):
            return _from_array(pixels)
        image = _from_array(pixels[..., :-1])
        return image._replace(alpha=pixels[..., -1])
    if image.mode not in _MODES_TO_RGB:
        raise UnfitError(
            "must be grey, RGB or CMYK", f"mode {image.mode}", "convert the image"
        )
    image.load()
    turned = image.getexif().get(_EXIF_ORIENTATION) in _TURNED
    plain = image.mode == "RGB" and "transparency" not in image.info
    if plain and image.format in _KEPT_FORMATS and not turned:
        return DecodedImage(np.asarray(image), unchanged=True)
    upright = ImageOps.exif_transpose(image)
    if label_hw in (None, upright.size[::-1]) or label_hw != image.size[::-1]:
        image = upright
    opacity = None
    if "transparency" in image.info or image.mode in ("LA", "PA", "RGBA"):
        image = image.convert("RGBA")
        opacity = np.asarray(image.getchannel("A"))
    return DecodedImage(np.asarray(image.convert("RGB")), False, opacity)


def _read_tiff(
    data: bytes, label_hw: tuple[int, int] | None, max_pixels: int
) -> DecodedImage:
    with open_tiff(data) as tiff:
        page = tiff.pages.first
    if page.photometric in _CONVERTED and page.bitspersample <= 8:
        return _read_picture(data, label_hw, max_pixels)
    pixels, page = read_tiff(data, max_pixels)
    orientation = page.tags.valueof(_EXIF_ORIENTATION, default=1)
    if orientation in _TURNED:
        raise UnfitError(
            "must be stored upright", f"orientation {orientation}", "save it upright"
        )
    pixels = np.atleast_3d(pixels)
    extra = [int(kind) for kind in page.extrasamples]
    # Writers mark a fourth band of 16 bits as opacity, too, whatever it is.
    is_picture = pixels.dtype == np.uint8 and pixels.shape[-1] in (2, 4)
    if not (is_picture and extra and extra[-1] in _ALPHAS):
        return _from_array(pixels)
    image = _from_array(pixels[..., :-1])
    return image._replace(alpha=pixels[..., -1])


def _from_array(pixels: np.ndarray) -> DecodedImage:
    """Converts numbers to one of the types that a dataset stores."""
    if pixels.dtype.kind not in "buif":
        raise UnfitError(
            "must hold integers or floats", str(pixels.dtype), "convert the image"
        )
    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    if pixels.dtype == bool:
        pixels = pixels * np.uint8(255)
    elif pixels.dtype not in DTYPES:
        pixels = pixels.astype(np.float32)
    if pixels.dtype == np.uint8 and pixels.shape[-1] == 1:
        pixels = np.repeat(pixels, 3, axis=-1)
    return DecodedImage(np.ascontiguousarray(pixels), unchanged=False)


def _bands_last(array: np.ndarray) -> np.ndarray:
    """Checks that an array is `[h, w]` or `[h, w, bands]`, and returns the latter."""
    if array.ndim == 2:
        return array[..., None]
    if array.ndim != 3 or array.shape[0] <= _FEW < min(array.shape[1:]):
        raise UnfitError(
            "must have the shape [height, width] or [height, width, bands]",
            str(list(array.shape)),
            "move the bands to the last axis, as in np.moveaxis(image, 0, -1)",
        )
    return array

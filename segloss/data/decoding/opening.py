"""Opens encoded images of known formats, up to a number of pixels."""

import struct
from io import BytesIO

import numpy as np
import tifffile
from PIL import Image

from segloss.errors import SeglossError

# Suffixes of the files that are read, in lower case; labels must be stored losslessly.
LABEL_SUFFIXES = (".bmp", ".gif", ".npy", ".png", ".tif", ".tiff", ".webp")
IMAGE_SUFFIXES = (*LABEL_SUFFIXES, ".jpeg", ".jpg")
MAX_IMAGE_PIXELS = 2**28  # 16384 x 16384

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PNG_BITS = 24  # position of the byte with a PNG's bit depth


class UnfitError(SeglossError):
    """A file cannot be used.

    Attributes:
        rule: the rule that the file breaks.
        got: what was found in this file; "" if `rule` says it.
        remedy: what to do.
    """

    def __init__(self, rule: str, got: str, remedy: str):
        super().__init__(rule, got, remedy)
        self.rule, self.got, self.remedy = rule, got, remedy

    def __str__(self) -> str:
        return f"{self.rule}{f', got {self.got}' if self.got else ''}; {self.remedy}"


def open_image(data: bytes, max_pixels: int = MAX_IMAGE_PIXELS) -> Image.Image:
    """Opens an encoded image without decoding its pixels.

    `PIL.Image.open` tries many more formats, and its limit on the size is a global
    variable, which a library must not change.

    Args:
        data: content of the file: PNG, JPEG, WebP, BMP, GIF or TIFF.
        max_pixels: largest number of pixels.

    Raises:
        UnfitError: if the file is empty, too large, damaged or of another format.
    """
    check_not_empty(data)
    Image.init()
    for name in _FORMATS:
        factory, accept = Image.OPEN[name]
        if accept is None or accept(data[:16]) is not True:
            continue
        try:
            image = factory(BytesIO(data), None)
        # Pillow's own loop catches these, too.
        except (SyntaxError, IndexError, TypeError, struct.error) as error:
            raise damaged(error) from error
        check_size(image.height, image.width, max_pixels)
        return image
    raise UnfitError(
        "must be PNG, JPEG, WebP, BMP, GIF, TIFF or a NumPy array (.npy)",
        f"a file that starts with {data[:8]!r}",
        "replace the file",
    )


def is_tiff(data: bytes) -> bool:
    return data.startswith(_TIFF_STARTS)


def is_npy(data: bytes) -> bool:
    return data.startswith(np.lib.format.MAGIC_PREFIX)


def png_bits(data: bytes) -> int:
    """Returns the number of bits per channel, given the content of a PNG file."""
    return data[_PNG_BITS]


def read_npy(data: bytes, max_pixels: int = MAX_IMAGE_PIXELS) -> np.ndarray:
    """Returns the array in a `.npy` file, given its content; nothing is unpickled.

    Raises:
        UnfitError: if the file is damaged, or holds Python objects.
    """
    file = BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran_order, dtype = read_header(file)
    except (KeyError, ValueError) as error:
        raise damaged(error) from error
    if dtype.hasobject:
        raise UnfitError(
            "must hold numbers", "Python objects", "save an array of numbers"
        )
    if len(shape) >= 2:
        check_size(*sorted(shape)[-2:], max_pixels)
    # The header may promise more than the file holds, so nothing is allocated for it.
    body = memoryview(data)[file.tell() :]
    size = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if len(body) != size:
        raise damaged(f"{len(body):,} bytes of {size:,}")
    array = np.frombuffer(body, dtype)
    return array.reshape(shape, order="F" if fortran_order else "C")


def read_tiff(
    data: bytes, max_pixels: int = MAX_IMAGE_PIXELS
) -> tuple[np.ndarray, tifffile.TiffPage]:
    """Returns the first image of a TIFF file, and the page that describes it.

    Pages of one size count as bands.

    Returns:
        The pixels, `[h, w]` or `[h, w, bands]`, and the first page.

    Raises:
        UnfitError: if the file is damaged, too large, or holds more than one image.
    """
    try:
        with tifffile.TiffFile(BytesIO(data)) as tiff:
            series, page = tiff.series[0], tiff.pages.first
            check_size(page.imagelength, page.imagewidth, max_pixels)
            kept = [
                (axis, n)
                for axis, n in zip(series.axes, series.shape, strict=True)
                if n > 1 or axis in "YX"
            ]
            axes = [axis for axis, _ in kept]
            others = [axis for axis in axes if axis not in "YX"]
            if len(others) > 1 or not {"Y", "X"} <= {*axes}:
                raise UnfitError(
                    "must hold one image with bands",
                    f"axes {series.axes} of sizes {series.shape}",
                    "save each image to a file of its own",
                )
            pixels = series.asarray().reshape([n for _, n in kept])
    except UnfitError:
        raise
    # tifffile and its codecs raise many kinds of errors on broken files.
    except Exception as error:
        raise damaged(error) from error
    return pixels.transpose([axes.index(axis) for axis in ("Y", "X", *others)]), page


def check_not_empty(data: bytes) -> None:
    if not data:
        raise UnfitError("is empty", "", "replace the file")


def check_size(height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise UnfitError(
            f"must have at most {max_pixels:,} pixels",
            f"{height} x {width}, which is {height * width:,}",
            "cut the image, or raise --config.data.max_image_pixels",
        )


def damaged(error: Exception | str) -> UnfitError:
    reason = " ".join(str(error).split()) or type(error).__name__
    got = f"a damaged one ({reason})"
    return UnfitError("must be a sound file", got, "replace it")

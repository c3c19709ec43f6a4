"""Opens encoded images of known formats, up to a number of pixels."""

import contextlib
import functools
import logging
import math
import stat
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from segloss.errors import SeglossError, printable

# Suffixes of the files that are read, in lower case; labels must be stored losslessly.
LABEL_SUFFIXES = (".bmp", ".gif", ".npy", ".png", ".tif", ".tiff", ".webp")
IMAGE_SUFFIXES = (*LABEL_SUFFIXES, ".jpeg", ".jpg")
MAX_IMAGE_PIXELS = 2**28  # 16384 x 16384
# Files, and what they decode to, have at most this number of bytes for each pixel that
# an image may have: four bands of float32.
MAX_PIXEL_BYTES = 16

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PNG_BITS = 24  # position of the byte with a PNG's bit depth
_MOST_REASON = 200  # characters of another package's message
_REMEDY = "cut the image, or raise --config.data.max_image_pixels"


class UnfitError(SeglossError):
    """A file cannot be used.

    Attributes:
        rule: the rule that the file breaks.
        got: what was found in this file; "" if `rule` says it.
        remedy: what to do.
    """

    def __init__(self, rule: str, got: str, remedy: str):
        super().__init__(rule, got, remedy)
        self.rule, self.got, self.remedy = rule, printable(got), remedy

    def __str__(self) -> str:
        return f"{self.rule}{f', got {self.got}' if self.got else ''}; {self.remedy}"


def read_file(path: Path, max_pixels: int = MAX_IMAGE_PIXELS) -> bytes:
    """Returns the content of the file of an image or of labels.

    Raises:
        UnfitError: if it is not a regular file, or larger than any image that may have
            `max_pixels`.
        OSError: if it cannot be read.
    """
    about = path.stat()
    # A pipe would never end.
    if not stat.S_ISREG(about.st_mode):
        raise UnfitError("must be a file", "a pipe or device", "replace it")
    check_bytes(about.st_size, max_pixels)
    return path.read_bytes()


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
    _quieten_decoders()
    for name in _FORMATS:
        factory, accept = Image.OPEN[name]
        if accept is None or accept(data[:16]) is not True:
            continue
        with damage_named():
            image = factory(BytesIO(data), None)
        check_size(image.height, image.width, max_pixels)
        return image
    raise UnfitError(
        "must be PNG, JPEG, WebP, BMP, GIF, TIFF or a NumPy array (.npy)",
        f"a file that starts with {data[:8]!r}",
        "replace the file",
    )


def open_tiff(data: bytes) -> tifffile.TiffFile:
    """Opens a TIFF file, which must be closed; other files that it names are not."""
    _quieten_decoders()
    return tifffile.TiffFile(BytesIO(data), _multifile=False)


@functools.cache
def _quieten_decoders() -> None:
    """Stops decoders from logging what is wrong with a file, which our errors say."""
    for name in ("tifffile", "PIL"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


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
    with damage_named():
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran_order, dtype = read_header(file)
        if dtype.hasobject:
            raise UnfitError(
                "must hold numbers", "Python objects", "save an array of numbers"
            )
        if len(shape) >= 2:
            check_size(*sorted(shape)[-2:], max_pixels)
        # The header may promise more than the file holds, so nothing is allocated.
        body = memoryview(data)[file.tell() :]
        size = math.prod(shape) * dtype.itemsize
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
    # tifffile and its codecs raise many kinds of errors on broken files.
    with damage_named(), open_tiff(data) as tiff:
        series, page = tiff.series[0], tiff.pages.first
        check_size(page.imagelength, page.imagewidth, max_pixels)
        # A tile may be larger than its image.
        for shape in (series.shape, page.chunks):
            check_bytes(math.prod(shape) * series.dtype.itemsize, max_pixels)
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
        order = [axes.index(axis) for axis in ("Y", "X", *others)]
        return pixels.transpose(order), page


def check_not_empty(data: bytes) -> None:
    if not data:
        raise UnfitError("is empty", "", "replace the file")


def check_size(height: int, width: int, max_pixels: int) -> None:
    if height < 1 or width < 1:
        got = f"{height} x {width}"
        raise UnfitError("must have a pixel", got, "replace the file")
    if height * width > max_pixels:
        raise UnfitError(
            f"must have at most {max_pixels:,} pixels",
            f"{height} x {width}, which is {height * width:,}",
            _REMEDY,
        )


def check_bytes(size: int, max_pixels: int) -> None:
    """Checks the size of a file, or of what it decodes to."""
    most = MAX_PIXEL_BYTES * max_pixels
    if size > most:
        raise UnfitError(f"must take at most {most:,} bytes", f"{size:,}", _REMEDY)


@contextlib.contextmanager
def damage_named() -> Iterator[None]:
    """Raises an UnfitError for every error of a decoder in the block."""
    try:
        yield
    except UnfitError:
        raise
    # Decoders raise many kinds of errors on broken bytes.
    except Exception as error:
        raise damaged(error) from error


def damaged(error: Exception | str) -> UnfitError:
    reason = " ".join(str(error).split()) or type(error).__name__
    got = f"a damaged one ({reason[:_MOST_REASON]})"
    return UnfitError("must be a sound file", got, "replace it")

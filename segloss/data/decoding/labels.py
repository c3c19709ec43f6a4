"""Decodes label images of many kinds to class ids."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image

from segloss.data.decoding.label_values import LabelValues, as_values
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

_GREY_MODES = ("1", "L", "LA", "I;16", "I;16B")
# Compressions of TIFF that keep every bit; JPEG 2000, LERC and others may not.
_LOSSLESS = (
    *("NONE", "LZW", "DEFLATE", "ADOBE_DEFLATE", "PACKBITS", "LZMA", "ZSTD"),
    *("CCITTRLE", "CCITTFAX3", "CCITTFAX4"),
)
_COLOUR_MODES = ("RGB", "RGBA", "RGBX")


class DecodedLabels(NamedTuple):
    """A decoded label image.

    Attributes:
        ids: class ids, uint8 or uint16 `[h, w]`.
        unchanged: True if the bytes of the file can be stored in a dataset unchanged.
        palette: RGB colours of the palette's entries that are used, by index; None if
            the file has no palette, or colours decided.
    """

    ids: Integer[np.ndarray, "h w"]
    unchanged: bool
    palette: dict[int, tuple[int, int, int]] | None = None


class RawLabels(NamedTuple):
    """The content of a label image, before anything says what it means.

    Attributes:
        pixels: values, uint8 or uint16 `[h, w]`, or RGB colours, uint8 `[h, w, 3]`.
        palette: RGB colours, uint8 `[256, 3]`, if the values are indices of a palette.
        is_plain: True for an 8-bit grey PNG, which datasets store unchanged.
    """

    pixels: Integer[np.ndarray, "..."]
    palette: UInt8[np.ndarray, "256 3"] | None = None
    is_plain: bool = False


def read_labels(
    data: bytes,
    values: LabelValues | None = None,
    *,
    max_pixels: int = MAX_IMAGE_PIXELS,
) -> DecodedLabels:
    """Decodes a label image to class ids.

    The file is a PNG, BMP, GIF, TIFF, lossless WebP or `.npy`, with 1 to 16 bits per
    pixel, grey or with a palette; or of RGB colours, of which opacity is ignored.

    Args:
        data: content of the file.
        values: what the values and colours mean. Where it has colours, they decide for
            RGB and palette images. None takes grey values and palette indices as class
            ids, and refuses colours.
        max_pixels: largest number of pixels.

    Raises:
        UnfitError: if the file is empty, damaged, too large, of another format or
            stored with loss, or has a value or colour that `values` does not have.

    >>> from io import BytesIO
    >>> from PIL import Image
    >>> buffer = BytesIO()
    >>> Image.new("L", (4, 2), color=7).convert("P").save(buffer, "PNG")
    >>> labels = read_labels(buffer.getvalue())
    >>> labels.ids.shape, labels.ids[0, 0], labels.unchanged
    ((2, 4), np.uint8(7), False)
    """
    raw = read_raw_labels(data, max_pixels=max_pixels)
    pixels, palette = raw.pixels, raw.palette
    if values is not None and values.colours:
        if palette is not None:
            # The palette says what an index means, so files may order it as they like.
            pixels, palette = palette[pixels], None
        if pixels.ndim == 3:
            return DecodedLabels(values.of_colours(pixels), unchanged=False)
    if pixels.ndim == 3:
        if (pixels != pixels[..., :1]).any():
            raise UnfitError(
                "labels are colours, but classes.txt lists none",
                "",
                "give each class its colour, as in `1 road #804080`; "
                "`python -m segloss.data.scan DIR` finds them",
            )
        pixels = np.ascontiguousarray(pixels[..., 0])  # grey, saved as RGB
    if values is not None and palette is None:
        values.check_grey(pixels)
    used = None if palette is None else _used_entries(pixels, palette)
    if values is None:
        return DecodedLabels(pixels, raw.is_plain, used)
    unchanged = raw.is_plain and values.is_plain
    return DecodedLabels(values.of_values(pixels), unchanged, used)


def read_raw_labels(data: bytes, *, max_pixels: int = MAX_IMAGE_PIXELS) -> RawLabels:
    """Decodes a label image to its values or colours; see `read_labels`.

    Raises:
        UnfitError: if the file is empty, damaged, too large, of another format or
            stored with loss.
    """
    check_not_empty(data)
    with damage_named():
        if is_npy(data):
            return RawLabels(as_values(read_npy(data, max_pixels)))
        return _read_picture(data, max_pixels)


def _read_picture(data: bytes, max_pixels: int) -> RawLabels:
    """Decodes a file that PIL or tifffile reads."""
    image = open_image(data, max_pixels)
    _check_lossless(image, data)
    if is_tiff(data) and image.mode not in ("1", "P", *_COLOUR_MODES):
        return RawLabels(as_values(read_tiff(data, max_pixels)[0]))
    image.load()
    bits = png_bits(data) if image.format == "PNG" else 8
    if image.mode in ("P", "PA"):
        index = image.getchannel("P") if image.mode == "PA" else image
        entries = np.frombuffer(bytes(image.getpalette("RGB")), np.uint8).reshape(-1, 3)
        palette = np.zeros((256, 3), np.uint8)
        palette[: len(entries)] = entries
        return RawLabels(np.asarray(index), palette)
    if image.mode in _GREY_MODES:
        values = np.asarray(image.getchannel("L") if image.mode == "LA" else image)
        if image.mode == "L" and bits < 8:
            values = values // np.uint8(255 // (2**bits - 1))  # undoes PIL's scaling
        is_plain = image.format == "PNG" and image.mode == "L" and bits == 8
        return RawLabels(as_values(values), is_plain=is_plain)
    if image.mode in _COLOUR_MODES and bits == 8:
        return RawLabels(np.asarray(image)[..., :3])
    raise UnfitError(
        "labels must be grey, RGB or have a palette",
        f"mode {image.mode} of {bits} bits",
        "convert the file",
    )


def _used_entries(
    index: Integer[np.ndarray, "h w"], palette: UInt8[np.ndarray, "256 3"]
) -> dict[int, tuple[int, int, int]]:
    used = np.flatnonzero(np.bincount(index.ravel(), minlength=256))
    return {int(k): tuple(palette[k].tolist()) for k in used}


def _check_lossless(image: Image.Image, data: bytes) -> None:
    kind = image.format
    lossy = kind in ("JPEG", "MPO")
    if kind == "WEBP":
        lossy = b"VP8L" not in _chunks(data)
    if kind == "TIFF":
        with open_tiff(data) as tiff:
            page = tiff.pages.first
            kind = f"TIFF with {page.compression.name} compression"
            lossy = page.compression.name not in _LOSSLESS
            if (page.bitspersample, page.photometric.name) == (1, "MINISWHITE"):
                raise UnfitError(
                    "labels of 1 bit must store black as 0",
                    "a TIFF in which 0 is white (MINISWHITE)",
                    "save the file as PNG",
                )
    if lossy:
        raise UnfitError(
            "labels must be stored without loss",
            kind,
            "export them as PNG from the original masks; converting this file keeps "
            "its errors",
        )


def _chunks(data: bytes) -> list[bytes]:
    """Returns the kinds of the chunks of a WebP file, in order."""
    kinds, place = [], 12
    while place + 8 <= len(data):
        kinds.append(data[place : place + 4])
        size = int.from_bytes(data[place + 4 : place + 8], "little")
        place += 8 + size + size % 2
    return kinds

"""Decodes label images of many kinds to class ids."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image

from segloss.data.decoding.label_values import LabelValues
from segloss.data.decoding.opening import (
    MAX_IMAGE_PIXELS,
    UnfitError,
    check_not_empty,
    damaged,
    is_npy,
    is_tiff,
    open_image,
    png_bits,
    read_npy,
    read_tiff,
)

_GREY_MODES = ("1", "L", "LA", "I;16", "I;16B")
_COLOUR_MODES = ("RGB", "RGBA", "RGBX")


class DecodedLabels(NamedTuple):
    """A decoded label image.

    Attributes:
        ids: class ids, uint8 or uint16 `[h, w]`.
        unchanged: True if the bytes of the file can be stored in a dataset unchanged.
        palette: RGB colours of the palette's entries that are used, by index; None if
            the file has no palette.
    """

    ids: Integer[np.ndarray, "h w"]
    unchanged: bool
    palette: dict[int, tuple[int, int, int]] | None = None


def read_labels(
    data: bytes,
    values: LabelValues | None = None,
    *,
    max_pixels: int = MAX_IMAGE_PIXELS,
) -> DecodedLabels:
    """Decodes a label image to class ids.

    The file is a PNG, BMP, TIFF, lossless WebP or `.npy`, with 1 to 16 bits per pixel,
    grey or with a palette; or of RGB colours, of which opacity is ignored.

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
    check_not_empty(data)
    if is_npy(data):
        return _of_grey(read_npy(data, max_pixels), values)
    image = open_image(data, max_pixels)
    _check_lossless(image, data)
    if is_tiff(data) and image.mode not in ("1", "P", *_COLOUR_MODES):
        return _of_grey(read_tiff(data, max_pixels)[0], values)
    try:
        image.load()
    # Decoders raise many kinds of errors on broken bytes.
    except Exception as error:
        raise damaged(error) from error
    bits = png_bits(data) if image.format == "PNG" else 8
    if image.mode in ("P", "PA"):
        return _of_palette(image, values)
    if image.mode in _GREY_MODES:
        grey = image.getchannel("L") if image.mode == "LA" else image
        ids = np.asarray(grey)
        if image.mode == "L" and bits < 8:
            ids = ids // np.uint8(255 // (2**bits - 1))  # undoes PIL's scaling
        labels = _of_grey(ids, values)
        identical = values is None or values.is_plain
        kept = image.format == "PNG" and image.mode == "L" and bits == 8
        return labels._replace(unchanged=kept and identical)
    if image.mode in _COLOUR_MODES and bits == 8:
        return _of_colours(np.asarray(image)[..., :3], values)
    raise UnfitError(
        "labels must be grey, RGB or have a palette",
        f"mode {image.mode} of {bits} bits",
        "convert the file",
    )


def _of_grey(
    ids: Integer[np.ndarray, "h w"], values: LabelValues | None
) -> DecodedLabels:
    if ids.ndim != 2 or ids.dtype.kind not in "bui":
        raise UnfitError(
            "labels must be integers [height, width]",
            f"{ids.dtype} {list(ids.shape)}",
            "save one class id per pixel",
        )
    if ids.dtype == bool:
        ids = ids.astype(np.uint8)
    elif ids.dtype not in (np.uint8, np.uint16):
        if ids.size and (ids.min() < 0 or ids.max() > np.iinfo(np.uint16).max):
            raise UnfitError(
                "labels must be in 0..65535", f"{ids.min()}..{ids.max()}", "convert them"
            )
        ids = ids.astype(np.uint16)
    return DecodedLabels(ids if values is None else values.of_values(ids), False)


def _of_palette(image: Image.Image, values: LabelValues | None) -> DecodedLabels:
    index = np.asarray(image.getchannel("P") if image.mode == "PA" else image)
    entries = np.frombuffer(bytes(image.getpalette("RGB")), np.uint8).reshape(-1, 3)
    used = np.flatnonzero(np.bincount(index.ravel(), minlength=256))
    palette = {int(k): tuple(map(int, entries[k])) for k in used if k < len(entries)}
    if values is None or not values.colours:
        return _of_grey(index, values)._replace(palette=palette)
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(entries)] = entries
    # The palette says what an index means, so files may order it as they like.
    return DecodedLabels(values.of_colours(colours[index]), False)


def _of_colours(
    rgb: UInt8[np.ndarray, "h w 3"], values: LabelValues | None
) -> DecodedLabels:
    if values is not None and values.colours:
        return DecodedLabels(values.of_colours(rgb), False)
    if (rgb == rgb[..., :1]).all():  # grey, saved as RGB
        return _of_grey(np.ascontiguousarray(rgb[..., 0]), values)
    raise UnfitError(
        "labels are colours, but classes.txt lists none",
        "",
        "give each class its colour, as in `1 road #804080`; "
        "`python -m segloss.data.scan DIR` finds them",
    )


def _check_lossless(image: Image.Image, data: bytes) -> None:
    lossy = image.format in ("JPEG", "MPO")
    # The lossless variant of WebP has its own kind of chunk.
    lossy |= image.format == "WEBP" and b"VP8L" not in data[:4096]
    if lossy:
        raise UnfitError(
            "labels must be stored without loss",
            image.format,
            "export them as PNG from the original masks; converting this file keeps "
            "its errors",
        )

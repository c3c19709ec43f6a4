"""Sound images and labels of every kind that is read, as bytes."""

import struct
import zlib
from io import BytesIO

import imagecodecs
import numpy as np
import tifffile
from PIL import Image

_RNG = np.random.default_rng(0)
GREY = (np.arange(120, dtype=np.uint8) % 5).reshape(10, 12)
RGB = _RNG.integers(0, 256, (10, 12, 3), np.uint8)


def picture(image, kind, **how):
    buffer = BytesIO()
    image.save(buffer, kind, **how)
    return buffer.getvalue()


def npy(array, version=None):
    buffer = BytesIO()
    np.lib.format.write_array(buffer, array, version)
    return buffer.getvalue()


def tiff(array, **how):
    buffer = BytesIO()
    tifffile.imwrite(buffer, array, **how)
    return buffer.getvalue()


def _pictures():
    grey, rgb = Image.fromarray(GREY), Image.fromarray(RGB)
    rgba = rgb.copy()
    rgba.putalpha(grey)
    with_palette = grey.copy()
    with_palette.putpalette(_RNG.bytes(768))
    turned = Image.Exif()
    turned[0x0112] = 6
    yield from (picture(x, "PNG") for x in (grey, rgb, rgba, with_palette))
    yield picture(grey.convert("1"), "PNG")
    yield picture(grey.convert("LA"), "PNG")
    yield picture(with_palette, "PNG", transparency=1)
    yield imagecodecs.png_encode(GREY.astype(np.uint16) * 200)
    yield imagecodecs.png_encode(RGB.astype(np.uint16) * 200)
    yield picture(rgb, "JPEG", exif=turned)
    yield picture(rgb, "JPEG", progressive=True)
    yield picture(rgb.convert("CMYK"), "JPEG")
    yield from (picture(x, "BMP") for x in (grey, rgb, with_palette))
    yield picture(with_palette, "GIF")
    yield picture(rgba, "WEBP", lossless=True)
    yield picture(rgb, "WEBP")
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        yield picture(rgb, "TIFF", compression=compression)
    yield picture(grey.convert("1"), "TIFF", compression="group4")
    yield picture(with_palette, "TIFF")


def _arrays():
    wide = _RNG.integers(0, 9, (32, 48), np.uint16)
    yield tiff(GREY)
    yield tiff(wide, compression="zlib", predictor=True)
    yield tiff(wide, compression="zstd", tile=(16, 16))
    yield tiff(RGB.astype(np.float32), photometric="rgb", compression="lzma")
    yield tiff(np.stack([GREY] * 5), photometric="minisblack", planarconfig="separate")
    yield tiff(np.stack([wide] * 3), ome=True, metadata={"axes": "CYX"})
    yield tiff(np.stack([wide] * 3), imagej=True, metadata={"axes": "CYX"})
    yield tiff(wide, bigtiff=True)
    yield npy(GREY)
    yield npy(RGB.astype(np.float32))
    yield npy(np.asfortranarray(wide), (2, 0))


FILES = [*_pictures(), *_arrays()]


def with_png_checksums(data):
    """Corrects the checksums of the chunks, without which no decoder looks at them."""
    fixed, place = bytearray(data[:8]), 8
    while place + 12 <= len(data):
        (size,) = struct.unpack(">I", data[place : place + 4])
        if place + 12 + size > len(data):
            break
        body = data[place + 4 : place + 8 + size]
        fixed += struct.pack(">I", size) + body + struct.pack(">I", zlib.crc32(body))
        place += 12 + size
    return bytes(fixed) + data[place:]

"""Label files of every kind, each as the class ids that it means."""

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from segloss.data.decoding.label_values import LabelValues
from segloss.data.decoding.labels import read_labels
from segloss.data.decoding.opening import UnfitError

IDS = np.arange(24, dtype=np.uint8).reshape(4, 6)
# Two classes and void: by value, and by colour.
VALUES = LabelValues(2, 255, {7: 0, 9: 1, 11: 1, 0: 255}, {0x804080: 0, 0x0000FF: 1})
MEANT = np.array([[0, 1, 1, 255]], np.uint8)


def encode(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def in_tiff(pixels, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def of_bits(bits, rows):
    """A grey PNG of 1, 2 or 4 bits per pixel, as PIL does not write them."""

    def chunk(kind, body):
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    h, w = len(rows), len(rows[0])
    lines = b""
    for row in rows:
        text = "".join(f"{value:0{bits}b}" for value in row)
        text += "0" * (-len(text) % 8)
        lines += b"\0" + bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))
    header = struct.pack(">IIBBBBB", w, h, bits, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )


def with_palette(index, colours):
    image = Image.fromarray(np.asarray(index, np.uint8))
    image.putpalette(np.asarray(colours, np.uint8).tobytes())
    return image


def test_palette_labels_keep_their_indices():
    palette = with_palette(IDS, np.random.default_rng(0).integers(0, 256, (256, 3)))
    labels = read_labels(encode(palette))
    np.testing.assert_array_equal(labels.ids, IDS)
    assert (labels.ids.dtype, labels.unchanged) == (np.uint8, False)
    assert labels.palette.keys() == {*range(24)}


def test_grey_png_of_8_bits_is_stored_as_it_is():
    data = encode(Image.fromarray(IDS))
    for values in (None, LabelValues.plain(24, 255)):
        labels = read_labels(data, values)
        np.testing.assert_array_equal(labels.ids, IDS)
        assert labels.unchanged


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits_are_not_stretched(bits):
    rows = [[k % 2**bits for k in range(11)], [2**bits - 1] * 11]
    labels = read_labels(of_bits(bits, rows))
    assert labels.ids.tolist() == rows
    assert not labels.unchanged


@pytest.mark.parametrize("kind", ["png", "tiff", "npy"])
def test_16_bits_hold_more_than_255_classes(kind):
    ids = np.array([[0, 255, 256, 65_533]], np.uint16)
    file = io.BytesIO()
    if kind == "png":
        Image.fromarray(ids).save(file, "PNG")
    elif kind == "tiff":
        tifffile.imwrite(file, ids)
    else:
        np.save(file, ids.astype(np.int64))
    labels = read_labels(file.getvalue(), LabelValues.plain(65_534, 65_535))
    assert labels.ids.dtype == np.uint16
    np.testing.assert_array_equal(labels.ids, ids)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "WEBP"])
def test_lossless_formats_are_read(kind):
    image = Image.fromarray(IDS)
    options = {}
    if kind == "WEBP":
        image, options = image.convert("RGB"), {"lossless": True}
    labels = read_labels(encode(image, kind, **options))
    np.testing.assert_array_equal(labels.ids, IDS)


@pytest.mark.parametrize("mode", ["LA", "RGB", "RGBA"])
def test_grey_saved_with_more_channels_is_read(mode):
    labels = read_labels(encode(Image.fromarray(IDS).convert(mode)))
    np.testing.assert_array_equal(labels.ids, IDS)


def test_values_mean_what_is_listed():
    labels = read_labels(encode(Image.fromarray(np.uint8([[7, 9, 11, 0]]))), VALUES)
    np.testing.assert_array_equal(labels.ids, MEANT)
    assert not labels.unchanged


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colours_mean_what_is_listed(mode):
    colours = np.uint8([[[0x80, 0x40, 0x80], [0, 0, 255]]])
    labels = read_labels(encode(Image.fromarray(colours).convert(mode)), VALUES)
    assert labels.ids.tolist() == [[0, 1]]


def test_colours_decide_in_palettes_of_any_order():
    road, car = (0x80, 0x40, 0x80), (0, 0, 255)
    for index, colours in (([[0, 1]], [road, car]), ([[5, 2]], [*[car] * 5, road])):
        labels = read_labels(encode(with_palette(index, colours)), VALUES)
        assert labels.ids.tolist() == [[0, 1]]


def test_the_smallest_type_that_holds_the_ids():
    ids = read_labels(
        encode(Image.fromarray(np.uint8([[3, 4]]))),
        LabelValues(300, 65_535, {3: 299, 4: 65_535}),
    ).ids
    assert (ids.dtype, ids.tolist()) == (np.uint16, [[299, 65_535]])


@pytest.mark.parametrize(
    ("data", "values", "message"),
    [
        (b"", None, "is empty; replace the file"),
        (
            encode(Image.fromarray(IDS), "JPEG"),
            None,
            "must be stored without loss, got JPEG; export them as PNG",
        ),
        (
            encode(Image.fromarray(IDS).convert("RGB"), "WEBP", quality=90),
            None,
            "must be stored without loss, got WEBP",
        ),
        (
            encode(Image.fromarray(np.uint8([[7, 8, 8, 200]]))),
            VALUES,
            r"those of classes.txt, got 8 \(2 px\), 200 \(1 px\); add each to its",
        ),
        (
            encode(Image.fromarray(np.uint8([[[255, 0, 0]]]))),
            VALUES,
            r"those of classes.txt, got #ff0000 \(1 px\); add each",
        ),
        (
            encode(Image.fromarray(np.uint8([[[255, 0, 0]]]))),
            None,
            "labels are colours, but classes.txt lists none; give each class its",
        ),
        (
            encode(Image.fromarray(IDS)),
            LabelValues.plain(2, 255),
            r"0..1 or ignore_label 255, got 2 \(1 px\), .* and 17 more; correct the",
        ),
        (
            encode(Image.fromarray(np.float32(IDS)), "TIFF"),
            None,
            r"must be integers \[height, width\], got float32",
        ),
        (
            in_tiff(IDS, compression="jpeg"),
            None,
            "must be stored without loss, got TIFF with JPEG compression",
        ),
        (
            in_tiff(IDS > 5),
            None,
            r"must store black as 0, got a TIFF in which 0 is white \(MINISWHITE\)",
        ),
        (
            encode(Image.fromarray(np.uint8([[0, 255]]))),
            LabelValues(2, 255, {0: 0, 1: 1, 255: 255}, {0: 0, 0xFFFFFF: 1}),
            "must mean the same as values and as colours, got value 255, colour",
        ),
    ],
    ids=[
        *("empty", "jpeg", "lossy", "value", "colour", "no_colours", "stray", "float"),
        *("jpeg_in_tiff", "white_is_0", "grey_colours"),
    ],
)
def test_unfit_labels_are_refused(data, values, message):
    with pytest.raises(UnfitError, match=message):
        read_labels(data, values)

"""Image files of every kind, each as the pixels that a person sees."""

import io

import numpy as np
import pytest
import tifffile
from PIL import Image

from segloss.data.decoding.images import read_image
from segloss.data.decoding.opening import UnfitError

COLOURS = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
DEEP = np.random.default_rng(1).integers(0, 65_536, (20, 30, 4), np.uint16)


def encode(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def encode_tiff(pixels, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def encode_npy(pixels):
    file = io.BytesIO()
    np.save(file, pixels)
    return file.getvalue()


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_other_images_are_converted_to_rgb(mode):
    kind = "JPEG" if mode == "CMYK" else "PNG"
    data = encode(Image.fromarray(COLOURS).convert(mode), kind)
    image = read_image(data)
    expected = Image.open(io.BytesIO(data)).convert("RGB")
    np.testing.assert_array_equal(image.pixels, expected)
    assert not image.unchanged
    assert (image.alpha is None) == (mode not in ("LA", "RGBA"))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF"])
def test_lossless_formats_keep_every_pixel(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    image = read_image(encode(Image.fromarray(COLOURS), kind, **options))
    np.testing.assert_array_equal(image.pixels, COLOURS)
    assert image.unchanged == (kind == "PNG")


def test_jpeg_bytes_are_kept():
    data = encode(Image.fromarray(COLOURS), "JPEG")
    image = read_image(data)
    np.testing.assert_array_equal(image.pixels, Image.open(io.BytesIO(data)))
    assert image.unchanged


def test_palette_image_with_transparency_is_converted():
    image = Image.fromarray(COLOURS).quantize(16)
    data = encode(image, transparency=bytes(range(16)))
    np.testing.assert_array_equal(read_image(data).pixels, image.convert("RGB"))


def test_opacity_is_dropped_kept_or_a_band():
    alpha = np.arange(24, dtype=np.uint8).reshape(4, 6)
    data = encode(Image.fromarray(np.dstack([COLOURS, alpha])))
    dropped = read_image(data)
    np.testing.assert_array_equal(dropped.pixels, COLOURS)
    np.testing.assert_array_equal(dropped.alpha, alpha)
    band = read_image(data, alpha="band")
    np.testing.assert_array_equal(band.pixels, np.dstack([COLOURS, alpha]))
    opaque = encode(Image.fromarray(np.dstack([COLOURS, np.full_like(alpha, 255)])))
    assert read_image(opaque, alpha="band").pixels.shape == (4, 6, 4)
    with pytest.raises(ValueError, match="alpha must be one of 'drop', 'void', 'band'"):
        read_image(data, alpha="keep")


def test_exif_orientation_is_applied_unless_the_label_matches_the_stored_pixels():
    upright = Image.fromarray(COLOURS)
    stored = upright.transpose(Image.Transpose.ROTATE_90)
    data = encode(stored, exif=turned(6))  # shown after a quarter turn clockwise
    for label_hw, seen in ((None, upright), ((4, 6), upright), ((6, 4), stored)):
        image = read_image(data, label_hw)
        np.testing.assert_array_equal(image.pixels, seen)
        assert not image.unchanged


def test_turned_jpeg_comes_back_as_it_is_shown():
    data = encode(Image.fromarray(COLOURS), "JPEG", exif=turned(3))  # upside down
    shown = np.asarray(Image.open(io.BytesIO(data)))[::-1, ::-1]
    np.testing.assert_array_equal(read_image(data).pixels, shown)


@pytest.mark.parametrize("bands", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
def test_tiff_and_npy_keep_their_bands(bands, dtype):
    pixels = np.arange(20 * 30 * bands).reshape(20, 30, bands).astype(dtype)
    expected = pixels
    if dtype == np.uint8 and bands == 1:  # grey becomes RGB
        expected = np.repeat(pixels, 3, axis=-1)
    together = {"photometric": "minisblack"}
    if bands > 1:
        together["planarconfig"] = "contig"
    pages = np.moveaxis(pixels, -1, 0)
    for data in (
        encode_npy(pixels),
        encode_tiff(pixels.squeeze(), **together),
        encode_tiff(pixels.squeeze(), **together, compression="lzw"),
        encode_tiff(pages, photometric="minisblack", compression="deflate"),
    ):
        image = read_image(data)
        np.testing.assert_array_equal(image.pixels, expected)
        assert image.pixels.dtype == dtype


def test_planes_of_a_tiff_become_bands():
    planes = np.ascontiguousarray(np.moveaxis(DEEP, -1, 0))
    data = encode_tiff(planes, photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(read_image(data).pixels, DEEP)


def test_alpha_of_a_tiff_is_no_band():
    rgba = np.dstack([np.tile(COLOURS, (5, 5, 1)), np.full((20, 30), 7, np.uint8)])
    data = encode_tiff(rgba, photometric="rgb", extrasamples=["unassalpha"])
    image = read_image(data)
    np.testing.assert_array_equal(image.pixels, rgba[..., :3])
    np.testing.assert_array_equal(image.alpha, rgba[..., 3])
    without = encode_tiff(rgba, photometric="rgb", extrasamples=["unspecified"])
    np.testing.assert_array_equal(read_image(without).pixels, rgba)


def test_png_of_16_bits_keeps_its_low_bytes():
    grey = DEEP[..., 0]
    image = read_image(encode(Image.fromarray(grey)))
    np.testing.assert_array_equal(image.pixels, grey[..., None])
    assert image.pixels.dtype == np.uint16


def test_other_numbers_become_float32():
    pixels = read_image(encode_npy(np.array([[1, -70_000]], np.int64))).pixels
    assert pixels.dtype == np.float32
    assert pixels.tolist() == [[[1.0], [-70_000.0]]]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty; replace the file"),
        (
            b"no image",
            "must be PNG, JPEG, WebP, .* got a file that starts with b'no im",
        ),
        (encode(Image.fromarray(COLOURS))[:60], "must be a sound file, got a damaged"),
        (encode_npy(DEEP)[:-9], r"a damaged one \(4,791 bytes of 4,800\)"),
        (encode_npy(np.array([{}])), "must hold numbers, got Python objects"),
        (
            encode_npy(np.zeros((2, 3), complex)),
            "must hold integers or floats, got com",
        ),
        (
            encode_npy(np.zeros((4, 20, 30))),
            r"shape \[height, width\] or .* got \[4, 20, 30\]; move the bands to",
        ),
        (encode_tiff(DEEP)[:100], "must be a sound file, got a damaged"),
        (
            encode_tiff(np.zeros((2, 3, 8, 9), np.uint16), photometric="minisblack"),
            "must hold one image with bands",
        ),
    ],
    ids=[
        "empty",
        "text",
        "png",
        "npy",
        "objects",
        "complex",
        "planes",
        "tiff",
        "stack",
    ],
)
def test_unfit_files_are_refused(data, message):
    with pytest.raises(UnfitError, match=message):
        read_image(data)


@pytest.mark.parametrize(
    "encode", [lambda x: encode(Image.fromarray(x)), encode_npy, encode_tiff]
)
def test_large_images_are_named_with_the_field_that_admits_them(encode):
    data = encode(np.zeros((30, 40, 3), np.uint8))
    message = "at most 1,000 pixels, got 30 x 40, which is 1,200; .*max_image_pixels"
    with pytest.raises(UnfitError, match=message):
        read_image(data, max_pixels=1000)
    assert read_image(data, max_pixels=1200).pixels.shape == (30, 40, 3)


def test_header_of_npy_that_promises_too_much_allocates_nothing():
    data = encode_npy(np.zeros((8, 9), np.uint8)).replace(
        b"(8, 9), } ", b"(16384, 9),}"
    )
    with pytest.raises(UnfitError, match="a damaged one"):
        read_image(data)

"""Files of every kind, each as the pixels that a person sees."""

import io

import numpy as np
import pytest
from PIL import Image

from segloss.data.loading.decode import UnfitError, read_image, read_labels

COLOURS = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
IDS = np.arange(24, dtype=np.uint8).reshape(4, 6)


def encode(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def test_palette_labels_keep_their_indices():
    palette = Image.fromarray(IDS)
    palette.putpalette(np.random.default_rng(0).bytes(768))
    assert palette.mode == "P"
    labels, sound = read_labels(encode(palette))
    np.testing.assert_array_equal(labels, IDS)
    assert (labels.mode, sound) == ("L", False)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_other_images_are_converted_to_rgb(mode):
    kind = "JPEG" if mode == "CMYK" else "PNG"
    data = encode(Image.fromarray(COLOURS).convert(mode), kind)
    image, sound = read_image(data)
    np.testing.assert_array_equal(image, Image.open(io.BytesIO(data)).convert("RGB"))
    assert not sound


def test_palette_image_with_transparency_is_converted():
    image = Image.fromarray(COLOURS).quantize(16)
    data = encode(image, transparency=bytes(range(16)))
    np.testing.assert_array_equal(read_image(data)[0], image.convert("RGB"))


def test_exif_orientation_is_applied_unless_the_label_matches_the_stored_pixels():
    upright = Image.fromarray(COLOURS)
    stored = upright.transpose(Image.Transpose.ROTATE_90)
    data = encode(stored, exif=turned(6))  # shown after a quarter turn clockwise
    for label_hw, seen in ((None, upright), ((4, 6), upright), ((6, 4), stored)):
        image, sound = read_image(data, label_hw)
        np.testing.assert_array_equal(image, seen)
        assert not sound


def test_turned_jpeg_comes_back_as_it_is_shown():
    data = encode(Image.fromarray(COLOURS), "JPEG", exif=turned(3))  # upside down
    shown = np.asarray(Image.open(io.BytesIO(data)))[::-1, ::-1]
    np.testing.assert_array_equal(read_image(data)[0], shown)


@pytest.mark.parametrize("read", [read_image, read_labels])
def test_empty_file_is_refused(read):
    with pytest.raises(UnfitError, match="is empty; replace the file"):
        read(b"")

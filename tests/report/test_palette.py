import numpy as np
import pytest

from segloss.report import overlay, voc_palette
from segloss.report.palette import to_colors

IMAGE = np.full((1, 4, 3), (100, 50, 10), np.uint8)
LABELS = np.array([[0, 1, 15, 255]], np.uint8)  # background, aeroplane, person, void


def test_voc_palette_has_the_colors_of_the_challenge():
    palette = voc_palette()
    assert palette.shape == (256, 3)
    assert palette.dtype == np.uint8
    known = {
        0: (0, 0, 0),
        1: (128, 0, 0),
        2: (0, 128, 0),
        7: (128, 128, 128),
        8: (64, 0, 0),
        15: (192, 128, 128),
        20: (0, 64, 128),
        255: (224, 224, 192),
    }
    for class_id, color in known.items():
        assert tuple(palette[class_id]) == color
    assert len(np.unique(palette, axis=0)) == 256
    np.testing.assert_array_equal(voc_palette(21), palette[:21])


def test_each_of_65536_classes_has_its_own_color():
    palette = voc_palette(65_536)
    assert len(np.unique(palette, axis=0)) == 65_536
    # 256 = 0b100_000_000: blue's third bit from the top.
    assert tuple(palette[256]) == (0, 0, 32)
    assert tuple(palette[65_535]) == (252, 248, 248)
    np.testing.assert_array_equal(to_colors(np.array([[256]])), [[(0, 0, 32)]])


@pytest.mark.parametrize("num_classes", [0, 65_537])
def test_voc_palette_has_65536_colors_at_most(num_classes):
    with pytest.raises(ValueError, match=rf"\[1, 65536\], got {num_classes}\."):
        voc_palette(num_classes)


def test_colors_show_void_light_grey_whatever_its_label():
    colors = [[(0, 0, 0), (128, 0, 0), (192, 128, 128), (224, 224, 224)]]
    np.testing.assert_array_equal(to_colors(LABELS), colors)
    labels = np.array([[0, 1, 15, -1]])
    np.testing.assert_array_equal(to_colors(labels, ignore_label=-1), colors)


def test_overlay_blends_the_color_of_each_class():
    # By hand: (100, 50, 10) / 2 + color / 2, and halves to even.
    blended = [[(50, 25, 5), (114, 25, 5), (146, 89, 69), (100, 50, 10)]]
    np.testing.assert_array_equal(overlay(IMAGE, LABELS), blended)
    # 0.75 * (100, 50, 10) + 0.25 * color
    blended = [[(100, 50, 10), (107, 38, 8), (123, 70, 40), (100, 50, 10)]]
    actual = overlay(IMAGE, LABELS, alpha=0.25, clear_background=True)
    np.testing.assert_array_equal(actual, blended)


def test_overlay_at_its_ends_is_the_image_or_the_colors():
    np.testing.assert_array_equal(overlay(IMAGE, LABELS, alpha=0.0), IMAGE)
    opaque = overlay(IMAGE, LABELS, alpha=1.0)
    np.testing.assert_array_equal(opaque[:, :3], to_colors(LABELS)[:, :3])


def test_overlay_rejects_what_it_cannot_draw():
    with pytest.raises(ValueError, match=r"overlay: alpha must be in \[0, 1\], got 2"):
        overlay(IMAGE, LABELS, alpha=2.0)
    with pytest.raises(ValueError, match=r"must be in \[0, 65535\], got -1 to 15"):
        overlay(IMAGE, np.array([[0, 1, 15, -1]]))


def test_overlay_of_a_tall_image_is_that_of_its_parts():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (201, 5, 3), np.uint8)
    labels = rng.choice(np.array([0, 1, 7, 255], np.uint8), (201, 5))
    parts = [overlay(image[i : i + 50], labels[i : i + 50]) for i in range(0, 201, 50)]
    np.testing.assert_array_equal(overlay(image, labels), np.concatenate(parts))

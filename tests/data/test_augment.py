import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segloss.data import Window, Windows, augment, normalize
from segloss.data.colours import MEAN_RGB, STDDEV_RGB
from segloss.data.loading.window import SCALE_ONE

# Three images of four blocks each; the colour of a block is 60 times its label.
LABELS = np.kron(np.array([[0, 1], [2, 3]]), np.ones((12, 16), int)).astype(np.uint8)
LABELS = np.stack([LABELS, LABELS.T[:24, :24].repeat(2, 1)[:, :32], LABELS[::-1]])
IMAGES = np.repeat(LABELS[..., None] * 60, 3, axis=-1).astype(np.uint8)
VALID = np.ones(LABELS.shape, bool)
KEYS = jax.random.split(jax.random.key(5), 3)
STILL = dict(flip_probability=0.0, brightness=0.0, contrast=0.0, saturation=0.0)


def at(scale, offset=(0, 0), *, count=3, hw=(24, 32)):
    """Windows at one scale and position, for whole images."""
    pairs = (np.tile(np.array(x, np.int32), (count, 1)) for x in (offset, (0, 0), hw))
    return Window(np.full(count, round(scale * SCALE_ONE), np.int32), *pairs)


def draw(images, labels, valid, *, crop_hw, count, distances=None, **fields):
    """Windows drawn from the first images in turn, and the arrays that they hold."""
    windows = Windows(crop_hw=crop_hw, **fields)
    drawn, arrays = [], []
    for row in range(count):
        i = row % len(images)
        window, _ = windows.draw(labels[i], np.zeros(4, bool), batch=0, row=row)
        drawn.append(window)
        whole = (
            images[i],
            labels[i],
            valid[i],
            *(() if distances is None else [distances[i]]),
        )
        canvas = windows.canvas_hw(labels.shape[1:])
        arrays.append([fit(x[window.slices], canvas) for x in whole])
    stacked = Window(*(np.array(x, np.int32) for x in zip(*drawn, strict=True)))
    images, labels, valid, *distances = (np.stack(x) for x in zip(*arrays, strict=True))
    return images, labels, valid, stacked, *distances


def fit(array, canvas):
    rest = [(0, n - m) for n, m in zip(canvas, array.shape[:2], strict=True)]
    return np.pad(array, rest + [(0, 0)] * (array.ndim - 2))


def test_nothing_asked_for_changes_nothing():
    images, labels, valid = augment(
        KEYS, IMAGES, LABELS, VALID, at(1.0), crop_hw=(24, 32), **STILL
    )
    np.testing.assert_allclose(images, IMAGES / 255, atol=1e-6)
    np.testing.assert_array_equal(labels, LABELS)
    assert labels.dtype == np.uint8
    assert valid.all()


def test_flip_mirrors_image_labels_and_valid_together():
    valid = VALID.copy()
    valid[:, :, 3] = False
    kwargs = STILL | dict(flip_probability=1.0)
    images, labels, valid = augment(KEYS, IMAGES, LABELS, valid, **kwargs)
    np.testing.assert_allclose(images, IMAGES[:, :, ::-1] / 255, atol=1e-6)
    np.testing.assert_array_equal(labels, LABELS[:, :, ::-1])
    assert not valid[:, :, -4].any()
    assert valid.sum() == 3 * 24 * 31


def test_doubling_repeats_every_label():
    arrays = KEYS, IMAGES, LABELS, VALID, at(2.0)
    _, labels, valid = augment(*arrays, crop_hw=(48, 64), **STILL)
    np.testing.assert_array_equal(labels, LABELS.repeat(2, 1).repeat(2, 2))
    assert valid.all()


# Any array will do; these are half pixels, which float16 holds, and twice and half.
DISTANCES = (np.arange(3 * 24 * 32 * 2) % 99 - 49.5).reshape(3, 24, 32, 2)
DISTANCES = DISTANCES.astype(np.float16)


def test_distances_double_with_the_image_and_are_mirrored_with_it():
    kwargs = STILL | dict(flip_probability=1.0)
    arrays = KEYS, IMAGES, LABELS, VALID, at(2.0)
    *others, distances = augment(*arrays, DISTANCES, crop_hw=(48, 64), **kwargs)
    doubled = 2 * DISTANCES.repeat(2, 1).repeat(2, 2)
    np.testing.assert_array_equal(distances, doubled[:, :, ::-1])
    assert distances.dtype == np.float16
    for a, b in zip(others, augment(*arrays, crop_hw=(48, 64), **kwargs), strict=True):
        np.testing.assert_array_equal(a, b)


def test_distances_stay_with_their_labels_under_random_scale_crop_and_flip():
    keys = jax.random.split(jax.random.key(0), 12)
    # As far from class 0 as the number of the class says, times the scale.
    arrays = draw(
        IMAGES,
        LABELS,
        VALID,
        crop_hw=(32, 32),
        count=12,
        distances=LABELS[..., None].astype(np.float32),
    )
    _, labels, valid, distances = augment(keys, *arrays, crop_hw=(32, 32))
    seen = np.where(valid & (labels > 0), distances[..., 0] / labels, np.nan)
    scales = np.nanmean(seen, axis=(1, 2))
    assert ((scales > 0.5) & (scales < 1.5)).all()
    assert np.ptp(scales) > 0.3
    np.testing.assert_allclose(np.nanmin(seen, axis=(1, 2)), scales, rtol=1e-5)
    np.testing.assert_allclose(np.nanmax(seen, axis=(1, 2)), scales, rtol=1e-5)


def test_image_and_labels_stay_aligned_under_random_scale_and_crop():
    keys = jax.random.split(jax.random.key(0), 48)
    arrays = draw(IMAGES, LABELS, VALID, crop_hw=(32, 32), count=48)
    images, labels, valid = augment(keys, *arrays, crop_hw=(32, 32), **STILL)
    seen = np.round(np.asarray(images[..., 0]) * 255 / 60)
    # Only where bilinear colours blend, at the edges of blocks, may they differ.
    agree = (seen == np.asarray(labels))[np.asarray(valid)]
    assert agree.mean() > 0.97
    # And scale and place do vary: so does the share of padding.
    assert len(np.unique(np.asarray(valid).sum((1, 2)))) > 10


@pytest.mark.parametrize("scale", [0.5, 0.75, 1.25])
def test_without_antialiasing_two_pixels_each_way_are_interpolated(scale):
    images = np.random.default_rng(0).integers(0, 256, IMAGES.shape, np.uint8)
    hw = round(24 * scale), round(32 * scale)
    arrays = KEYS, images, LABELS, VALID, at(scale)
    got, _, _ = augment(*arrays, crop_hw=hw, antialias=False, **STILL)
    expected = images / 255
    for axis, n in enumerate(hw, start=1):
        places = (np.arange(n) + 0.5) / scale - 0.5
        line = functools.partial(np.interp, places, range(images.shape[axis]))
        expected = np.apply_along_axis(line, axis, expected)
    np.testing.assert_allclose(got, expected, atol=2e-6)


# At half the size, column 8 is between 16 and 17 of the source, column 7 between 14 and
# 15. Antialiasing takes 1, 3, 3 and 1 eighths of the four nearest.
@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({}, [30, 90, 0]),
        (dict(antialias=True), [30, 90, 0]),
        (dict(antialias=False), [0, 120, 0]),
    ],
)
def test_antialiasing_spreads_a_line_over_what_is_beside_it(chosen, expected):
    images = np.zeros_like(IMAGES)
    images[:, :, 16] = 240
    arrays = KEYS, images, LABELS, VALID, at(0.5)
    got, _, _ = augment(*arrays, crop_hw=(12, 16), **STILL | chosen)
    columns = np.array(expected, np.float32).reshape(1, 1, 3, 1)
    np.testing.assert_allclose(
        255 * got[:, :, 7:10], np.broadcast_to(columns, (3, 12, 3, 3)), atol=1e-3
    )


def test_a_smaller_image_lies_whole_within_the_crop_on_mean_colour():
    arrays = KEYS, IMAGES, LABELS, VALID, at(0.5, (-5, -7))
    images, _, valid = augment(*arrays, crop_hw=(24, 32), **STILL)
    expected = np.zeros((3, 24, 32), bool)
    expected[:, 5:17, 7:23] = True
    np.testing.assert_array_equal(valid, expected)
    outside = np.asarray(images)[~np.asarray(valid)]
    np.testing.assert_allclose(
        outside, np.tile(np.array([124, 116, 104]) / 255, (len(outside), 1)), atol=1e-6
    )


def test_a_window_gives_the_crop_of_the_whole_image():
    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, (6, 90, 70, 3), np.uint8)
    labels = rng.integers(0, 4, (6, 90, 70), np.uint8)
    valid = rng.random((6, 90, 70)) < 0.9
    keys = jax.random.split(jax.random.key(1), 24)
    crop = dict(crop_hw=(20, 16))
    *arrays, window = draw(images, labels, valid, count=24, **crop)
    assert arrays[0].shape[1:3] < (60, 50)
    which = np.arange(24) % 6
    whole = window._replace(
        start=np.zeros((24, 2), np.int32), hw=np.tile(np.int32([90, 70]), (24, 1))
    )
    got = augment(keys, *arrays, window, **crop)
    expected = augment(keys, images[which], labels[which], valid[which], whole, **crop)
    np.testing.assert_allclose(got[0], expected[0], atol=2e-5)
    np.testing.assert_array_equal(got[1], np.where(got[2], expected[1], got[1]))
    np.testing.assert_array_equal(got[2], expected[2])


def test_void_at_the_border_of_an_image_belongs_to_it():
    valid = VALID.copy()
    valid[:, 12:] = False
    arrays = KEYS, IMAGES, LABELS, valid, at(1.0, (10, 0))
    images, labels, valid = augment(*arrays, crop_hw=(14, 32), **STILL)
    np.testing.assert_allclose(images, IMAGES[:, 10:] / 255, atol=1e-6)
    np.testing.assert_array_equal(labels, LABELS[:, 10:])
    assert valid[:, :2].all()
    assert not valid[:, 2:].any()


def test_a_sample_depends_on_its_own_key_alone():
    crop = dict(crop_hw=(16, 16))
    together = augment(KEYS, IMAGES, LABELS, VALID, at(0.75), **crop)
    one = at(0.75, count=1)
    alone = augment(KEYS[1:2], IMAGES[1:2], LABELS[1:2], VALID[1:2], one, **crop)
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_allclose(a[1:2], b, atol=1e-6)


def test_colour_stays_in_range_and_leaves_labels_alone():
    kwargs = STILL | dict(brightness=0.5, contrast=0.5, saturation=0.5)
    images, labels, _ = augment(KEYS, IMAGES, LABELS, VALID, **kwargs)
    assert float(images.min()) >= 0
    assert float(images.max()) <= 1
    assert float(jnp.abs(images - IMAGES / 255).max()) > 0.05
    np.testing.assert_array_equal(labels, LABELS)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(antialias=1), "antialias must be True or False, got 1"),
        (dict(flip_probability=1.5), r"flip_probability must be in \[0, 1\], got 1.5"),
        (dict(contrast=1.0), r"contrast must be in \[0, 1\), got 1.0"),
    ],
)
def test_bad_hyperparameters_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        augment(KEYS, IMAGES, LABELS, VALID, **kwargs)


def test_normalize_takes_both_kinds_of_images():
    images = jnp.asarray(IMAGES)
    floats = normalize(images / 255)
    np.testing.assert_allclose(normalize(images), floats, atol=1e-5)
    expected = (120 / 255 - np.array(MEAN_RGB)) / STDDEV_RGB
    np.testing.assert_allclose(floats[0, 20, 5], expected, rtol=1e-5)

"""Images of any number of bands, and labels of more than 255 classes."""

import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from band_sets import SIZES, draw, register

from segloss.data import (
    RandomBatch,
    Window,
    Windows,
    augment,
    count_in_crops,
    load_batch,
    normalize,
    open_dataset,
)
from segloss.data.bands import RGB, BandMoments, Bands, to_rgb
from segloss.data.loading.batches import BadSampleError, Loading

KINDS = [(4, "uint16"), (2, "float32"), (5, "uint8"), (1, "int16"), (3, "uint16")]
LANDSAT = Bands(2, "uint16", mean=(1000.4, 20.0), deviation=(100.0, 2.0))


@pytest.fixture
def bands(monkeypatch, datasets_dir):
    register(monkeypatch)

    def open_set(num_bands, dtype, **more):
        how = dict(num_bands=num_bands, dtype=dtype, **more)
        return open_dataset("bands", **how, data_dir=datasets_dir)

    return open_set


def drawn(split, *kind, num_classes=3, ignore_label=255):
    return [
        draw(*kind, num_classes, ignore_label, split, i) for i in range(SIZES[split])
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_are_stored_and_read_as_they_are(bands, kind):
    dataset = bands(*kind)
    for split in SIZES:
        source = pickle.loads(pickle.dumps(dataset.source(split)))
        # As any other program reads the folder.
        public = tfds.builder_from_directory(dataset.data_dir).as_data_source(split)
        for i, (image, labels) in enumerate(drawn(split, *kind)):
            assert source[i]["image"].dtype == image.dtype == kind[1]
            np.testing.assert_array_equal(source[i]["image"], image)
            np.testing.assert_array_equal(source[i]["labels"], labels)
            np.testing.assert_array_equal(public[i]["image"], image)
            opened = source.opened(i)["image"]
            assert opened.shape == image.shape
            for part in (np.s_[3:9, 20:], np.s_[:, 5:6], np.s_[30:, :], np.s_[4:4, :]):
                np.testing.assert_array_equal(opened[part], image[part])
            assert source.label_hw(i) == labels.shape


@pytest.mark.parametrize("kind", KINDS)
def test_normalised_training_images_have_mean_0_and_deviation_1(bands, kind):
    dataset = bands(*kind)
    train = [image.reshape(-1, kind[0]) for image, _ in drawn("train", *kind)]
    pixels = np.concatenate(train).astype(np.float64)
    constant = np.nanmin(pixels, axis=0) == np.nanmax(pixels, axis=0)
    assert constant.any() == (kind[1] == "float32")
    expected = np.where(constant, 1, np.nanstd(pixels, axis=0))
    np.testing.assert_allclose(dataset.bands.mean, np.nanmean(pixels, axis=0))
    np.testing.assert_allclose(dataset.bands.deviation, expected)
    finite = np.where(np.isfinite(pixels), pixels, dataset.bands.mean)[None]
    seen = normalize(jnp.array(finite, kind[1]), dataset.bands)[0]
    np.testing.assert_allclose(seen.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(seen.std(axis=0), 1 - constant, atol=1e-3)


def test_moments_of_parts_are_those_of_the_whole_also_far_from_0():
    image = np.random.default_rng(0).normal(1e6, 1.0, (200, 30, 2))
    parts = (
        BandMoments.empty(2)
        .add(image[:70])
        .merge(BandMoments.from_json(BandMoments.empty(2).add(image[70:]).to_json()))
    )
    found = parts.to_bands("float32")
    np.testing.assert_allclose(found.mean, image.mean(axis=(0, 1)), rtol=1e-14)
    np.testing.assert_allclose(found.deviation, image.std(axis=(0, 1)), rtol=1e-6)


def test_rgb_is_as_ever(bands):
    dataset = bands(3, "uint8")
    assert dataset.bands == RGB
    assert RGB.pad.tolist() == [124, 116, 104]
    assert hash(dataset.bands) == hash(RGB)
    image = jax.random.randint(jax.random.key(0), (5, 4, 3), 0, 256).astype(jnp.uint8)
    np.testing.assert_array_equal(
        normalize(image), normalize(image / jnp.float32(255), RGB)
    )


def test_bands_are_part_of_what_a_dataset_is(bands):
    kinds = {bands(*kind).fingerprint for kind in KINDS}
    assert len(kinds) == len(KINDS)


@pytest.mark.parametrize("kind", [(4, "uint16"), (2, "float32")])
def test_batches_are_padded_by_the_mean_of_each_band(bands, kind):
    dataset = bands(*kind)
    loading = Loading(
        canvas_hw=(48, 50), ignore_label=255, num_classes=3, bands=dataset.bands
    )
    batch = load_batch(dataset.source("train"), np.array([1, 0]), loading, batch_size=3)
    assert batch["images"].shape == (3, 48, 50, kind[0])
    assert batch["images"].dtype == kind[1]
    image, labels = drawn("train", *kind)[1]
    h, w = labels.shape
    expected = np.where(np.isfinite(image), image, dataset.bands.pad)
    np.testing.assert_array_equal(batch["images"][0, :h, :w], expected)
    pad = np.array(dataset.bands.mean)
    pad = pad.round() if kind[1] == "uint16" else pad.astype(np.float32)
    for padding in (batch["images"][0, h:], batch["images"][0, :, w:]):
        np.testing.assert_array_equal(padding, np.broadcast_to(pad, padding.shape))
    np.testing.assert_array_equal(batch["labels"][0, :h, :w], labels)


def test_an_image_of_other_bands_is_a_bad_sample(bands):
    dataset = bands(4, "uint16")
    loading = Loading(canvas_hw=(48, 48), ignore_label=255, bands=LANDSAT)
    with pytest.raises(BadSampleError, match=r"must be 2 bands of uint16 .* 40, 4\)"):
        load_batch(dataset.source("train"), np.array([0]), loading, batch_size=1)
    with pytest.raises(ValueError, match=r"2 bands of uint16.*got uint8 \[5, 4, 3\]"):
        LANDSAT.check_image(np.zeros((5, 4, 3), np.uint8))


def augmented(image, **how):
    keys = jax.random.split(jax.random.key(1), 1)
    labels = jnp.zeros(image.shape[:2], jnp.uint16)[None]
    still = dict(flip_probability=0.0, brightness=0.0, contrast=0.0) | how
    images, *_ = augment(keys, image[None], labels, labels == 0, bands=LANDSAT, **still)
    return np.asarray(images[0])


def test_other_bands_get_a_shift_by_deviations_and_contrast_around_their_mean():
    rng = np.random.default_rng(0)
    image = rng.normal(LANDSAT.mean, LANDSAT.deviation, (6, 7, 2)).astype(np.uint16)
    np.testing.assert_array_equal(augmented(image), image)
    np.testing.assert_array_equal(
        augmented(image, flip_probability=1.0), image[:, ::-1]
    )
    shift = augmented(image, brightness=0.5) - image
    shares = shift / np.array(LANDSAT.deviation)
    assert 0.01 < np.abs(shares).max() <= 0.5
    np.testing.assert_allclose(shares, shares[0, 0, 0], atol=1e-5)
    mean = image.mean(axis=(0, 1))
    changed = augmented(image, contrast=0.5)
    np.testing.assert_allclose(changed.mean(axis=(0, 1)), mean, rtol=1e-5)
    factors = (changed - mean) / (image - mean)
    assert 0.01 < abs(factors[0, 0, 0] - 1) <= 0.5
    np.testing.assert_allclose(factors, factors[0, 0, 0], atol=1e-3)
    np.testing.assert_array_equal(augmented(image, saturation=0.9), image)


def test_a_crop_beyond_the_image_shows_the_mean_of_each_band():
    image = np.full((4, 4, 2), 7, np.uint16)
    window = Window(
        scale=jnp.array([4096]),
        offset=jnp.array([[0, -2]]),
        start=jnp.array([[0, 0]]),
        hw=jnp.array([[4, 4]]),
    )
    crop = augmented(image, window=window, crop_hw=(4, 6))
    np.testing.assert_array_equal(crop[:, :2, 0], 1000)
    np.testing.assert_array_equal(crop[:, :2, 1], 20)
    np.testing.assert_allclose(crop[:, 2:], 7, rtol=1e-6)


def test_pictures_show_the_first_three_bands_stretched_or_grey():
    bands = Bands(4, "int16", mean=(0.0, 10.0, 20.0, 5.0), deviation=(10.0,) * 4)
    values = np.array([[[-20, 10, 41, 0], [20, 0, -90, 9]]], np.int16)
    picture = to_rgb(values, bands)
    assert picture.tolist() == [[[0, 128, 255], [255, 64, 0]]]
    grey = to_rgb(values[..., :2], Bands(2, "int16", (0.0, 0.0), (10.0, 1.0)))
    assert grey.tolist() == [[[0, 0, 0], [255, 255, 255]]]
    rgb = np.zeros((2, 2, 3), np.uint8)
    assert to_rgb(rgb, RGB) is rgb


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, "uint8", (), ()), "1 or more bands"),
        ((1, "float64", (0.0,), (1.0,)), "got 1 of float64"),
        ((2, "uint8", (0.0,), (1.0, 1.0)), "must have 2 values, got 1 and 2"),
        ((1, "uint8", (0.0,), (0.0,)), "deviations > 0"),
    ],
)
def test_impossible_bands_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Bands(*arguments)


MANY = dict(num_classes=300, ignore_label=65535)


@pytest.fixture
def many(bands):
    return bands(3, "uint8", **MANY)


def test_class_index_of_300_classes_counts_each(many):
    expected = np.zeros((6, 300), int)
    for i, (_, labels) in enumerate(drawn("train", 3, "uint8", **MANY)):
        assert labels.dtype == np.uint16
        for c in range(300):
            expected[i, c] = (labels == c).sum()
    assert expected[:, 256:].sum() > 0
    index = many.class_index("train")
    np.testing.assert_array_equal(index.pixel_counts, expected)
    public = tfds.builder_from_directory(many.data_dir).as_data_source("train")
    assert public[5]["labels"].dtype == np.uint16
    np.testing.assert_array_equal(
        np.bincount(public[5]["labels"].ravel(), minlength=65536)[:300], expected[5]
    )
    assert many.label_dtype == "uint16"


def test_labels_that_are_no_class_are_found_beyond_255(bands, monkeypatch):
    dataset = bands(3, "uint8", num_classes=300, ignore_label=400)
    counter = dataset.label_counter("train")
    few = type(counter)(counter.source, 20, 400, "toy")
    with pytest.raises(ValueError, match=r"must be < 20 or ignore_label 400, got \[20"):
        few.count()


def test_windows_keep_classes_beyond_255():
    labels = np.full((64, 64), 299, np.uint16)
    labels[40:44, 20:24] = 43  # 299 - 256: as 8 bits, the two would be one
    labels[60:, 60:] = 280
    windows = Windows(crop_hw=(8, 8), scales=(1.0,), keep_classes=True, min_pixels=4)
    for c in (43, 280, 299):
        for row in range(5):
            owed = np.arange(300) == c
            window, _ = windows.draw(labels, owed, batch=0, row=row)
            assert (windows.crop(labels, window) == c).sum() >= 4
    alone = dataclasses.replace(windows, together=False)
    counts = alone.keepable(labels, 300, 65535)
    assert {c: counts[c] for c in np.flatnonzero(counts)} == {43: 16, 280: 16, 299: 64}


def test_crops_of_300_classes_are_counted(many):
    index = many.class_index("train")
    sampler = RandomBatch(index.presence(), batch_max=2)
    windows = Windows(crop_hw=(64, 64), scales=(1.0,))
    how = dict(num_classes=300, ignore_label=65535)
    counts = count_in_crops(
        many.source("train", images=False), sampler, windows, range(3), **how
    )
    np.testing.assert_array_equal(
        counts.crop_pixels, index.pixel_counts.sum(axis=0, dtype=np.int64)
    )
    np.testing.assert_array_equal(counts.in_images, counts.in_crops)

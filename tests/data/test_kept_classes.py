"""The guarantee of Balance-batch where the loss is computed: in the crops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segloss.config import choose_sampler, index_windows
from segloss.config.parsed import Named
from segloss.data import (
    BalanceBatch,
    ClassIndex,
    ClassSets,
    ClassUniform,
    Dataset,
    ForegroundOversample,
    GreedyCover,
    Loading,
    RandomBatch,
    RareClass,
    RepeatFactor,
    Windows,
    augment,
    count_in_crops,
    iterate_batches,
    open_dataset,
)
from segloss.data.class_index import LabelCounter
from segloss.devices import map_over_devices, shard

pytestmark = pytest.mark.shared_out

BATCHES = 200


class Labels:
    """Images without colours, for speed; only their labels are examined."""

    split = "train"

    def __init__(self, source):
        self.source = source

    def __len__(self):
        return len(self.source)

    def __getitem__(self, i):
        labels = self.source[i]["labels"]
        image = np.broadcast_to(np.uint8(0), (*labels.shape, 3))
        return {"image": image, "labels": labels, "stem": str(i)}


def squares():
    """30 images of 256 x 256 with squares of 12 x 12 of two of six classes."""
    rng = np.random.default_rng(0)
    samples = []
    for _ in range(30):
        labels = np.zeros((256, 256), np.uint8)
        for c in rng.choice(np.arange(1, 7), 2, replace=False):
            row, column = rng.integers(0, 244, 2)
            labels[row : row + 12, column : column + 12] = c
        samples.append({"labels": labels, "stem": "s"})
    return samples


def index_of(source, num_classes, windows=None):
    counter = LabelCounter(source, num_classes, 255, "toy", windows=windows)
    return ClassIndex(counter.count(), "toy")


def windows_of(source, num_classes, **fields):
    samples = index_of(source, num_classes).presence().sum(axis=0)
    rare_first = tuple(np.argsort(samples, kind="stable").tolist())
    return Windows(rare_first=rare_first, **fields)


def planned(source, num_classes, windows):
    """Where the sampler may count on a class."""
    index = index_of(source, num_classes, windows if windows.keep_classes else None)
    return index.presence()


def classes_on_devices(source, sampler, windows, num_classes, num_batches=BATCHES):
    """The number of classes in the crops of each batch, on 1, 2 and 4 devices.

    A class counts if one of the crops has enough pixels of it.
    """
    loading = Loading(
        canvas_hw=windows.canvas_hw((500, 500)),
        ignore_label=255,
        num_classes=num_classes,
        windows=windows,
    )

    def crop(batch):
        keys = jax.random.split(jax.random.key(0), len(batch["labels"]))
        names = ("images", "labels", "valid", "window")
        arrays = [batch[name] for name in names]
        _, labels, valid = augment(keys, *arrays, crop_hw=windows.crop_hw)
        return jnp.where(valid, labels, num_classes)

    def count(crops):
        counts = [
            np.bincount(crop.ravel(), minlength=num_classes)[:num_classes]
            for crop in np.asarray(crops).reshape(-1, *windows.crop_hw)
        ]
        return (np.max(counts, axis=0) >= windows.min_pixels).sum()

    mapped = {n: map_over_devices(crop, devices=jax.devices()[:n]) for n in (1, 2, 4)}
    where = dict(start=0, stop=num_batches, num_devices=4)
    batches = iterate_batches(source, sampler, loading, **where)
    return np.array(
        [[count(mapped[n](shard(batch, n))) for n in mapped] for batch in batches]
    )


@pytest.mark.parametrize("min_pixels", [1, 20])
def test_crops_of_small_squares_hold_batch_cl_classes(min_pixels):
    source = Labels(squares())
    fields = dict(crop_hw=(64, 64), min_pixels=min_pixels)
    windows = windows_of(source, 7, keep_classes=True, **fields)
    sampler = BalanceBatch(planned(source, 7, windows), batch_cl=6, batch_max=8)
    assert classes_on_devices(source, sampler, windows, 7).min() >= 6


def test_without_keeping_crops_of_small_squares_lose_most_classes():
    source = Labels(squares())
    windows = windows_of(source, 7, crop_hw=(64, 64))
    sampler = BalanceBatch(planned(source, 7, windows), batch_cl=6, batch_max=8)
    counted = count_in_crops(
        source, sampler, windows, range(BATCHES), num_classes=7, ignore_label=255
    )
    assert counted.in_images.sum(axis=1).mean() == pytest.approx(6.1, abs=0.2)
    assert counted.in_crops.sum(axis=1).mean() == pytest.approx(2.1, abs=0.3)
    assert counted.share_with(6) == 0
    for on_devices in classes_on_devices(source, sampler, windows, 7).T:
        np.testing.assert_array_equal(on_devices, counted.in_crops.sum(axis=1))


@pytest.fixture(scope="module")
def voc(research_data, tmp_path_factory):
    """The labels of the VOC sample's training images."""
    directory = tmp_path_factory.mktemp("voc")
    root = research_data("voc_sample")
    dataset = open_dataset("voc2012", root=root, partial=True, data_dir=directory)
    return Labels(dataset.source("train", images=False))


# For `batch_max` and `batch_cl`: the mean number of classes in the images and in the
# crops of a batch, and the share of batches whose crops have `batch_cl` classes.
ROWS = {
    (9, 8): (8.38, 7.92, 0.73),
    (9, 12): (12.18, 11.57, 0.59),
    (6, 8): (8.41, 7.93, 0.73),
    (4, 4): (4.66, 4.39, 0.89),
}
PAPER = dict(crop_hw=(321, 321), scales=(0.5, 0.75, 1.0, 1.25, 1.5))


@pytest.mark.parametrize("pair", ROWS)
def test_crops_of_voc_hold_batch_cl_classes(voc, pair):
    batch_max, batch_cl = pair
    windows = windows_of(voc, 21, keep_classes=True, **PAPER)
    sampler = BalanceBatch(
        planned(voc, 21, windows), batch_cl=batch_cl, batch_max=batch_max
    )
    counted = count_in_crops(
        voc, sampler, windows, range(BATCHES), num_classes=21, ignore_label=255
    )
    classes = counted.in_crops.sum(axis=1)
    assert classes.min() >= batch_cl
    # What is counted is what the devices see; fewer batches, since this takes longer.
    for on_devices in classes_on_devices(voc, sampler, windows, 21, 20).T:
        np.testing.assert_array_equal(on_devices, classes[:20])


@pytest.mark.parametrize("pair", ROWS)
def test_without_keeping_crops_of_voc_lose_as_many_classes_as_measured(voc, pair):
    batch_max, batch_cl = pair
    images, crops, kept = ROWS[pair]
    windows = windows_of(voc, 21, **PAPER)
    sampler = BalanceBatch(
        planned(voc, 21, windows), batch_cl=batch_cl, batch_max=batch_max
    )
    counted = count_in_crops(
        voc, sampler, windows, range(BATCHES), num_classes=21, ignore_label=255
    )
    in_crops = counted.in_crops.sum(axis=1)
    # Four standard errors of 200 batches, and half a digit of the figures above.
    error = 4 * in_crops.std() / np.sqrt(BATCHES) + 0.005
    assert counted.in_images.sum(axis=1).mean() == pytest.approx(images, abs=error)
    assert in_crops.mean() == pytest.approx(crops, abs=error)
    error = 4 * np.sqrt(kept * (1 - kept) / BATCHES) + 0.005
    assert counted.share_with(batch_cl) == pytest.approx(kept, abs=error)


def test_owed_classes_of_balance_batch_are_those_that_a_sample_adds():
    presence = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]], bool)
    for make in (BalanceBatch, GreedyCover):
        sampler = make(presence, batch_cl=4, batch_max=4)
        for k in range(5):
            owed, seen = sampler.owed(k), np.zeros(4, bool)
            for i, row in zip(sampler[k], owed, strict=True):
                np.testing.assert_array_equal(row, presence[i] & ~seen)
                seen |= presence[i]
            assert owed.sum() == 4
    no_background = BalanceBatch(
        presence, batch_cl=3, batch_max=4, count_background=False
    )
    assert not no_background.owed(0)[:, 0].any()


def test_class_samplers_owe_the_class_that_they_drew():
    rng = np.random.default_rng(0)
    presence = rng.random((40, 6)) < 0.4
    pixels = np.array([900, 400, 300, 200, 100, 50])
    drawn = np.zeros(6)
    for sampler in (
        ClassUniform(presence, batch_max=5),
        RareClass(presence, batch_max=5, class_pixels=pixels, temperature=0.5),
    ):
        for k in range(60):
            owed = sampler.owed(k)
            assert (owed.sum(axis=1) == 1).all()
            assert (presence[sampler[k]] | ~owed).all()
            drawn += owed.sum(axis=0)
    assert (drawn > 0).all()


def test_samplers_of_one_class_draw_a_class_that_is_always_far_from_a_rarer_one():
    samples = []
    for _ in range(12):
        labels = np.zeros((256, 256), np.uint8)
        labels[10:30, 10:30], labels[220:240, 220:240] = 1, 2
        samples.append({"labels": labels, "stem": "s"})
    source = Labels(samples)

    class Far(Dataset):
        def __init__(self):
            pass

        def class_index(self, split, windows=None):
            return index_of(source, 3, windows)

    windows = windows_of(source, 3, crop_hw=(64, 64), keep_classes=True)
    for name in ("class_uniform", "rare_class", "foreground_oversample"):
        named = Named(name, dict(batch_max=6))
        index = index_of(source, 3)
        counted = index_windows(Far(), index, named, windows)
        sampler = choose_sampler(named, seed=0)(index, counted)
        owed = np.concatenate([sampler.owed(k) for k in range(20)])
        assert owed.any(axis=0)[1:].all(), name
        kept = count_in_crops(
            source, sampler, windows, range(20), num_classes=3, ignore_label=255
        )
        for k in range(20):
            assert (kept.in_crops[k] | ~sampler.owed(k).any(axis=0)).all()


def test_oversampled_foreground_is_owed_in_the_last_third():
    presence = np.random.default_rng(0).random((40, 6)) < 0.3
    presence[:, 0] = True
    sampler = ForegroundOversample(presence, batch_max=9)
    drawn = np.zeros(6)
    for k in range(60):
        owed = sampler.owed(k)
        assert not owed[:6].any()
        assert (owed[6:].sum(axis=1) == 1).all()
        assert (presence[sampler[k]] | ~owed).all()
        drawn += owed.sum(axis=0)
    assert drawn[0] == 0
    assert (drawn[1:] > 0).all()


def test_the_last_foreground_class_of_a_long_epoch_is_one_that_the_sample_has():
    # More draws than the 65,536 for which classes are looked up at a time.
    presence = np.random.default_rng(0).random((200_000, 3)) < 0.4
    presence[:, 1] |= ~presence[:, 2]
    sampler = ForegroundOversample(presence, batch_max=9)
    for k in range(sampler.batches_per_epoch - 200, sampler.batches_per_epoch):
        owed = sampler.owed(k)
        assert (owed[6:].sum(axis=1) == 1).all()
        assert not owed[:, 0].any()
        assert (presence[sampler[k]] | ~owed).all()


def test_samplers_that_ignore_classes_owe_nothing():
    sets = ClassSets.of(np.random.default_rng(0).random((40, 6)) < 0.4)
    for sampler in (
        RandomBatch(sets, batch_max=5),
        RepeatFactor(sets, batch_max=5, threshold=0.5),
    ):
        assert not sampler.takes_for_classes
        owed = sampler.owed(3)
        assert owed.shape == (len(sampler[3]), 6)
        assert not owed.any()

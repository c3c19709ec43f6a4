import tracemalloc

import numpy as np
import pytest
from scipy import stats

from segloss.data import Windows
from segloss.data.loading import windows as module
from segloss.data.loading.window import SCALE_ONE
from segloss.data.loading.window_grid import count_in_grid, grid_positions

NOTHING = np.zeros(3, bool)


def with_squares(*corners, hw=(256, 256), side=12):
    """Labels with a square of class 1, 2, ... at each corner."""
    labels = np.zeros(hw, np.uint8)
    for c, (row, column) in enumerate(corners, start=1):
        labels[row : row + side, column : column + side] = c
    return labels


def draw_many(windows, labels, owed, count):
    drawn = [windows.draw(labels, owed, batch=k, row=k % 5) for k in range(count)]
    return [window for window, _ in drawn], np.array([tries for _, tries in drawn])


def pixels_of(windows, labels, window, c):
    return int((windows.crop(labels, window) == c).sum())


def test_scales_are_the_only_ones_drawn_and_about_as_often():
    windows = Windows(crop_hw=(16, 16), scale_range=(9.0, 9.0), scales=(0.5, 1, 1.5))
    drawn, _ = draw_many(windows, np.zeros((8, 8), np.uint8), NOTHING, 300)
    scales, counts = np.unique([w.scale / SCALE_ONE for w in drawn], return_counts=True)
    np.testing.assert_array_equal(scales, [0.5, 1, 1.5])
    assert counts.min() > 75
    # An image of 8x8 covers 4x4, 8x8 or 12x12 of the crop.
    areas = {windows.crop(np.zeros((8, 8), np.uint8), w).size for w in drawn}
    assert areas == {16, 64, 144}


def test_positions_of_a_crop_are_equally_likely_and_stay_within_the_image():
    windows = Windows(crop_hw=(8, 8), scales=(1.0,))
    drawn, tries = draw_many(windows, np.zeros((12, 10), np.uint8), NOTHING, 3000)
    assert set(tries) == {1}
    rows, counts = np.unique([w.offset[0] for w in drawn], return_counts=True)
    assert rows.tolist() == [0, 1, 2, 3, 4]
    assert stats.chisquare(counts).pvalue > 1e-3
    assert {w.offset[1] for w in drawn} == {0, 1, 2}
    labels = np.zeros((12, 10), np.uint8)
    assert all(windows.crop(labels, w).shape == (8, 8) for w in drawn)


def test_a_smaller_image_lies_whole_and_anywhere_within_the_crop():
    windows = Windows(crop_hw=(20, 24), scales=(0.5,))
    drawn, _ = draw_many(windows, np.zeros((32, 32), np.uint8), NOTHING, 300)
    assert {w.offset[0] for w in drawn} == {0, -1, -2, -3, -4}
    assert {w.offset[1] for w in drawn} == {*range(-8, 1)}
    assert {(w.start, w.hw) for w in drawn} == {((0, 0), (32, 32))}


def test_a_window_is_no_larger_than_the_canvas_whatever_the_image_is():
    windows = Windows(crop_hw=(48, 32), scale_range=(0.4, 2.0))
    labels = np.zeros((2000, 3000), np.uint8)
    canvas = windows.canvas_hw((2000, 3000))
    # 47 and 31 pixels at scale 0.4, the pixels of both ends, and 3 on each side.
    assert canvas == (117 + 2 + 6, 77 + 2 + 6)
    drawn, _ = draw_many(windows, labels, NOTHING, 500)
    largest = np.max([w.hw for w in drawn], axis=0)
    assert (largest <= canvas).all()
    assert (largest > np.array(canvas) * 0.95).all()
    assert windows.canvas_hw((60, 3000)) == (60, canvas[1])


def test_a_window_is_a_pure_function_of_seed_batch_and_row():
    labels = with_squares((10, 20), (200, 30))
    owed = np.array([False, True, False])
    kwargs = dict(crop_hw=(64, 64), keep_classes=True)
    found = {}
    for seed in (0, 1):
        for batch in (0, 1):
            for row in (0, 1):
                one, other = Windows(**kwargs, seed=seed), Windows(**kwargs, seed=seed)
                window, _ = one.draw(labels, owed, batch=batch, row=row)
                assert window == other.draw(labels, owed, batch=batch, row=row)[0]
                found[seed, batch, row] = window
    assert len(set(found.values())) == 8


@pytest.mark.parametrize("min_pixels", [1, 30])
def test_what_a_sample_owes_is_kept_with_as_many_pixels(min_pixels):
    windows = Windows(crop_hw=(64, 64), keep_classes=True, min_pixels=min_pixels)
    labels = with_squares((10, 20), (200, 30))
    owed = np.array([False, True, False])
    drawn, tries = draw_many(windows, labels, owed, 200)
    kept = [pixels_of(windows, labels, window, 1) for window in drawn]
    assert min(kept) >= min_pixels
    assert tries.max() > module._TRIES
    without = Windows(crop_hw=(64, 64), min_pixels=min_pixels)
    drawn, tries = draw_many(without, labels, owed, 200)
    kept = [pixels_of(without, labels, window, 1) for window in drawn]
    assert np.mean(np.array(kept) >= min_pixels) < 0.5
    assert set(tries) == {1}


def test_labels_without_a_class_are_never_owed_but_do_not_stop_a_draw():
    windows = Windows(crop_hw=(64, 64), keep_classes=True)
    owed = np.array([False, True, True])
    labels = with_squares((100, 100))  # no class 2
    drawn, _ = draw_many(windows, labels, owed, 50)
    assert min(pixels_of(windows, labels, window, 1) for window in drawn) >= 1


def test_what_no_window_holds_together_is_given_up_the_most_frequent_class_first():
    labels = with_squares((0, 0), (240, 240), (8, 20))
    owed = np.array([False, True, True, True])
    for rare_first, lost in (((2, 1, 3, 0), {1, 3}), ((3, 1, 2, 0), {2})):
        windows = Windows(
            crop_hw=(64, 64), scales=(1.0,), keep_classes=True, rare_first=rare_first
        )
        drawn, tries = draw_many(windows, labels, owed, 20)
        assert set(tries) == {2 * module._TRIES + 1}
        for window in drawn:
            kept = {c for c in (1, 2, 3) if pixels_of(windows, labels, window, c)}
            assert kept == {1, 2, 3} - lost


def test_classes_that_one_window_holds_are_kept_in_every_subset():
    rng = np.random.default_rng(0)
    windows = Windows(
        crop_hw=(64, 64), scale_range=(0.5, 1.5), keep_classes=True, min_pixels=20
    )
    sizes = []
    for k in range(40):
        labels = with_squares(*rng.integers(0, 244, (4, 2)))
        kept = windows.keepable(labels, 5, 255)
        assert ((kept == 0) | (kept >= 20)).all()
        sizes.append(np.count_nonzero(kept))
        for c in np.flatnonzero(kept):
            owed = (kept > 0) & ((np.arange(5) == c) | (rng.random(5) < 0.5))
            window, _ = windows.draw(labels, owed, batch=k, row=int(c))
            for each in np.flatnonzero(owed):
                assert pixels_of(windows, labels, window, each) >= 20
    # With four squares at random places, most windows hold the ground and some of them.
    assert min(sizes) >= 2
    assert len(set(sizes)) > 2


def test_of_two_scales_that_keep_as_many_classes_the_rarer_are_kept():
    labels = with_squares((4, 4), side=4)  # 2 x 2 pixels at scale 0.5
    labels[4:20, 200:216] = 2
    windows = Windows(
        crop_hw=(64, 64),
        scales=(0.5, 1.0),
        keep_classes=True,
        min_pixels=9,
        rare_first=(1, 2, 0),
    )
    assert np.flatnonzero(windows.keepable(labels, 3, 255)).tolist() == [0, 1]


def test_the_ignored_label_is_never_kept():
    labels = with_squares((0, 0), (40, 40))
    windows = Windows(crop_hw=(64, 64), keep_classes=True)
    assert windows.keepable(labels, 3, 255).tolist()[2] > 0
    assert windows.keepable(labels, 3, 2).tolist()[2] == 0


def test_grid_counts_the_pixels_of_its_windows():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 6, (70, 90)).astype(np.uint8)  # 5 is void
    windows = Windows(crop_hw=(24, 32), scales=(0.5, 0.7, 1.3))
    for scale in windows._grid_scales:
        counts = count_in_grid(labels, (24, 32), scale, 5)
        offsets = [
            grid_positions(size, crop, scale)
            for size, crop in zip(labels.shape, (24, 32), strict=True)
        ]
        assert counts.shape == (*map(len, offsets), 5)
        for i, row in enumerate(offsets[0]):
            for j, column in enumerate(offsets[1]):
                window = windows._at(scale, [int(row), int(column)], labels.shape)
                seen = windows.crop(labels, window).ravel()
                expected = np.bincount(seen, minlength=6)[:5]
                np.testing.assert_array_equal(counts[i, j], expected)


def test_windows_that_all_hold_what_is_owed_are_drawn_as_without():
    """Where nothing can be lost, keeping classes does not change the distribution."""
    labels = ((np.indices((200, 300)) // 8).sum(axis=0) % 2).astype(np.uint8)
    owed = np.array([True, True])
    moments = []
    for keep in (True, False):
        windows = Windows(crop_hw=(64, 64), keep_classes=keep, seed=int(keep))
        drawn, tries = draw_many(windows, labels, owed, 10_000)
        assert set(tries) == {1}
        scale = np.array([w.scale for w in drawn]) / SCALE_ONE
        centre = [np.add(w.offset, 32) for w in drawn] / scale[:, None]
        moments.append(np.column_stack([scale, centre]))
    # Two samples of 10,000: the mean differs by less than four standard errors, and the
    # distributions are equal by Kolmogorov and Smirnov's test.
    kept, plain = moments
    errors = np.sqrt(kept.var(axis=0) / len(kept) + plain.var(axis=0) / len(plain))
    assert (np.abs(kept.mean(axis=0) - plain.mean(axis=0)) < 4 * errors).all()
    for a, b in zip(kept.T, plain.T, strict=True):
        assert stats.ks_2samp(a, b).pvalue > 1e-3


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(scale_range=(0.0, 1.0)), "scale_range must be 0 < low <= high"),
        (dict(scale_range=(2.0, 1.0)), r"scale_range must be .* got \(2.0, 1.0\)"),
        (dict(scale_range=(0.5, np.inf)), "scale_range must be 0 < low <= high"),
        (dict(scale_range=(0.5, 1.0, 2.0)), "scale_range must be 0 < low <= high"),
        (dict(scales=0.5), "scales must be one or more numbers > 0, .* got 0.5"),
        (dict(scales=("a",)), "scales must be one or more numbers > 0"),
        (dict(scales=()), r"scales must be one or more numbers > 0, .* got \(\)"),
        (dict(scales=(1, 0)), r"scales must be .* > 0, .* got \(1, 0\)"),
        (dict(keep_classes=1), "keep_classes must be True or False, got 1"),
        (dict(min_pixels=0), "min_pixels must be >= 1, got 0"),
        (dict(rare_first=(0, 2)), r"rare_first must have every class once, got \(0, 2"),
        (
            dict(keep_classes=True, min_pixels=17),
            "min_pixels <= 16, the pixels of a crop of 4x4, got 17",
        ),
    ],
)
def test_bad_hyperparameters_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Windows(crop_hw=(4, 4), **kwargs)


def test_an_order_that_lacks_an_owed_class_is_refused():
    windows = Windows(crop_hw=(8, 8), keep_classes=True, rare_first=(1, 0))
    labels, owed = np.zeros((16, 16), np.uint8), np.array([False, False, True])
    with pytest.raises(ValueError, match="rare_first must have 3 classes, got 2"):
        windows.draw(labels, owed, batch=0, row=0)


def test_counting_in_a_grid_takes_no_memory_for_each_scaled_pixel():
    labels = np.zeros((1_000, 1_000), np.uint8)
    tracemalloc.start()
    count_in_grid(labels, (128, 128), 4 * SCALE_ONE, 2)  # of 16 million pixels
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16_000_000


@pytest.mark.parametrize(
    ("hw", "scale"), [((1, 50), 0.5), ((50, 1), 0.5), ((3, 3), 0.1)]
)
def test_an_image_too_small_for_one_scaled_pixel_keeps_nothing(hw, scale):
    labels = np.ones(hw, np.uint8)
    windows = Windows(crop_hw=(8, 8), scales=(scale,), keep_classes=True)
    assert not windows.keepable(labels, 2, 255).any()
    window, _ = windows.draw(labels, np.array([False, True]), batch=0, row=0)
    assert windows.crop(labels, window).size == 0
    # Another scale keeps the class.
    windows = Windows(crop_hw=(8, 8), scales=(scale, 1.0), keep_classes=True)
    assert windows.keepable(labels, 2, 255)[1] > 0

"""Bootstrap intervals, held against a slow loop, a closed form and simulations."""

import functools
import itertools

import numpy as np
import pytest

from experiments.analysis.statistics import difference, mean_scores
from segloss import metrics


def accuracy(confusion):
    hits = np.trace(confusion, axis1=-2, axis2=-1)
    return hits / confusion.sum(axis=(-2, -1))


def hits(counts, pixels=100):
    """Confusions of two classes with so many correct pixels per image."""
    counts = np.asarray(counts)
    per_image = np.zeros((*counts.shape, 2, 2), np.int32)
    per_image[..., 0, 0] = counts
    per_image[..., 0, 1] = pixels - counts
    return per_image


def test_scores_are_of_the_summed_images_and_spread_over_seeds():
    # The first seed has 90 + 30 of 200 pixels, the second 80 + 80.
    spread = mean_scores(hits([[90, 30], [80, 80]]), accuracy)
    assert (spread.mean, spread.low, spread.high) == (0.7, 0.6, 0.8)


def test_seeds_without_a_score_are_left_out():
    per_image = hits([[90, 30], [80, 80]])
    per_image[0] = 0
    both = mean_scores(per_image, metrics.iou_per_class)
    assert both[0].mean == 0.8
    assert np.isnan(mean_scores(per_image[:1], metrics.mean_iou).mean)


def test_two_seeds_and_two_images_have_all_resamples_by_hand():
    """Of 16 equally likely draws the differences are known, so their quantiles are."""
    treatment, baseline = hits([[50, 70], [60, 90]]), hits([[40, 50], [60, 60]])
    gain = np.array([[10, 20], [0, 30]]) / 100
    pairs = list(itertools.product([0, 1], repeat=2))
    by_hand = [gain[np.ix_(s, i)].mean() for s in pairs for i in pairs]
    interval = difference(treatment, baseline, accuracy, resamples=4000)
    assert interval.estimate == pytest.approx(0.15)
    # The least, 0.0, and the most, 0.3, each have a sixteenth of the draws.
    assert (interval.low, interval.high) == pytest.approx((min(by_hand), max(by_hand)))
    assert interval.defined == 1


def test_interval_equals_that_of_a_slow_loop():
    rng = np.random.default_rng(0)
    arms = rng.integers(0, 40, (2, 3, 6, 3, 3)).astype(np.int32)
    fast = difference(*arms, metrics.mean_iou, resamples=1000)
    slow = []
    for _ in range(1000):
        seeds, images = rng.integers(0, 3, 3), rng.integers(0, 6, 6)
        scores = [
            np.mean([metrics.mean_iou(arm[s][images].sum(axis=0)) for s in seeds])
            for arm in arms
        ]
        slow.append(scores[0] - scores[1])
    low, high = np.percentile(slow, [2.5, 97.5])
    assert (fast.low, fast.high) == pytest.approx((low, high), abs=0.01)
    plain = np.mean(
        [
            metrics.mean_iou(t.sum(0)) - metrics.mean_iou(b.sum(0))
            for t, b in zip(*arms, strict=True)
        ]
    )
    assert fast.estimate == pytest.approx(plain)


def test_equal_arms_differ_by_exactly_nothing():
    per_image = np.random.default_rng(0).integers(0, 40, (3, 9, 3, 3)).astype(np.int32)
    interval = difference(per_image, per_image, resamples=200)
    assert (interval.estimate, interval.low, interval.high) == (0, 0, 0)


def test_what_makes_an_image_hard_for_both_arms_cancels():
    """Each image gains exactly 5 of 100 pixels, though images are from 10 to 90."""
    baseline = np.tile(np.linspace(10, 90, 9, dtype=int), (3, 1))
    paired = difference(hits(baseline + 5), hits(baseline), accuracy)
    assert (paired.low, paired.high) == pytest.approx((0.05, 0.05))
    # The same images in another order are no pairs: the interval says nothing.
    shuffled = difference(hits(baseline + 5), hits(baseline[:, ::-1]), accuracy)
    assert shuffled.estimate == pytest.approx(0.05)
    assert shuffled.low < -0.2 < 0.2 < shuffled.high


def test_pairs_of_seeds_cancel_too():
    seeds = np.array([[20], [50], [80]]) + np.zeros((1, 5), int)
    interval = difference(hits(seeds + 5), hits(seeds), accuracy)
    assert (interval.low, interval.high) == pytest.approx((0.05, 0.05))


def test_class_that_no_drawn_image_holds_leaves_the_resample_out():
    """Class 1 is in one of four images: a draw lacks it with chance (3/4)^4 = 0.316."""
    treatment = np.zeros((2, 4, 2, 2), np.int32)
    treatment[:, :, 0, 0] = 50
    baseline = treatment.copy()
    treatment[:, 0, 1, 1], treatment[:, 0, 1, 0] = 8, 2
    baseline[:, 0, 1, 1], baseline[:, 0, 1, 0] = 5, 5
    interval = difference(treatment, baseline, metrics.iou_per_class, resamples=1000)
    assert interval.defined[1] == pytest.approx(1 - 0.75**4, abs=0.05)
    assert interval[1].estimate == pytest.approx(0.8 - 0.5)
    assert (interval[1].low, interval[1].high) == pytest.approx((0.3, 0.3))
    assert interval.defined[0] == 1


def test_class_that_is_nowhere_has_no_interval():
    per_image = np.zeros((2, 3, 2, 2), np.int32)
    per_image[:, :, 0, 0] = 9
    interval = difference(per_image, per_image, metrics.iou_per_class, resamples=50)
    assert np.isnan([interval[1].estimate, interval[1].low, interval[1].high]).all()
    assert interval[1].defined == 0


def test_seed_without_a_score_is_left_out_of_the_mean():
    treatment, baseline = np.zeros((2, 2, 3, 2, 2), np.int32)
    treatment[..., 0, 0] = baseline[..., 0, 0] = 50
    # Of the first seed alone, both arms predict or hold class 1.
    treatment[0, :, 0, 1], baseline[0, :, 1, 1] = 1, 10
    interval = difference(treatment, baseline, metrics.iou_per_class, resamples=400)
    assert interval[1].estimate == -1
    # Both seeds drawn being the second has chance 1/4.
    assert interval[1].defined == pytest.approx(0.75, abs=0.07)


def test_one_seed_is_an_interval_over_images():
    counts = np.array([[50, 60, 70, 20]])
    interval = difference(hits(counts + np.array([1, 2, 3, 2])), hits(counts), accuracy)
    assert interval.estimate == pytest.approx(0.02)
    assert 0.01 <= interval.low < 0.02 < interval.high <= 0.03


def test_several_scores_share_their_resamples():
    arms = np.random.default_rng(0).integers(0, 40, (2, 3, 6, 3, 3)).astype(np.int32)
    one = functools.partial(difference, *arms, resamples=100)
    both = one(lambda c: np.stack([accuracy(c), metrics.mean_iou(c)], axis=-1))
    for place, score in enumerate((accuracy, metrics.mean_iou)):
        assert both[place] == one(score)


def test_what_cannot_be_compared_is_refused():
    per_image = hits([[90, 30], [80, 80]])
    with pytest.raises(ValueError, match="must have the same seeds, images"):
        difference(per_image, per_image[:, :1])
    with pytest.raises(ValueError, match="needs at least 2 images, got 1"):
        difference(per_image[:, :1], per_image[:, :1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_images", "share"), [(1, 0.8), (2, 0.4), (4, 0.1), (8, 0.1)]
)
def test_a_class_in_few_images_differs_falsely_as_often_as_is_said(num_images, share):
    """Three seeds spread by 2 points, images by 10, and there is no gain at all."""
    rng, false, trials = np.random.default_rng(0), 0, 300

    def score(confusion):
        # 0/0 where no image drawn holds the class.
        with np.errstate(invalid="ignore"):
            return accuracy(confusion)

    for _ in range(trials):
        gains = rng.normal(0, 2, (3, 1)) + rng.normal(0, 10, num_images)
        arms = np.zeros((2, 3, 40, 2, 2), np.int32)
        for arm, gain in zip(arms, (gains, 0 * gains), strict=True):
            arm[:, :num_images] = hits(
                np.clip(np.rint(500 + 10 * gain), 0, 1000).astype(int), pixels=1000
            )
        interval = difference(*arms, score, resamples=300)
        false += not interval.low <= 0 <= interval.high
    assert false / trials == pytest.approx(share, abs=0.06)


@pytest.mark.slow
@pytest.mark.parametrize(("num_seeds", "share"), [(12, 0.92), (3, 0.79)])
def test_interval_covers_the_truth_as_often_as_the_docstring_says(num_seeds, share):
    """Seeds spread by 4 points, images by 6 over the root of 40: seeds decide."""
    rng, covered, trials = np.random.default_rng(0), 0, 300
    for _ in range(trials):
        image = rng.normal(60, 10, 40)
        gains = 3 + rng.normal(0, 4, (num_seeds, 1)) + rng.normal(0, 6, 40)
        noise = rng.normal(0, 2, (2, num_seeds, 40))
        arms = [image + noise[0] + gains, image + noise[1]]
        counts = [np.clip(np.rint(10 * arm), 0, 1000).astype(int) for arm in arms]
        interval = difference(
            *(hits(c, pixels=1000) for c in counts), accuracy, resamples=300
        )
        covered += interval.low <= 0.03 <= interval.high
    assert covered / trials == pytest.approx(share, abs=0.03)

import inspect
import json
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from segloss import metrics

# Rows are labels. Class 2 is predicted but never labelled, class 3 is neither:
# hits (2, 4, 0, 0), labelled (4, 6, 0, 0), predicted (3, 5, 2, 0), 10 pixels.
CONFUSION = np.array([[2, 1, 1, 0], [1, 4, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
NAN = np.nan
SCORES = (
    "cohen_kappa",
    "dice_per_class",
    "f1_per_class",
    "frequency_weighted_iou",
    "iou_per_class",
    "matthews_corrcoef",
    "mean_accuracy",
    "mean_iou",
    "pixel_accuracy",
    "precision_per_class",
    "recall_per_class",
    "summary",
)
SKLEARN = json.loads(Path(__file__).with_name("sklearn_scores.json").read_text())


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        ("iou_per_class", [2 / 5, 4 / 7, 0, NAN]),
        ("dice_per_class", [4 / 7, 8 / 11, 0, NAN]),
        ("f1_per_class", [4 / 7, 8 / 11, 0, NAN]),
        ("precision_per_class", [2 / 3, 4 / 5, 0, NAN]),
        ("recall_per_class", [2 / 4, 4 / 6, NAN, NAN]),
        ("mean_iou", (2 / 5 + 4 / 7 + 0) / 3),
        ("frequency_weighted_iou", 0.4 * 2 / 5 + 0.6 * 4 / 7),
        ("mean_accuracy", (2 / 4 + 4 / 6) / 2),
        ("pixel_accuracy", 6 / 10),
        # By chance 4 x 3 + 6 x 5 of 100 pairs agree.
        ("cohen_kappa", (0.6 - 0.42) / (1 - 0.42)),
        ("matthews_corrcoef", (60 - 42) / np.sqrt((100 - 52) * (100 - 38))),
    ],
)
def test_score_matches_hand_computed_value(score, expected):
    value = getattr(metrics, score)(CONFUSION)
    np.testing.assert_allclose(value, expected, rtol=1e-12)


# Of 10 pixels, 2 of class 0 and 1 of class 1 are predicted as no class: hits (2, 3),
# labelled (5, 5), predicted (3, 4) and 3 of no class.
WITH_REST = np.array([[2, 1, 2], [1, 3, 1]])


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        ("iou_per_class", [2 / 6, 3 / 6]),
        ("dice_per_class", [4 / 8, 6 / 9]),
        ("f1_per_class", [4 / 8, 6 / 9]),
        ("precision_per_class", [2 / 3, 3 / 4]),
        ("recall_per_class", [2 / 5, 3 / 5]),
        ("mean_iou", (2 / 6 + 3 / 6) / 2),
        ("frequency_weighted_iou", 0.5 * 2 / 6 + 0.5 * 3 / 6),
        ("mean_accuracy", (2 / 5 + 3 / 5) / 2),
        ("pixel_accuracy", 5 / 10),
        # By chance 5 x 3 + 5 x 4 of 100 pairs agree.
        ("cohen_kappa", (0.5 - 0.35) / (1 - 0.35)),
        ("matthews_corrcoef", (50 - 35) / np.sqrt((100 - 50) * (100 - 9 - 16 - 9))),
    ],
)
def test_a_prediction_of_no_class_counts_as_wrong(score, expected):
    score = getattr(metrics, score)
    value = score(WITH_REST)
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    # The same as of three classes, of which no pixel is labelled with the last.
    as_class = score(np.vstack([WITH_REST, [0, 0, 0]]))
    if np.ndim(value):
        np.testing.assert_array_equal(value, as_class[:2])
    # A column without pixels changes nothing.
    np.testing.assert_array_equal(
        score(CONFUSION), score(np.pad(CONFUSION, ((0, 0), (0, 1))))
    )


@pytest.mark.parametrize("score", SCORES)
def test_scores_refuse_negative_counts_and_other_shapes(score):
    score = inspect.unwrap(getattr(metrics, score))
    for wrong in (CONFUSION - 1, np.array([[3, 0, 0], [0, -1, 0]])):
        with pytest.raises(ValueError, match="valid labels that are no class; mask"):
            score(wrong)
    for shape in ((4,), (3, 2), (2, 4), (0, 0)):
        with pytest.raises(ValueError, match=r"must be \[c, c\] or \[c, c \+ 1\], got"):
            score(np.zeros(shape, int))


@pytest.mark.parametrize("rest", [0, 1])
def test_several_matrices_are_scored_each_as_on_its_own(rest):
    several = np.stack([CONFUSION, CONFUSION.T, 0 * CONFUSION, np.eye(4, dtype=int)])
    several = np.append(several, several[..., :rest], axis=-1)
    several = several.reshape(2, 2, 4, 4 + rest)
    for score in (
        metrics.iou_per_class,
        metrics.dice_per_class,
        metrics.f1_per_class,
        metrics.precision_per_class,
        metrics.recall_per_class,
        metrics.mean_iou,
        metrics.mean_accuracy,
        metrics.frequency_weighted_iou,
        metrics.pixel_accuracy,
    ):
        got = score(several)
        for place in np.ndindex(2, 2):
            np.testing.assert_array_equal(got[place], score(several[place]))


def test_a_mean_may_leave_classes_out():
    assert metrics.mean_iou(CONFUSION, ignore_classes=[0]) == (4 / 7 + 0) / 2
    # Class 3 has no score in any case.
    assert metrics.mean_iou(CONFUSION, ignore_classes=(1, 3)) == (2 / 5 + 0) / 2
    several = np.stack([CONFUSION, 2 * CONFUSION])
    np.testing.assert_array_equal(
        metrics.mean_iou(several, ignore_classes=[0]), [(4 / 7 + 0) / 2] * 2
    )
    plain, scores = (metrics.summary(CONFUSION, ignore_classes=x) for x in ((), [0]))
    assert scores == plain | {"mean_iou_without_ignored": (4 / 7 + 0) / 2}
    for wrong in (4, -1):
        with pytest.raises(ValueError, match=r"ids in \[0, 4\), got \(0, -?[14]\)"):
            metrics.mean_iou(CONFUSION, ignore_classes=[0, wrong])


def test_summary_is_flat_floats():
    summary = metrics.summary(CONFUSION)
    assert all(type(value) is float for value in summary.values())
    mean_f1 = summary.pop("mean_f1")
    assert mean_f1 == pytest.approx((4 / 7 + 8 / 11 + 0) / 3)
    assert summary == {name: getattr(metrics, name)(CONFUSION) for name in summary}
    assert len(summary) == 6


@pytest.mark.parametrize("case", SKLEARN.values(), ids=SKLEARN)
def test_scores_equal_those_of_scikit_learn(case):
    confusion = metrics.confusion_matrix(
        np.array(case["predicted"]),
        np.array(case["labels"]),
        num_classes=case["num_classes"],
    )
    confusion = np.array(confusion, np.int64)
    summary = metrics.summary(confusion)
    for name, expected in case["scores"].items():
        value = summary[name] if name in summary else getattr(metrics, name)(confusion)
        np.testing.assert_allclose(value, expected, rtol=1e-12, err_msg=name)
    assert set(summary) < set(case["scores"])


def test_a_perfect_prediction_scores_one():
    perfect = np.diag([5, 0, 7, 1])
    summary = metrics.summary(perfect)
    assert summary == pytest.approx(dict.fromkeys(summary, 1.0))
    for name in metrics.__all__:
        if name.endswith("_per_class"):
            score = getattr(metrics, name)(perfect)
            np.testing.assert_array_equal(score, [1, NAN, 1, 1], err_msg=name)


def test_scores_are_of_the_data_set_and_not_of_its_images():
    """A class missed in an image of one of its pixels is one of four in all."""
    images = np.array([[[90, 0], [1, 0]], [[88, 0], [0, 3]]])
    assert metrics.mean_iou(images.sum(axis=0)) == (178 / 179 + 3 / 4) / 2
    assert [metrics.mean_iou(x) for x in images] == [90 / 91 / 2, 1]


def test_no_pixels_score_nan_without_a_warning():
    summary = metrics.summary(np.zeros((3, 3), np.int64))
    np.testing.assert_equal(summary, dict.fromkeys(summary, NAN))


def test_one_class_alone_has_no_correlation_and_no_chance():
    alone = np.diag([9, 0])
    assert metrics.mean_iou(alone) == 1
    assert np.isnan(metrics.cohen_kappa(alone))
    assert np.isnan(metrics.matthews_corrcoef(alone))


def test_counts_beyond_int64_products():
    """Of 1e12 pixels all but 3 are agreed to be background."""
    confusion = np.array([[10**12, 1], [1, 1]])
    assert metrics.matthews_corrcoef(confusion) == pytest.approx(0.5, rel=1e-9)
    assert metrics.cohen_kappa(confusion) == pytest.approx(0.5, rel=1e-9)
    summary = metrics.summary(CONFUSION * 10**12)
    assert summary == pytest.approx(metrics.summary(CONFUSION), rel=1e-12)
    assert metrics.pixel_accuracy(CONFUSION.astype(np.int32) * 10**8) == 0.6


@hypothesis.given(seed=strategies.integers(0, 2**16))
@hypothesis.settings(max_examples=25, derandomize=True, deadline=None, database=None)
def test_scores_equal_those_of_the_pixels(seed):
    rng = np.random.default_rng(seed)
    labels, noise = rng.integers(0, 4, (2, 60))
    predicted = np.where(rng.random(60) < 0.6, labels, noise)
    confusion = np.array(
        metrics.confusion_matrix(predicted, labels, num_classes=4), np.int64
    )
    hot_labels, hot_predicted = np.eye(4)[labels], np.eye(4)[predicted]
    both = (hot_labels * hot_predicted).sum(axis=0)
    either = np.maximum(hot_labels, hot_predicted).sum(axis=0)
    np.testing.assert_allclose(metrics.iou_per_class(confusion), both / either)
    # R_K is the correlation of the one-hot vectors (Gorodkin 2004, eq. 3).
    labels_off, predicted_off = (
        x - x.mean(axis=0) for x in (hot_labels, hot_predicted)
    )
    correlation = (labels_off * predicted_off).sum() / np.sqrt(
        (labels_off**2).sum() * (predicted_off**2).sum()
    )
    np.testing.assert_allclose(metrics.matthews_corrcoef(confusion), correlation)
    order = rng.permutation(4)
    renamed = metrics.summary(confusion[order][:, [*order, 4]])
    assert renamed == pytest.approx(metrics.summary(confusion))

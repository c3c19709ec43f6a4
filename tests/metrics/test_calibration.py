import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segloss.metrics import (
    CalibrationCounts,
    calibration_counts,
    expected_calibration_error,
)

pytestmark = pytest.mark.shared_out

# Four pixels of two classes. Of the two bins (0, 0.5] and (0.5, 1] the first holds the
# third pixel, a hit; the second the others, two hits.
LOGITS = jnp.log(jnp.array([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5], [1e-30, 1.0]]))
LABELS = jnp.array([0, 0, 0, 1])
ECE = 0.5 / 4 + abs(2 - (0.9 + 0.8 + 1.0)) / 4


@pytest.mark.parametrize("jit", [True, False])
def test_counts_and_error_match_those_worked_out_by_hand(jit):
    with jax.disable_jit(not jit):
        counts = calibration_counts(LOGITS, LABELS, bins=2)
    np.testing.assert_array_equal(counts.pixels, [1, 3])
    np.testing.assert_array_equal(counts.hits, [1, 2])
    np.testing.assert_allclose(counts.confidence, [0.5, 2.7], rtol=1e-6)
    assert counts.pixels.dtype == counts.hits.dtype == jnp.int32
    assert expected_calibration_error(counts) == pytest.approx(ECE, rel=1e-6)


def test_error_equals_that_of_torchmetrics():
    """torchmetrics 1.9.0, torch 2.13.0, with these logits and labels as tensors:

    multiclass_calibration_error(
        logits.flatten(0, 2).softmax(1), labels.flatten(), 5, n_bins=15, norm="l1")
    """
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (2, 16, 16, 5)).astype(np.float32)
    labels = np.where(rng.random((2, 16, 16)) < 0.4, logits.argmax(-1), 3)
    counts = calibration_counts(jnp.array(logits), jnp.array(labels))
    assert counts.pixels.size == 15
    assert expected_calibration_error(counts) == pytest.approx(0.18997687, rel=1e-6)


def test_an_edge_belongs_to_the_bin_below():
    """Unlike torchmetrics, which also gives a confidence of 1 a bin of its own."""
    # 4, 2 and 1 equal logits beside -inf: confidences 1/4, 1/2 and 1 without rounding.
    logits = jnp.where(jnp.arange(4)[None] < jnp.array([[4], [2], [1]]), 0.0, -jnp.inf)
    counts = calibration_counts(logits, jnp.zeros(3, jnp.int32), bins=4)
    np.testing.assert_array_equal(counts.pixels, [1, 1, 0, 1])
    alone = calibration_counts(logits, jnp.zeros(3, jnp.int32), bins=1)
    np.testing.assert_array_equal(alone.confidence, [1.75])


@pytest.mark.parametrize("infinite", [jnp.inf, -jnp.inf])
def test_infinite_logits_have_no_probabilities(infinite):
    """But one of -inf beside finite ones is a class that cannot be."""
    logits = jnp.array([[infinite, infinite], [-jnp.inf, 3.0]])
    counts = calibration_counts(logits[1:], jnp.array([1]), bins=2)
    np.testing.assert_array_equal(counts.confidence, [0, 1])
    counts = calibration_counts(logits, jnp.array([0, 1]), bins=2)
    assert np.isnan(expected_calibration_error(counts))


def test_of_equal_logits_the_first_is_predicted():
    logits = jnp.array([[1.0, 5.0, 0.0, 5.0, 5.0], [7.0, 7.0, 7.0, 7.0, 7.0]])
    for labels, hits in (([1, 0], 2), ([3, 0], 1), ([4, 4], 0)):
        counts = calibration_counts(logits, jnp.array(labels), bins=1)
        assert counts.hits[0] == hits


def test_void_is_not_counted_whatever_it_holds():
    valid = jnp.array([True, True, False, False])
    expected = calibration_counts(LOGITS[:2], LABELS[:2])
    for junk, score in ((0, 1e30), (1, jnp.nan), (255, -jnp.inf), (-1, jnp.inf)):
        logits = jnp.where(valid[:, None], LOGITS, score)
        counts = calibration_counts(logits, jnp.where(valid, LABELS, junk), valid)
        jax.tree.map(np.testing.assert_array_equal, counts, expected)
    nan = calibration_counts(jnp.full_like(LOGITS, jnp.nan), LABELS)
    assert np.isnan(expected_calibration_error(nan))
    nothing = calibration_counts(LOGITS, LABELS, jnp.array(False))
    assert np.isnan(expected_calibration_error(nothing))


@pytest.mark.parametrize("stray", [255, 2, -1])
def test_a_valid_label_that_is_no_class_is_an_error(stray):
    counts = calibration_counts(LOGITS, LABELS.at[1].set(stray), bins=2)
    for field in counts:
        np.testing.assert_array_equal(field, [-(2**21)] * 2)
    message = "^expected_calibration_error: .* valid labels that are no class; mask"
    with pytest.raises(ValueError, match=message):
        expected_calibration_error(counts)


def test_certain_and_right_is_no_error_and_certain_and_wrong_is_one():
    logits = 1e4 * jnp.eye(3)
    for labels, error in (([0, 1, 2], 0), ([1, 2, 0], 1)):
        counts = calibration_counts(logits, jnp.array(labels))
        assert expected_calibration_error(counts) == error


def test_counts_of_images_add_up():
    logits = LOGITS.reshape(2, 2, 2)
    labels = LABELS.reshape(2, 2)
    each = jax.vmap(lambda *image: calibration_counts(*image, bins=2))(logits, labels)
    np.testing.assert_array_equal(each.pixels, [[0, 2], [1, 1]])
    total = CalibrationCounts(*(np.asarray(x, np.float64).sum(axis=0) for x in each))
    assert expected_calibration_error(total) == pytest.approx(ECE, rel=1e-6)
    # Never in half precision: 0.5 of 4096 pixels is more than bfloat16 counts.
    half = jnp.zeros((4096, 2), jnp.bfloat16)
    counts = calibration_counts(half, jnp.zeros(4096, jnp.int32), bins=2)
    assert counts.confidence[0] == 2048


def test_confidences_of_many_pixels_are_summed_without_loss():
    """One float32 after another, these come out 4 % too large."""
    probs = jnp.array([0.9, 0.1])
    counts = calibration_counts(
        jnp.broadcast_to(jnp.log(probs), (2**22, 2)), jnp.zeros(2**22, jnp.int32)
    )
    assert counts.pixels.sum() == 2**22
    assert counts.confidence.sum() == pytest.approx(0.9 * 2**22, rel=1e-5)


def test_refuses():
    unchecked = inspect.unwrap(calibration_counts)
    with pytest.raises(ValueError, match="calibration_counts: bins must be >= 1"):
        calibration_counts(LOGITS, LABELS, bins=0)
    with pytest.raises(ValueError, match=r"labels must have shape \(4,\) .* \(3,\)"):
        unchecked(LOGITS, LABELS[:3])
    with pytest.raises(ValueError, match="labels must be integer, got float32"):
        unchecked(LOGITS, LABELS.astype(jnp.float32))


def test_a_single_pixel_is_counted():
    counts = calibration_counts(jnp.array([0.0, 2.0]), jnp.array(1), bins=2)
    np.testing.assert_array_equal(counts.pixels, [0, 1])
    np.testing.assert_array_equal(counts.hits, [0, 1])

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from segloss.metrics import boundary_confusion, boundary_iou

NAN = np.nan
# One image of one dimension. Within 1 of another class or the outside lie, by label,
# pixels 0 and 3 of class 0 and 4 and 7 of class 1, and as predicted 0, 4 and 5, 7.
LABELS = jnp.array([[0, 0, 0, 0, 1, 1, 1, 1]])
PREDICTED = jnp.array([[0, 0, 0, 0, 0, 1, 1, 1]])
COUNTS = np.array([[1, 0, 0, 1], [1, 1, 0, 0], [0, 0, 0, 0], [0, 1, 0, 3]])


@pytest.mark.parametrize("jit", [True, False])
def test_counts_match_those_worked_out_by_hand(jit):
    with jax.disable_jit(not jit):
        counts = boundary_confusion(PREDICTED, LABELS, num_classes=3, boundary_px=1)
    assert counts.dtype == jnp.int32
    np.testing.assert_array_equal(counts, COUNTS)
    np.testing.assert_array_equal(boundary_iou(COUNTS), [1 / 3, 1 / 3, NAN])


def banded(ids, class_id, boundary_px):
    """A class less its erosion, as boundary-iou-api does it with OpenCV."""
    region, square = ids == class_id, np.ones((3, 3))
    return region & ~ndimage.binary_erosion(region, square, boundary_px)


@pytest.mark.parametrize("boundary_px", [1, 3, 9])
def test_score_equals_that_of_eroded_regions(boundary_px):
    rng = np.random.default_rng(boundary_px)
    labels = rng.integers(0, 3, (2, 3, 4)).repeat(5, axis=1).repeat(5, axis=2)
    wrong = rng.integers(0, 3, labels.shape)
    predicted = np.where(rng.random(labels.shape) < 0.05, wrong, labels)
    counts = boundary_confusion(
        predicted, labels, num_classes=3, boundary_px=boundary_px
    )
    both, either = np.zeros((2, 3))
    for image in range(2):
        for c in range(3):
            a, b = (banded(x[image], c, boundary_px) for x in (predicted, labels))
            both[c] += (a & b).sum()
            either[c] += (a | b).sum()
    expected = both / either
    np.testing.assert_allclose(boundary_iou(np.array(counts, np.int64)), expected)


def test_void_is_no_boundary_and_no_outside_whatever_it_holds():
    valid = jnp.ones((1, 6, 7), bool).at[:, 2, 2:4].set(False).at[:, 5].set(False)
    # Only three sides of the frame are left, and of the void none is counted.
    frame = valid.at[:, 1:5, 1:6].set(False).sum()
    for junk in (0, 1, 255, -7):
        ids = jnp.where(valid, 1, junk)
        counts = boundary_confusion(ids, ids, valid, num_classes=2, boundary_px=1)
        np.testing.assert_array_equal(counts, np.diag([0, frame, valid.sum() - frame]))
        # Not only in the labels.
        same = boundary_confusion(
            jnp.ones_like(ids), ids, valid, num_classes=2, boundary_px=1
        )
        np.testing.assert_array_equal(same, counts)


def test_a_prediction_that_is_no_class_is_wrong_and_a_region_of_its_own():
    predicted = PREDICTED.at[:, 5:].set(255)
    counts = boundary_confusion(predicted, LABELS, num_classes=3, boundary_px=1)
    # Predicted bands are 0 and 4 of class 0; 3 and 7 are missed, 4 is of class 1.
    expected = [[1, 0, 0, 1], [1, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 4]]
    np.testing.assert_array_equal(counts, expected)
    np.testing.assert_array_equal(boundary_iou(np.asarray(counts)), [1 / 3, 0, NAN])


@pytest.mark.parametrize("stray", [255, 3, -1])
def test_a_valid_label_that_is_no_class_is_an_error(stray):
    labels = LABELS.at[0, 2].set(stray)
    counts = boundary_confusion(PREDICTED, labels, num_classes=3, boundary_px=1)
    np.testing.assert_array_equal(counts, np.full((4, 4), -(2**21)))
    with pytest.raises(ValueError, match="valid labels that are no class"):
        boundary_iou(np.asarray(counts))


@pytest.mark.parametrize(("hw", "width_px"), [((60, 80), 2), ((6, 8), 1)])
def test_width_is_two_percent_of_the_diagonal(hw, width_px):
    zeros = jnp.zeros((1, *hw), jnp.uint8)
    counts = boundary_confusion(zeros, zeros, num_classes=1)
    inside = (hw[0] - 2 * width_px) * (hw[1] - 2 * width_px)
    np.testing.assert_array_equal(counts, np.diag([hw[0] * hw[1] - inside, inside]))


def test_images_are_apart_and_vmap_counts_each():
    labels, predicted = (
        jnp.concatenate([x, x[:, ::-1], 1 - x]) for x in (LABELS, PREDICTED)
    )
    counts = boundary_confusion(predicted, labels, num_classes=3, boundary_px=1)
    each = jax.vmap(
        lambda p, g: boundary_confusion(p, g, num_classes=3, boundary_px=1)
    )(predicted[:, None], labels[:, None])
    np.testing.assert_array_equal(each[0], COUNTS)
    np.testing.assert_array_equal(each[1], COUNTS)
    np.testing.assert_array_equal(each.sum(axis=0), counts)


def test_refuses():
    unchecked = inspect.unwrap(boundary_confusion)
    with pytest.raises(
        ValueError, match="boundary_confusion: boundary_px must be >= 1"
    ):
        boundary_confusion(LABELS, LABELS, num_classes=3, boundary_px=0)
    with pytest.raises(ValueError, match=r"labels must be a batch .* got shape \(8,\)"):
        unchecked(LABELS[0], LABELS[0], num_classes=3)
    with pytest.raises(ValueError, match="boundary_confusion: valid must be bool"):
        unchecked(LABELS, LABELS, LABELS, num_classes=3)

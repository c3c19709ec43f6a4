import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segloss.errors import SeglossError
from segloss.metrics import confusion_matrix, mean_iou, pixel_accuracy
from segloss.metrics.confusion import _count_by_product

LABELS = jnp.array([[0, 1, 2, 2], [1, 1, 0, 0]])
PREDICTED = jnp.array([[0, 2, 2, 255], [1, 0, 3, -1]])
# The last column counts the predicted 255, 3 and -1, which are no classes.
COUNTS = [[1, 0, 0, 2], [1, 1, 1, 0], [0, 0, 1, 1]]


@pytest.mark.parametrize("jit", [True, False])
def test_rows_are_labels_and_a_prediction_that_is_no_class_is_in_the_last_column(jit):
    with jax.disable_jit(not jit):
        counts = confusion_matrix(PREDICTED, LABELS, num_classes=3)
    assert counts.dtype == jnp.int32
    np.testing.assert_array_equal(counts, COUNTS)


def test_masks_of_0_and_255_are_no_perfect_prediction_of_0_and_1():
    """Of five pixels, the three positives are predicted as 255."""
    mask = jnp.array([[0, 1, 1, 0, 1]])
    counts = np.asarray(confusion_matrix(255 * mask, mask, num_classes=2))
    assert counts.tolist() == [[2, 0, 0], [0, 0, 3]]
    assert mean_iou(counts) == 0.5
    assert pixel_accuracy(counts) == 0.4


@pytest.mark.parametrize("jit", [True, False])
@pytest.mark.parametrize("stray", [255, 3, -1])
def test_a_valid_label_that_is_no_class_makes_all_counts_negative(jit, stray):
    labels = LABELS.at[0, 3].set(stray)
    with jax.disable_jit(not jit):
        counts = confusion_matrix(PREDICTED, labels, num_classes=3)
    np.testing.assert_array_equal(counts, np.full((3, 4), -(2**21)))
    # Only those of its own image, and of a sum with five million pixels of class 0.
    each = jax.vmap(functools.partial(confusion_matrix, num_classes=3))
    counts = np.asarray(each(PREDICTED, labels), np.int64)
    assert counts[1].tolist() == [[0, 0, 0, 2], [1, 1, 0, 0], [0, 0, 0, 0]]
    zeros = jnp.zeros((1, 10**6), jnp.uint8)
    large = np.asarray(confusion_matrix(zeros, zeros, num_classes=3), np.int64)
    total = counts.sum(axis=0) + 5 * large
    message = "valid labels that are no class; mask them with `valid`, or check num_cl"
    with pytest.raises(SeglossError, match=f"^iou_per_class: .* {message}"):
        mean_iou(total)


@pytest.mark.parametrize("void", [None, 255, -1, 3, 0])
def test_the_product_that_a_tpu_takes_counts_the_same(void):
    valid = jnp.ones(LABELS.shape, bool)
    predicted, labels, expected = PREDICTED, LABELS, np.array([*COUNTS, 4 * [0]])
    if void is not None:
        valid = valid.at[0, 1].set(False)
        predicted, labels = (jnp.where(valid, x, void) for x in (predicted, labels))
        expected[1, 2] -= 1
    count = jax.jit(functools.partial(_count_by_product, num_classes=3))
    counts = count(predicted, labels, valid)
    assert counts.dtype == jnp.int32
    np.testing.assert_array_equal(counts, expected)
    each = jax.vmap(count)(predicted, labels, valid)
    np.testing.assert_array_equal(each.sum(axis=0), expected)
    # The last row counts valid labels that are no class.
    counts = count(predicted, labels.at[0, 2].set(255), valid)
    assert counts[-1].tolist() == [0, 0, 1, 0]


def test_void_is_not_counted_whatever_it_holds():
    expected = [[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0]]
    valid = jnp.array([[True, True, True, False], [False, False, False, False]])
    for junk in (0, 2, 255, -7):
        counts = confusion_matrix(
            jnp.where(valid, PREDICTED, junk),
            jnp.where(valid, LABELS, junk),
            valid,
            num_classes=3,
        )
        np.testing.assert_array_equal(counts, expected)
    nothing = confusion_matrix(PREDICTED, LABELS, jnp.array(False), num_classes=3)
    np.testing.assert_array_equal(nothing, np.zeros((3, 4)))


@pytest.mark.parametrize("shape", [(8,), (2, 4), (2, 2, 2)])
def test_any_number_of_dims_and_a_broadcast_valid(shape):
    predicted, labels = PREDICTED.reshape(shape), LABELS.reshape(shape)
    valid = jnp.ones((1,) * len(shape), bool)
    counts = confusion_matrix(predicted, labels, valid, num_classes=3)
    np.testing.assert_array_equal(counts, COUNTS)


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int8, jnp.int16])
def test_small_integers_do_not_overflow(dtype):
    labels = jnp.arange(100, dtype=dtype)
    predicted = labels[::-1]
    counts = confusion_matrix(predicted, labels, num_classes=100)
    np.testing.assert_array_equal(counts[:, :-1], np.fliplr(np.eye(100)))
    # More classes than uint8 can name.
    counts = confusion_matrix(predicted, labels, num_classes=300)
    np.testing.assert_array_equal(counts[:100, :100], np.fliplr(np.eye(100)))
    assert counts.sum() == 100


def test_vmap_counts_each_image():
    per_image = jax.vmap(lambda p, g: confusion_matrix(p, g, num_classes=3))
    counts = per_image(PREDICTED, LABELS)
    np.testing.assert_array_equal(counts[0], [[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]])
    np.testing.assert_array_equal(counts.sum(axis=0), COUNTS)


def test_a_count_passes_what_float32_can_count():
    pixels = jnp.zeros(2**24 + 1, jnp.uint8)
    assert confusion_matrix(pixels, pixels, num_classes=2)[0, 0] == 2**24 + 1


def test_refuses():
    with pytest.raises(ValueError, match="confusion_matrix: num_classes must be >= 1"):
        confusion_matrix(LABELS, LABELS, num_classes=0)
    # As users call it, without the tests' own checking of types.
    unchecked = inspect.unwrap(confusion_matrix)
    with pytest.raises(ValueError, match=r"predicted must have .* got \(4,\)"):
        unchecked(PREDICTED[0], LABELS, num_classes=3)
    with pytest.raises(ValueError, match="confusion_matrix: valid must be bool"):
        unchecked(PREDICTED, LABELS, LABELS, num_classes=3)
    with pytest.raises(ValueError, match=r"valid must be broadcastable .* got \(2,\)"):
        unchecked(PREDICTED, LABELS, jnp.ones(2, bool), num_classes=3)
    with pytest.raises(ValueError, match="predicted must be integer, got float32"):
        unchecked(PREDICTED * 0.5, LABELS, num_classes=3)

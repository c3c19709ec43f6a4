import inspect

import jax.numpy as jnp
import numpy as np
import pytest

from segloss.losses import balancing, softmax_cross_entropy

# Class 0 has 6 of the 20 pixels of the images that hold it, class 1 has 8 of 10, class
# 2 has 6 of 10, class 3 none: frequencies 0.3, 0.8, 0.6.
COUNTS = np.array([[2, 8, 0, 0], [4, 0, 6, 0], [0, 0, 0, 0]], np.int32)


def test_median_frequency_matches_hand_computed_values():
    weights = balancing.median_frequency(COUNTS)
    np.testing.assert_allclose(weights, [2.0, 0.75, 1.0, 0.0])


def test_median_of_an_even_number_of_classes_lies_between_the_middle_two():
    weights = balancing.median_frequency(COUNTS[:1])  # frequencies 0.2 and 0.8
    np.testing.assert_allclose(weights, [2.5, 0.625, 0.0, 0.0])


def test_inverse_frequency_has_the_same_ratios_and_mean_one():
    weights = balancing.inverse_frequency(COUNTS)
    np.testing.assert_allclose(weights, np.array([1.6, 0.6, 0.8, 0.0]))


def test_effective_number_counts_images():
    # Class 0 is in two images: (1 - 0.5) / (1 - 0.25) is 2/3, the others' weight is 1.
    weights = balancing.effective_number(COUNTS, beta=0.5)
    np.testing.assert_allclose(weights, np.array([6, 9, 9, 0]) / 8)
    np.testing.assert_array_equal(
        balancing.effective_number(COUNTS, beta=0), [1, 1, 1, 0]
    )
    # Towards 1 / n_c: 1/2, 1 and 1 over their mean of 5/6.
    np.testing.assert_allclose(
        balancing.effective_number(COUNTS, beta=1 - 1e-9), [0.6, 1.2, 1.2, 0], rtol=1e-6
    )


@pytest.mark.parametrize("weigh", balancing.CLASS_WEIGHTS.values())
def test_images_of_every_chunk_count(weigh):
    # More than the 65,536 that are read at a time; the last ones are unlike the others.
    many = np.concatenate([np.repeat(COUNTS[:1], 65_536, axis=0), COUNTS[1:]])
    few = COUNTS[:2].astype(np.int64)
    few[0] *= 65_536
    if weigh is not balancing.effective_number:
        np.testing.assert_allclose(weigh(many), weigh(few))
    else:
        weights = weigh(many, beta=0.5)
        np.testing.assert_allclose(weights, np.array([1, 1, 2, 0]) * 3 / 4)


def test_counts_past_int32_do_not_wrap():
    many = np.full((3, 2), 2**30, np.int32)
    np.testing.assert_array_equal(balancing.median_frequency(many), [1, 1])


def test_losses_take_the_weights():
    """Weights that even the shares out: 2 log 2 from class 0, 2 log 2 from class 1."""
    labels = jnp.array([[0, 1, 1, 1]])
    weights = balancing.median_frequency(np.array([[1, 3]]))  # 2 and 2/3
    loss = softmax_cross_entropy(jnp.zeros((1, 4, 2)), labels, class_weights=weights)
    np.testing.assert_allclose(loss, 4 * np.log(2) / 4, rtol=1e-6)


@pytest.mark.parametrize("function", balancing.CLASS_WEIGHTS.values())
@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (COUNTS[0], r"must be \[images, classes\], got shape \(4,\)"),
        (COUNTS / 2, "must be integers, got float64"),
        (-COUNTS, "must be >= 0, got -8"),
        (COUNTS[2:], "must hold a labelled pixel, got none in 1 images"),
        (COUNTS[:0], "must hold a labelled pixel, got none in 0 images"),
    ],
)
def test_counts_that_are_none_are_refused(function, counts, message):
    name = function.__name__
    with pytest.raises(ValueError, match=f"{name}: pixel_counts {message}"):
        inspect.unwrap(function)(counts)


@pytest.mark.parametrize("beta", [-0.1, 1, float("nan")])
def test_beta_out_of_range_is_refused(beta):
    with pytest.raises(ValueError, match=r"beta must be in \[0, 1\), got"):
        balancing.effective_number(COUNTS, beta=beta)

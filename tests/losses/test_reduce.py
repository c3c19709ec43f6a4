import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from segloss.losses import reduce, soft_dice, softmax_cross_entropy

LOGITS = jnp.zeros((2, 4, 5, 3))
LABELS = jnp.zeros((2, 4, 5), jnp.int32)


@pytest.mark.parametrize(
    ("normalize_by", "mean"), [("pixels", 4.0), ("weights", 2.4), ("samples", 6.0)]
)
def test_mean_over_pixels_divides_by_what_it_says(normalize_by, mean):
    loss = jnp.array([[4.0, 2.0], [6.0, jnp.nan], [jnp.inf, jnp.nan]])
    valid = jnp.array([[True, True], [True, False], [False, False]])
    weights = jnp.array([[2.0, 1.0], [2.0, jnp.nan], [9.0, 9.0]])
    value = reduce.mean_over_pixels(
        loss, valid, normalize_by=normalize_by, pixel_weights=weights
    )
    assert value == pytest.approx(mean)


def test_safe_divide_by_nothing_is_zero_without_gradient():
    divisors = jnp.array([0.0, 1e-30, 2.0, jnp.nan])
    quotient, slope = jax.vmap(jax.value_and_grad(reduce.safe_divide, argnums=1))(
        jnp.ones(4), divisors
    )
    np.testing.assert_array_equal(quotient, [0.0, 0.0, 0.5, jnp.nan])
    np.testing.assert_array_equal(slope, [0.0, 0.0, -0.25, jnp.nan])


def test_log_probs_equals_jax_where_valid_and_is_uniform_where_not():
    logits = jax.random.normal(jax.random.key(0), (2, 5, 3)) * 50
    valid = jnp.array([[True], [False]])
    log_probs = reduce.log_probs(logits, jnp.zeros((2, 5), jnp.int32), valid)
    np.testing.assert_allclose(log_probs[0], jax.nn.log_softmax(logits[0]), rtol=1e-6)
    np.testing.assert_allclose(log_probs[1], -np.log(3), rtol=1e-6)


def test_at_label_picks_and_its_derivatives_are_those_of_a_gather():
    values = jax.random.normal(jax.random.key(0), (2, 3))
    labels = jnp.array([2, 0], jnp.uint8)
    np.testing.assert_array_equal(
        reduce.at_label(values, labels), jnp.array([values[0, 2], values[1, 0]])
    )

    def squares(x):
        return reduce.at_label(jnp.asarray(x), labels) ** 2

    check_grads(squares, (values,), order=2, rtol=1e-2)


# As users call them, without the tests' own checking of types.
@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ((LOGITS, LABELS[0]), r"labels must have shape \(2, 4, 5\) for .* \(4, 5\)"),
        ((LOGITS, LABELS[..., None]), r"labels must have shape .* got \(2, 4, 5, 1\)"),
        ((LOGITS, LABELS * 1.0), "labels must be integer, got float32"),
        ((LOGITS, LABELS, LABELS), "valid must be bool, got int32"),
        (
            (LOGITS, LABELS, LABELS[:, :, :4] == 0),
            r"valid must be broadcastable to labels \(2, 4, 5\), got \(2, 4, 4\)",
        ),
        ((LOGITS, LABELS, LABELS[None] == 0), "valid must be broadcastable"),
    ],
)
@pytest.mark.parametrize("loss", [softmax_cross_entropy, soft_dice])
def test_losses_refuse_arrays_that_do_not_fit(loss, arrays, message):
    with pytest.raises(ValueError, match=f"^{loss.__name__}: {message}"):
        inspect.unwrap(loss)(*arrays)


def test_multi_label_refuses_class_ids():
    with pytest.raises(ValueError, match="labels must be float or bool, got int32"):
        inspect.unwrap(soft_dice)(LOGITS, LOGITS.astype(jnp.int32), multi_label=True)

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from segloss.losses import boundary_loss

# A row of five pixels with the boundary after the third; class 2 is absent.
LABELS = jnp.array([[0, 0, 0, 1, 1]])
TO_FIRST = jnp.array([-2.5, -1.5, -0.5, 0.5, 1.5])
DISTANCES = jnp.stack([TO_FIRST, -TO_FIRST, 0 * TO_FIRST], axis=-1)[None]
# Everywhere p = (1/2, 1/4, 1/4).
LOGITS = jnp.log(jnp.array([2.0, 1.0, 1.0]).reshape(1, 1, 3)) + jnp.zeros((1, 5, 3))
# Of the first pixel, a quarter is 5 further out and a quarter, of no region, 2.5. Of
# the last, a half is 3 further out and a quarter 1.5.
COSTS = np.array([7.5, 4.5, 1.5, 2.5, 7.5]) / 4


def test_boundary_loss_matches_hand_computed_value():
    loss = functools.partial(boundary_loss, LOGITS, distances=DISTANCES)
    np.testing.assert_allclose(loss(LABELS), COSTS.mean(), rtol=1e-6)
    valid = jnp.array([[False, True, True, True, False]])
    np.testing.assert_allclose(loss(LABELS, valid), COSTS[1:4].mean(), rtol=1e-6)


@pytest.mark.parametrize("shape", [(1, 5, 1), (5, 1, 1, 1)])
def test_boundary_loss_takes_images_and_volumes(shape):
    value = boundary_loss(
        LOGITS.reshape(*shape, 3),
        LABELS.reshape(shape),
        distances=DISTANCES.reshape(*shape, 3),
    )
    np.testing.assert_allclose(value, COSTS.mean(), rtol=1e-6)


def random_batch():
    """Two images whose distances have the sign that they must have."""
    a, b, c = jax.random.split(jax.random.key(0), 3)
    labels = jax.random.randint(a, (2, 4, 4), 0, 3)
    sign = 1 - 2 * jax.nn.one_hot(labels, 3)
    distances = sign * jax.random.randint(b, (2, 4, 4, 3), 1, 40) / 2
    return 3 * jax.random.normal(c, (2, 4, 4, 3)), labels, distances


def test_it_is_the_papers_loss_above_its_optimum_with_the_same_gradient():
    logits, labels, distances = random_batch()

    def equation_6(logits):
        return (distances * jax.nn.softmax(logits)).sum(axis=-1).mean()

    equation_6 = jax.jit(jax.value_and_grad(equation_6))
    value, grad = equation_6(logits)
    best, _ = equation_6(1e4 * jax.nn.one_hot(labels, 3))
    assert best < 0
    ours = functools.partial(boundary_loss, distances=distances)
    our_value, our_grad = jax.value_and_grad(ours)(logits, labels)
    np.testing.assert_allclose(our_value, value - best, rtol=1e-5)
    np.testing.assert_allclose(our_grad, grad, atol=1e-5)


def test_first_and_second_derivatives():
    logits, labels, distances = random_batch()
    loss = functools.partial(boundary_loss, labels=labels, distances=distances / 20)
    check_grads(loss, (logits,), order=2, rtol=2e-2, eps=1e-2)


def test_an_image_without_a_boundary_costs_nothing():
    loss = functools.partial(boundary_loss, distances=jnp.zeros_like(LOGITS))
    value, grad = jax.value_and_grad(loss)(LOGITS, jnp.zeros_like(LABELS))
    assert value == 0
    np.testing.assert_array_equal(grad, 0.0)


@pytest.mark.parametrize("margin", [8.0, 16.0, 40.0])
def test_boundary_loss_keeps_its_digits_near_perfection(margin):
    labels = jnp.array([[0, 1]])
    right = jax.nn.one_hot(labels, 2)
    # 500 pixels on the right side, and as many too far out on the wrong one.
    value = boundary_loss(margin * right, labels, distances=500 - 1000 * right)
    np.testing.assert_allclose(value, 1000 / (1 + np.exp(margin)), rtol=1e-5)


@pytest.mark.parametrize("junk", [jnp.nan, jnp.inf, -3.0])
def test_the_distances_of_a_void_pixel_change_nothing(junk):
    valid = jnp.array([[True, True, False, True, True]])
    other = jnp.where(valid[..., None], DISTANCES, junk)
    step = jax.value_and_grad(boundary_loss)
    jax.tree.map(
        np.testing.assert_array_equal,
        step(LOGITS, LABELS, valid, distances=other),
        step(LOGITS, LABELS, valid, distances=DISTANCES),
    )


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_distances_in_half_precision_give_the_same(dtype):
    # These are whole and half pixels, which either type holds.
    logits, labels, distances = random_batch()
    np.testing.assert_array_equal(
        boundary_loss(logits, labels, distances=distances.astype(dtype)),
        boundary_loss(logits, labels, distances=distances),
    )


@pytest.mark.parametrize(
    ("distances", "message"),
    [
        (DISTANCES[..., :2], r"must have the shape of logits \(1, 5, 3\), got .* 2\)"),
        (DISTANCES.astype(jnp.int32), "must be float, got int32"),
    ],
)
def test_boundary_loss_refuses(distances, message):
    with pytest.raises(ValueError, match=f"^boundary_loss: distances {message}"):
        inspect.unwrap(boundary_loss)(LOGITS, LABELS, distances=distances)

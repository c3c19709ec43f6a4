import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads

from segloss.losses import softmax


def test_log_probs_equals_jax_where_valid_and_is_uniform_where_not():
    logits = jax.random.normal(jax.random.key(0), (2, 5, 3)) * 50
    valid = jnp.array([[True], [False]])
    valid = jnp.broadcast_to(valid, (2, 5))
    parts = softmax.softmax(logits, jnp.zeros((2, 5), jnp.int32), valid)
    log_probs = parts.log_probs()
    np.testing.assert_allclose(log_probs[0], jax.nn.log_softmax(logits[0]), rtol=1e-6)
    np.testing.assert_allclose(log_probs[1], -np.log(3), rtol=1e-6)


def test_at_label_picks_and_its_derivatives_are_those_of_a_gather():
    values = jax.random.normal(jax.random.key(0), (2, 3))
    labels = jnp.array([2, 0], jnp.uint8)
    np.testing.assert_array_equal(
        softmax.at_label(values, labels), jnp.array([values[0, 2], values[1, 0]])
    )

    def squares(x):
        return softmax.at_label(jnp.asarray(x), labels) ** 2

    check_grads(squares, (values,), order=2, rtol=1e-2)

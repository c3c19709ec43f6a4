import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segloss.losses import reduce


@pytest.mark.parametrize(
    ("normalize_by", "mean"), [("pixels", 4.0), ("weights", 2.4), ("samples", 6.0)]
)
def test_mean_over_pixels_divides_by_what_it_says(normalize_by, mean):
    loss = jnp.array([[4.0, 2.0], [6.0, jnp.nan], [jnp.inf, jnp.nan]])
    valid = jnp.array([[True, True], [True, False], [False, False]])
    weights = jnp.array([[2.0, 1.0], [2.0, jnp.nan], [9.0, 9.0]])
    value = reduce.mean_over_pixels(
        loss, valid, normalize_by=normalize_by, weights=weights
    )
    assert value == pytest.approx(mean)


def test_safe_divide_by_nothing_is_zero_without_gradient():
    divisors = jnp.array([0.0, 1e-30, 2.0, jnp.nan])
    quotient, slope = jax.vmap(jax.value_and_grad(reduce.safe_divide, argnums=1))(
        jnp.ones(4), divisors
    )
    np.testing.assert_array_equal(quotient, [0.0, 0.0, 0.5, jnp.nan])
    np.testing.assert_array_equal(slope, [0.0, 0.0, -0.25, jnp.nan])

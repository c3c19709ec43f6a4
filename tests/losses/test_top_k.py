import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segloss.losses.top_k import hardest_pixels

LOSS = np.random.default_rng(0).exponential(size=(8, 4, 7)).astype(np.float32)
VALID = np.random.default_rng(1).random(LOSS.shape) < 0.8


def hardest(loss, valid, fraction):
    """By a sort, where no two are equal."""
    order = np.sort(loss[valid])[::-1]
    k = max(round(fraction * order.size), 1)
    return (valid & (loss >= order[k - 1])).astype(np.float32)


@pytest.mark.parametrize("scale", [1e-38, 1e-3, 1.0, 1e38])
@pytest.mark.parametrize("fraction", [1e-3, 0.25, 0.5, 1.0])
def test_hardest_pixels_equal_those_of_a_sort(fraction, scale):
    loss = LOSS / LOSS.max() * np.float32(scale)
    weights = hardest_pixels(loss, VALID, fraction=fraction, axis_name=None)
    weights = np.where(VALID, weights, 0)
    np.testing.assert_array_equal(weights, hardest(loss, VALID, fraction))


def test_pixels_that_tie_for_the_last_places_share_them():
    loss = jnp.array([[0.0, 2.0, 1.0, 1.0, 1.0, 3.0]])
    weights = hardest_pixels(loss, loss >= 0, fraction=4 / 6, axis_name=None)
    np.testing.assert_allclose(weights, [[0, 1, 2 / 3, 2 / 3, 2 / 3, 1]], rtol=1e-6)


def test_nan_is_the_hardest():
    loss = jnp.array([[0.0, jnp.nan, jnp.inf, 1.0]])
    weights = hardest_pixels(loss, loss == loss, fraction=0.5, axis_name=None)
    np.testing.assert_array_equal(weights, [[0, 0, 1, 1]])
    weights = hardest_pixels(
        loss, True | VALID[:1, 0, :4], fraction=0.5, axis_name=None
    )
    np.testing.assert_array_equal(weights, [[0, 1, 1, 0]])


@pytest.mark.parametrize("axis_name", [None, "batch"])
@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map_equals_one_device(check_vma, axis_name):
    find = functools.partial(hardest_pixels, fraction=0.3, axis_name=axis_name)
    batch = jax.P("batch")
    shards = jax.shard_map(
        find,
        mesh=jax.sharding.Mesh(jax.devices(), "batch"),
        in_specs=batch,
        out_specs=batch,
        check_vma=check_vma,
    )
    expected = hardest(LOSS, VALID, 0.3)
    if axis_name is None:
        split = LOSS.reshape(len(jax.devices()), -1, 4, 7)
        valid = VALID.reshape(split.shape)
        rows = [hardest(*x, 0.3) for x in zip(split, valid, strict=True)]
        expected = np.concatenate(rows)
    many = np.where(VALID, jax.jit(shards)(LOSS, VALID), 0)
    np.testing.assert_array_equal(many, expected)


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_batch_and_height_may_be_sharded(kind):
    kinds = 2 * (jax.sharding.AxisType[kind],)
    mesh = jax.make_mesh((2, 4), ("batch", "height"), axis_types=kinds)
    sharding = jax.NamedSharding(mesh, jax.P("batch", "height"))
    loss, valid = (jax.device_put(x, sharding) for x in (LOSS, VALID))
    find = jax.jit(functools.partial(hardest_pixels, fraction=0.3, axis_name=None))
    weights = np.where(VALID, find(loss, valid), 0)
    np.testing.assert_array_equal(weights, hardest(LOSS, VALID, 0.3))

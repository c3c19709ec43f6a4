"""Every loss under every way in which JAX spreads a batch over devices.

`test_loss_transforms.py` has pmap, where the loss is told the name of the axis.
"""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from loss_settings import (
    LABELS,
    LOGITS,
    OF_EACH_KIND,
    SETTINGS,
    VALID,
    assert_close,
    make_loss,
    value_and_grad,
)

pytestmark = pytest.mark.shared_out

# Axes of the batch and of the height; an array of four rows can be cut in two.
BATCH, HEIGHT = "batch", "height"


def square(x):
    """The contract's batch, its height and width exchanged."""
    return np.swapaxes(x, 1, 2)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("setting", SETTINGS)
def test_batch_and_height_may_be_sharded_under_jit(setting, axis_type):
    mesh = jax.make_mesh(
        (2, 2), (BATCH, HEIGHT), (axis_type,) * 2, devices=jax.devices()[:4]
    )
    sharding = jax.NamedSharding(mesh, jax.P(BATCH, HEIGHT))
    arrays = [square(x) for x in (LOGITS, LABELS, VALID)]
    loss = jax.jit(jax.value_and_grad(make_loss(setting)))
    with jax.set_mesh(mesh):
        sharded = loss(*(jax.device_put(x, sharding) for x in arrays))
    assert_close(sharded, value_and_grad(setting)(*arrays))


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("setting", OF_EACH_KIND)
def test_value_and_gradient_under_shard_map(setting, check_vma):
    """Of a loss that is told the axis, differentiated from outside."""
    shards = jax.P(BATCH)
    loss = jax.shard_map(
        make_loss(setting, axis_name=BATCH),
        mesh=jax.make_mesh((2,), (BATCH,), (AxisType.Auto,), devices=jax.devices()[:2]),
        in_specs=(shards, shards, shards),
        out_specs=jax.P(),
        check_vma=check_vma,
    )
    sharded = jax.jit(jax.value_and_grad(loss))(LOGITS, LABELS, VALID)
    assert_close(sharded, value_and_grad(setting)(LOGITS, LABELS, VALID))

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from segloss.models.norms import BatchNorm, apply_norm

pytestmark = pytest.mark.shared_out

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


X = jnp.array(3 * normal(8, 3, 5, 4) + np.arange(4, dtype=np.float32))
# A different weight for each output, so that no gradient vanishes by symmetry.
WEIGHTS = jnp.array(normal(*X.shape))
VARIABLES = {
    "params": {"scale": jnp.array([1.0, 2.0, 0.5, 3.0]), "bias": jnp.arange(4.0)},
    "batch_stats": {"mean": jnp.full(4, 0.5), "var": jnp.array([1.0, 2.0, 3.0, 4.0])},
}


def train(params, x, sample_valid=None, weights=WEIGHTS, axis_name=None):
    """Loss over valid samples, the statistics after, and the normalised values."""
    norm = BatchNorm(axis_name=axis_name)
    variables = {**VARIABLES, "params": params}
    y, updated = norm.apply(
        variables, x, train=True, sample_valid=sample_valid, mutable=["batch_stats"]
    )
    where = None if sample_valid is None else sample_valid.reshape(-1, 1, 1, 1)
    loss = jnp.sum(y**2 * weights, where=where)
    if axis_name is not None:
        loss = jax.lax.psum(loss, axis_name)
    return loss, (updated["batch_stats"], y)


value_and_grad = jax.jit(jax.value_and_grad(train, argnums=(0, 1), has_aux=True))


def replica(tree, device):
    return jax.tree.map(lambda a: np.asarray(a)[device], tree)


def assert_trees_close(actual, expected, **tolerance):
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, **tolerance), actual, expected
    )


def test_batch_norm_equals_flax_when_all_samples_are_valid():
    def flax_train(params, x):
        norm = nn.BatchNorm(use_running_average=False, momentum=0.9)
        y, updated = norm.apply(
            {**VARIABLES, "params": params}, x, mutable=["batch_stats"]
        )
        return jnp.sum(y**2 * WEIGHTS), (updated["batch_stats"], y)

    expected = jax.value_and_grad(flax_train, argnums=(0, 1), has_aux=True)(
        VARIABLES["params"], X
    )
    actual = value_and_grad(VARIABLES["params"], X)
    assert_trees_close(actual, expected, rtol=2e-5, atol=2e-4)

    y = BatchNorm().apply(VARIABLES, X, train=False)
    flax_y = nn.BatchNorm(use_running_average=True).apply(VARIABLES, X)
    np.testing.assert_allclose(y, flax_y, rtol=1e-6, atol=1e-6)


def test_batch_norm_initialises_as_flax_does():
    actual = BatchNorm(axis_name="unbound").init(KEY, X, train=True)
    expected = nn.BatchNorm(use_running_average=False).init(KEY, X)
    assert_trees_close(actual, expected)


@pytest.mark.parametrize("devices", [2, 4])
def test_batch_norm_of_many_devices_equals_one(devices):
    # With 4 devices the second holds no valid sample, and the others 2, 1 and 1.
    valid = jnp.array([1, 1, 0, 0, 1, 0, 0, 1], bool)

    def on_device(x, valid, weights):
        (loss, (stats, y)), grads = jax.value_and_grad(
            train, argnums=(0, 1), has_aux=True
        )(VARIABLES["params"], x, valid, weights, "devices")
        return loss, stats, y, jax.lax.pmean(grads[0], "devices"), grads[1]

    split = [a.reshape(devices, -1, *a.shape[1:]) for a in (X, valid, WEIGHTS)]
    mapped = jax.pmap(on_device, axis_name="devices", devices=jax.devices()[:devices])
    loss, stats, y, params_grad, x_grad = mapped(*split)
    (loss_1, (stats_1, y_1)), grads_1 = value_and_grad(VARIABLES["params"], X, valid)

    tolerance = dict(rtol=2e-5, atol=2e-4)
    for device in range(devices):
        actual = replica((loss, stats, params_grad), device)
        assert_trees_close(actual, (loss_1, stats_1, grads_1[0]), **tolerance)
    np.testing.assert_allclose(np.reshape(y, X.shape), y_1, **tolerance)
    # Each device's loss is the global one, so its gradient by x is `devices` times.
    np.testing.assert_allclose(
        np.reshape(x_grad, X.shape) / devices, grads_1[1], **tolerance
    )


def test_batch_norm_with_padding_equals_the_samples_alone():
    valid = jnp.arange(8) < 5
    padded = jnp.where(valid.reshape(-1, 1, 1, 1), X, 1e6)
    (loss, (stats, y)), grads = value_and_grad(VARIABLES["params"], padded, valid)
    (loss_5, (stats_5, y_5)), grads_5 = jax.value_and_grad(
        train, argnums=(0, 1), has_aux=True
    )(VARIABLES["params"], X[:5], None, WEIGHTS[:5])
    assert_trees_close(
        (loss, stats, y[:5], grads[0], grads[1][:5]),
        (loss_5, stats_5, y_5, *grads_5),
        rtol=2e-5,
        atol=2e-4,
    )
    np.testing.assert_array_equal(grads[1][5:], 0)


def test_batch_norm_without_a_valid_sample_uses_and_keeps_running_statistics():
    (loss, (stats, y)), grads = value_and_grad(
        VARIABLES["params"], X, jnp.zeros(8, bool)
    )
    assert loss == 0
    assert_trees_close(stats, VARIABLES["batch_stats"], rtol=0)
    expected = BatchNorm().apply(VARIABLES, X, train=False)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    jax.tree.map(lambda g: np.testing.assert_array_equal(g, 0), grads)


def test_batch_norm_variance_survives_a_large_mean():
    x = jnp.array(1e4 + normal(64, 8, 8, 4))
    norm = BatchNorm(momentum=0.0)
    _, updated = norm.apply(VARIABLES, x, train=True, mutable=["batch_stats"])
    expected = np.var(np.asarray(x, np.float64), axis=(0, 1, 2))
    np.testing.assert_allclose(updated["batch_stats"]["var"], expected, rtol=1e-4)


def test_batch_norm_of_bfloat16_keeps_float32_statistics():
    x = X.astype(jnp.bfloat16)
    norm = BatchNorm(dtype="bfloat16")
    y, updated = norm.apply(VARIABLES, x, train=True, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16
    stats, _ = train(VARIABLES["params"], x.astype(jnp.float32))[1]
    assert_trees_close(updated["batch_stats"], stats, rtol=1e-6)


def test_frozen_norm_uses_and_keeps_running_statistics_in_training():
    class Frozen(nn.Module):
        norm: str

        @nn.compact
        def __call__(self, x, train):
            how = dict(sample_valid=None, dtype="float32", axis_name=None)
            return apply_norm(x, norm=self.norm, name="norm", train=train, **how)

    x = jnp.asarray(RNG.normal(3, 2, (2, 4, 4, 6)), jnp.float32)
    variables = Frozen("frozen").init(KEY, x, train=False)
    assert jax.tree.structure(variables) == jax.tree.structure(
        Frozen("batch").init(KEY, x, train=False)
    )
    trained, updated = Frozen("frozen").apply(
        variables, x, train=True, mutable=["batch_stats"]
    )
    np.testing.assert_array_equal(
        trained, Frozen("batch").apply(variables, x, train=False)
    )
    assert_trees_close(updated["batch_stats"], variables["batch_stats"], rtol=0)


def test_batch_of_one_value_per_channel_is_refused():
    norm = BatchNorm(name="pool_norm")
    apply = functools.partial(norm.apply, VARIABLES, mutable=["batch_stats"])
    one = X[:1, :1, :1]
    message = (
        "BatchNorm .*a batch of one value per channel, 1x1x1x4, has no variance; use "
        "norm='group', norm='frozen' or larger batches"
    )
    with pytest.raises(ValueError, match=message):
        apply(one, train=True)
    apply(one, train=False)
    norm.init(KEY, one, train=True)
    for x in (X[:2, :1, :1], X[:1, :1, :2]):
        apply(x, train=True)


@pytest.mark.parametrize("num_devices", [1, 2])
def test_one_value_per_channel_on_each_device_is_refused_on_one(num_devices):
    norm = BatchNorm(axis_name="devices")

    def apply(x):
        return norm.apply(VARIABLES, x, train=True, mutable=["batch_stats"])[0]

    mapped = jax.pmap(apply, axis_name="devices", devices=jax.devices()[:num_devices])
    ones = X[:num_devices, None, :1, :1]
    if num_devices == 1:
        with pytest.raises(ValueError, match="a batch of one value per channel"):
            mapped(ones)
    else:
        # As of two samples on one device: each is one deviation from the mean.
        expected = BatchNorm().apply(
            VARIABLES, ones[:, 0], train=True, mutable=["batch_stats"]
        )[0]
        np.testing.assert_allclose(mapped(ones)[:, 0], expected, rtol=1e-5, atol=1e-5)

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from segloss.models.layers import (
    ConvNormReLU,
    Dropout,
    UpConv,
    space_to_depth,
)

pytestmark = pytest.mark.shared_out

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


X = jnp.array(normal(8, 3, 5, 4))


@pytest.mark.parametrize(
    ("norm", "names"),
    [
        ("batch", {"conv": {"kernel"}, "norm": {"scale", "bias"}}),
        ("group", {"conv": {"kernel"}, "norm": {"scale", "bias"}}),
        ("none", {"conv": {"kernel", "bias"}}),
    ],
)
def test_convolution_has_a_bias_only_where_no_norm_follows(norm, names):
    layer = ConvNormReLU(features=6, norm=norm)
    variables = layer.init(KEY, X, train=False)
    assert {k: set(v) for k, v in variables["params"].items()} == names
    assert layer.apply(variables, X, train=False).min() == 0


def test_group_norm_normalises_groups_of_each_image():
    # 96 features make 32 groups of 3 channels.
    layer = ConvNormReLU(features=96, norm="group")
    variables = layer.init(KEY, X, train=False)
    variables["params"]["norm"]["bias"] += 10  # keeps the ReLU from cutting anything
    y = layer.apply(variables, X, train=False) - 10
    groups = np.asarray(y).reshape(8, 15, 32, 3)
    np.testing.assert_allclose(groups.mean(axis=(1, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(groups.std(axis=(1, 3)), 1, atol=1e-3)


def test_weights_keep_the_scale_of_rectified_input():
    x = jnp.array(np.maximum(normal(4, 8, 8, 128), 0))
    y, _ = jax.jit(UpConv(features=128).init_with_output)(KEY, x)
    assert abs(float(jnp.std(y)) - 1) < 0.05
    conv = ConvNormReLU(features=128)
    variables = jax.jit(functools.partial(conv.init, train=False))(KEY, x)
    stddev = np.std(variables["params"]["conv"]["kernel"])
    assert abs(stddev - np.sqrt(2 / (9 * 128))) < 0.001


def test_up_conv_equals_transposed_convolution():
    layer = UpConv(features=5)
    variables = layer.init(KEY, X)
    variables["params"]["bias"] += jnp.arange(5.0)
    flipped = {
        **variables["params"],
        "kernel": variables["params"]["kernel"][::-1, ::-1],
    }
    flax_layer = nn.ConvTranspose(5, (2, 2), strides=(2, 2))
    expected = flax_layer.apply({"params": flipped}, X)
    np.testing.assert_allclose(
        layer.apply(variables, X), expected, rtol=1e-5, atol=1e-5
    )


def test_space_to_depth_lists_each_square_and_fills_up_with_zeros():
    image = jnp.arange(1.0, 7.0).reshape(1, 2, 3, 1)  # rows (1, 2, 3) and (4, 5, 6)
    expected = [[[[1, 2, 4, 5], [3, 0, 6, 0]]]]
    np.testing.assert_array_equal(space_to_depth(image, stride=2), expected)
    np.testing.assert_array_equal(space_to_depth(image, stride=1), image)


def drop(x, axis_name=None):
    layer = Dropout(rate=0.25, axis_name=axis_name)
    return layer.apply({}, x, train=True, rngs={"dropout": KEY})


def test_dropout_keeps_the_mean_and_is_off_in_prediction():
    x = jnp.ones((4, 50, 40, 3))
    dropped = np.asarray(drop(x))
    assert set(np.unique(dropped).tolist()) == {0.0, np.float32(4 / 3)}
    assert abs(dropped.mean() - 1) < 0.01
    assert not np.array_equal(dropped[0], dropped[1])
    np.testing.assert_array_equal(Dropout(rate=0.25).apply({}, x, train=False), x)


def test_dropout_of_two_devices_equals_one():
    x = jnp.asarray(RNG.normal(size=(4, 6, 5, 3)), jnp.float32)
    many = jax.pmap(lambda a: drop(a, "d"), axis_name="d")(x.reshape(2, 2, 6, 5, 3))
    np.testing.assert_array_equal(many.reshape(x.shape), drop(x))

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segloss.models.depthwise import (
    DepthwiseConv,
    depthwise_conv,
    grouped,
    reduced_kernel_gradient,
    shifted_input_gradient,
)

pytestmark = pytest.mark.shared_out

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def step(conv, x, kernel, cotangent):
    """Output and both gradients."""
    y, pull_back = jax.vjp(conv, x, kernel)
    return y, *pull_back(cotangent)


@pytest.mark.parametrize(
    ("hw", "size", "strides", "rate", "padding"),
    [
        ((17, 6), (3, 3), 2, 1, 1),  # 9 rows in groups of 8
        ((6, 7), (5, 5), 2, 1, 2),
        ((3, 4), (3, 3), 1, 2, 2),  # taps lie beyond the image
        ((6, 5), (3, 3), 2, 2, 2),  # only one in four grids meets a tap
        ((7, 6), (2, 3), 2, 1, 0),  # strided blocks pad by themselves
    ],
)
def test_value_and_gradients_equal_those_of_a_grouped_convolution(
    hw, size, strides, rate, padding
):
    x, kernel = normal(2, *hw, 3), normal(*size, 1, 3)
    how = dict(strides=strides, rate=rate)
    given = {"padding": padding} if padding == 0 else {}
    ours = functools.partial(depthwise_conv, **how, **given)
    how["pads"] = (padding, padding)
    plain = functools.partial(grouped, **how)
    cotangent = normal(*jax.eval_shape(plain, x, kernel).shape)

    @jax.jit
    def compute(*arrays):
        # What other platforms than this one take.
        gradients = (
            shifted_input_gradient(*arrays, **how),
            reduced_kernel_gradient(*arrays, **how),
        )
        return step(plain, *arrays), step(ours, *arrays), gradients

    expected, *found = compute(x, kernel, cotangent)
    for arrays in found:
        for got, wanted in zip(arrays, expected[-len(arrays) :], strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_hand_computed_value():
    # Row (1, 2, 3) with filter (1, 10, 100), as a correlation: the 2 sees 1, 2 and 3.
    x = jnp.array([1.0, 2, 3]).reshape(1, 1, 3, 1)
    kernel = jnp.array([1.0, 10, 100]).reshape(1, 3, 1, 1)
    np.testing.assert_array_equal(depthwise_conv(x, kernel).ravel(), [210, 321, 32])
    every_other = depthwise_conv(x, kernel, strides=2)
    np.testing.assert_array_equal(every_other.ravel(), [210, 32])
    inner = depthwise_conv(x, kernel, padding=0)
    np.testing.assert_array_equal(inner.ravel(), [321])


def test_kernel_gradient_is_summed_in_float32():
    # In bfloat16, 256 + 1 is 256.
    ones = jnp.ones((2, 16, 16, 1), jnp.bfloat16)
    kernel = jnp.ones((1, 1, 1, 1))
    cotangent = np.ones((2, 16, 16, 1), jnp.bfloat16)
    cotangent[0, 0, 0] = 2
    y, dx, dkernel = jax.jit(functools.partial(step, depthwise_conv))(
        ones, kernel, cotangent
    )
    assert y.dtype == dx.dtype == jnp.bfloat16
    assert (dkernel.dtype, dkernel.item()) == (jnp.float32, 513)


def test_module_on_two_devices_with_rematerialisation_equals_the_function():
    x, kernel = normal(2, 1, 4, 4, 3), normal(3, 3, 1, 3)
    layer = DepthwiseConv(size=3, strides=2)
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x[0])
    assert shapes["params"]["kernel"].shape == kernel.shape

    def loss(kernel, x):
        variables = {"params": {"kernel": kernel}}
        return (jax.checkpoint(layer.apply)(variables, x) ** 2).sum()

    found = jax.pmap(jax.grad(loss), in_axes=(None, 0))(kernel, x)
    expected = jax.jit(
        jax.grad(lambda kernel: (depthwise_conv(x[1], kernel, strides=2) ** 2).sum())
    )(kernel)
    np.testing.assert_allclose(found[1], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("platform", "strides", "convolutions", "loops"),
    [("cpu", 2, 0, 3), ("tpu", 2, 3, 0), ("tpu", 1, 0, 0), ("cuda", 2, 2, 0)],
)
def test_each_platform_has_only_its_own_way(platform, strides, convolutions, loops):
    x, kernel = normal(1, 4, 4, 2), normal(3, 3, 1, 2)
    conv = functools.partial(depthwise_conv, strides=strides)
    y = jax.eval_shape(conv, x, kernel)
    traced = jax.jit(functools.partial(step, conv)).trace(x, kernel, y)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert text.count("stablehlo.convolution") == convolutions
    assert text.count("stablehlo.while") == loops


def test_wrong_arguments_are_errors():
    x, kernel = np.ones((1, 3, 3, 2)), np.ones((3, 3, 1, 2))
    with pytest.raises(ValueError, match=r"kh, kw, 1, 2\] .*, got \(3, 3, 1, 1\)"):
        depthwise_conv(x, kernel[..., :1])
    with pytest.raises(ValueError, match="strides must be >= 1, got 0"):
        depthwise_conv(x, kernel, strides=0)
    with pytest.raises(ValueError, match="padding must be >= 0, got -1"):
        depthwise_conv(x, kernel, padding=-1)


def test_forward_mode_is_an_error():
    x, kernel = jnp.ones((1, 3, 3, 1)), jnp.ones((3, 3, 1, 1))
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(depthwise_conv, (x, kernel), (x, kernel))

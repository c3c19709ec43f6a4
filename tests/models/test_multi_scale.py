import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from segloss.models import MultiScale, make_model

pytestmark = pytest.mark.shared_out

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
IMAGES = jnp.array(RNG.normal(size=(2, 11, 7, 3)), jnp.float32)
make_tiny = functools.partial(
    make_model,
    "multi_scale",
    num_classes=3,
    network=dict(name="unet", width=4, depth=1, norm="none"),
)


class Gain(nn.Module):
    """The smallest network: its logits are the image times a weight."""

    @nn.compact
    def __call__(self, images, *, train, sample_valid=None, resize=True):
        return images * self.param("gain", nn.initializers.ones, ())


GAIN = {"params": {"network": {"gain": jnp.ones(())}}}


def interpolate(x, axis, positions):
    """Linear between the centres of pixels, and flat beyond the outermost."""
    line = functools.partial(np.interp, positions, np.arange(x.shape[axis]))
    return np.apply_along_axis(line, axis, x)


def scaled(images, scale):
    """Pixel i of the smaller image lies at (i + 1/2) / scale - 1/2 of the image."""
    for axis in range(1, images.ndim - 1):
        size = int(images.shape[axis] * scale)
        images = interpolate(images, axis, (np.arange(size) + 0.5) / scale - 0.5)
    return images


def enlarged(logits, spatial):
    for axis, size in enumerate(spatial, start=1):
        positions = (np.arange(size) + 0.5) * logits.shape[axis] / size - 0.5
        logits = interpolate(logits, axis, positions)
    return logits


@functools.cache
def tiny_variables():
    return jax.jit(functools.partial(make_tiny().init, train=False))(KEY, IMAGES)


@jax.jit
def apply_tiny(variables, images, sample_valid=None):
    return make_tiny().apply(variables, images, train=True, sample_valid=sample_valid)


def test_images_are_scaled_by_the_factor_and_not_by_the_ratio_of_sizes():
    ramp = jnp.arange(7.0).reshape(1, 7, 1, 1)
    apply = jax.jit(functools.partial(MultiScale(network=Gain()).apply, train=True))
    half, three_quarters, whole, _ = apply(GAIN, jnp.tile(ramp, (1, 1, 4, 1)))
    # 7 pixels make 3 and 5; from one to the next are 2 and 4/3 of the image's.
    np.testing.assert_allclose(half[0, :, 0, 0], [0.5, 2.5, 4.5], rtol=1e-6)
    np.testing.assert_allclose(
        three_quarters[0, :, 0, 0], np.array([1, 9, 17, 25, 33]) / 6, rtol=1e-6
    )
    np.testing.assert_array_equal(whole[:, :, :1], ramp)


@pytest.mark.parametrize("spatial", [(9,), (11, 7), (5, 6, 9)])
def test_fused_is_the_highest_of_all_scales_in_any_number_of_dims(spatial):
    images = jnp.array(RNG.normal(size=(2, *spatial, 2)), jnp.float32)
    model = MultiScale(network=Gain(), scales=(1.0, 0.6))
    apply = jax.jit(model.apply, static_argnames="train")
    _, small, fused = apply(GAIN, images, train=True)
    whole = np.asarray(images)
    np.testing.assert_allclose(small, scaled(whole, 0.6), atol=1e-5)
    expected = np.maximum(whole, enlarged(np.asarray(small), spatial))
    assert (expected > whole).any()
    np.testing.assert_allclose(fused, expected, atol=1e-5)
    np.testing.assert_allclose(apply(GAIN, images, train=False), expected, atol=1e-5)


def test_one_network_sees_every_scale():
    variables = tiny_variables()
    assert list(variables["params"]) == ["network"]
    logits = apply_tiny(variables, IMAGES)
    alone = make_model("unet", num_classes=3, width=4, depth=1, norm="none")
    inner = {"params": variables["params"]["network"]}
    for scale, actual in zip((0.5, 0.75, 1.0), logits, strict=False):
        images = jnp.asarray(scaled(np.asarray(IMAGES), scale), jnp.float32)
        expected = jax.jit(functools.partial(alone.apply, train=True))(inner, images)
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_logits_for_testing_have_the_size_of_the_image_or_their_own():
    model = make_tiny(network=dict(name="unet", width=4, depth=1, input_stride=2))
    shapes = {
        resize: jax.eval_shape(
            functools.partial(model.init_with_output, train=False, resize=resize),
            KEY,
            IMAGES,
        )[0].shape
        for resize in (True, False)
    }
    assert shapes == {True: (2, 11, 7, 3), False: (2, 6, 4, 3)}


def test_gradient_comes_from_every_scale_and_from_where_the_fused_is_from():
    model = MultiScale(network=Gain())

    def sums(variables):
        logits = model.apply(variables, IMAGES, train=True)
        return jnp.stack([x.sum() for x in logits])

    images = np.asarray(IMAGES)
    scales = [scaled(images, scale) for scale in (0.5, 0.75, 1.0)]
    fused = np.max([enlarged(x, images.shape[1:3]) for x in scales], axis=0)
    # Logits are the images times the gain, so their sum is its gradient.
    grads = jax.jit(jax.jacrev(sums))(GAIN)["params"]["network"]["gain"]
    np.testing.assert_allclose(grads, [x.sum() for x in (*scales, fused)], rtol=1e-4)


def test_padding_samples_may_hold_anything():
    valid = jnp.array([True, False])
    actual, expected = (
        apply_tiny(tiny_variables(), images, valid)
        for images in (IMAGES.at[1].set(jnp.nan), IMAGES)
    )
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(a, e)
        assert np.isfinite(e).all()


@pytest.mark.parametrize(
    ("hyperparameters", "message"),
    [
        (dict(network=dict(width=4)), "network of multi_scale must be a mapping with"),
        (dict(network=dict(name="uet")), "no model is named 'uet'; known are"),
        (
            dict(network=dict(name="unet", dept=3)),
            "unet has no hyperparameter 'dept'; known are .*depth, width",
        ),
        (
            dict(network=dict(name="unet", num_classes=9)),
            "unet has no hyperparameter 'num_classes'",
        ),
        (dict(network="unet"), "its 'name' and hyperparameters, got 'unet'"),
        (
            dict(network=dict(name="multi_scale", network=dict(name="unet"))),
            "MultiScale: network must not be a MultiScale itself",
        ),
        (dict(scales=(0.5, 0.75)), r"in \(0, 1\], and include 1, got \(0.5, 0.75\)"),
        (dict(scales=(0.0, 1.0)), r"scales must be .*in \(0, 1\]"),
        (dict(scales=(1.0, 1.5)), r"scales must be .*in \(0, 1\]"),
        (dict(scales=(1.0, 0.5, 0.5)), "scales must be distinct"),
    ],
)
def test_wrong_hyperparameters_are_named(hyperparameters, message):
    with pytest.raises(ValueError, match=message):
        make_tiny(**hyperparameters)


def test_network_is_needed():
    with pytest.raises(ValueError, match="needs the hyperparameter 'network'"):
        make_model("multi_scale", num_classes=3)

"""What every network of `MODELS` promises."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segloss.losses import softmax_cross_entropy
from segloss.models import MODELS, make_model

pytestmark = pytest.mark.shared_out

# Hyperparameters that make a network small; each network has a line.
RESNET = dict(stage_sizes=(1,) * 4, width=4)
TINY = {
    "backbone_unet": dict(stage_sizes=(1,) * 7, width=2),
    "deeplab_v1": dict(stage_sizes=(1,) * 5, width=2, fc_width=4),
    "deeplab_v2": dict(RESNET, norm_momentum=0.9),
    "deeplab_v3": RESNET,
    "deeplab_v3_plus": RESNET,
    "fcn": dict(stage_sizes=(1,) * 5, width=2, fc_width=4, fc_window=3),
    "segnet": dict(stage_sizes=(1,) * 5, width=2),
    "unet": dict(width=4, depth=1),
    "vnet": dict(width=2, convs=(1, 2)),
}
KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
IMAGES = jnp.array(RNG.normal(size=(4, 35, 18, 3)), jnp.float32)
LABELS = jnp.array(RNG.integers(0, 3, (4, 35, 18)), jnp.int32)
VALID = jnp.array([1, 1, 0, 1], bool)  # of two devices the second holds one sample

each_network = pytest.mark.parametrize("name", TINY)


def make_tiny(name, **hyperparameters):
    return make_model(name, num_classes=3, **{**TINY[name], **hyperparameters})


@functools.cache
def variables_of(name):
    """Drawn at random throughout, as layers that begin at zero hide what is wrong."""
    init = functools.partial(make_tiny(name).init, train=False)
    variables = jax.eval_shape(init, KEY, IMAGES)
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        if path[-1].key in ("scale", "var", "slope"):
            return jnp.array(rng.uniform(0.5, 1.5, leaf.shape), leaf.dtype)
        stddev = 1.4 / np.sqrt(max(1, np.prod(leaf.shape[:-1])))
        return jnp.array(rng.normal(0, stddev, leaf.shape), leaf.dtype)

    return jax.tree.map_with_path(draw, variables)


def loss_and_stats(params, name, images, labels, valid, axis_name=None):
    variables = variables_of(name)
    logits, updated = make_tiny(name, axis_name=axis_name).apply(
        {**variables, "params": params},
        images,
        train=True,
        sample_valid=valid,
        mutable=["batch_stats"],
        rngs={"dropout": KEY},
    )
    valid = valid[:, None, None]
    return softmax_cross_entropy(logits, labels, valid, axis_name=axis_name), updated


value_and_grad = jax.value_and_grad(loss_and_stats, has_aux=True)
jitted_value_and_grad = jax.jit(value_and_grad, static_argnums=1)


def assert_trees_close(actual, expected, **tolerance):
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, **tolerance), actual, expected
    )


def shapes(name, hw, *, resize=True, **hyperparameters):
    """Of logits and variables, without compiling anything."""
    model = make_tiny(name, **hyperparameters)
    init = functools.partial(model.init_with_output, train=False, resize=resize)
    return jax.eval_shape(init, KEY, jnp.zeros((2, *hw, 3)))


def test_every_network_is_tested():
    # A wrapper that returns several logits in training; it has tests of its own.
    assert TINY.keys() == MODELS.keys() - {"multi_scale"}


@each_network
def test_logits_are_float32_at_the_size_of_the_images(name):
    logits, variables = shapes(name, (33, 18), dtype="bfloat16")
    assert logits.shape == (2, 33, 18, 3)
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@each_network
def test_one_pixel_is_enough(name):
    logits, _ = shapes(name, (1, 1), resize=False, norm="group")
    assert logits.shape == (2, 1, 1, 3)
    assert logits.dtype == jnp.float32


@each_network
def test_bfloat16_is_what_all_but_the_scores_are_computed_in(name):
    model = make_tiny(name, dtype="bfloat16", remat=True)
    # Resizing, which is a matrix product as well, would come last.
    apply = functools.partial(model.apply, train=False, resize=False)
    text = str(jax.make_jaxpr(apply)(variables_of(name), IMAGES))
    products = "conv_general_dilated|dot_general"
    dtypes = re.findall(rf":(\w+)\[[^]]*\] = (?:{products})\[", text)
    assert dtypes[0] == "bf16"
    assert dtypes[-1] == "f32"
    assert dtypes.count("f32") <= 5  # FCN-8s scores five times
    # Stages that are to be computed again are marked as such.
    assert "checkpoint" in text or "remat" in text


@each_network
def test_frozen_norms_leave_statistics_alone_in_training(name):
    def update(variables):
        _, updated = make_tiny(name, norm="frozen").apply(
            variables,
            IMAGES,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": KEY},
        )
        return updated["batch_stats"]

    _, variables = shapes(name, (33, 18), norm="frozen")
    jaxpr = jax.make_jaxpr(update)(variables).jaxpr
    assert set(jaxpr.outvars) <= set(jaxpr.invars)


def slow_but_for(*quick):
    """Each network, in the quick tests only these: compiling takes seconds."""
    return pytest.mark.parametrize(
        "name",
        [
            name if name in quick else pytest.param(name, marks=pytest.mark.slow)
            for name in TINY
        ],
    )


@slow_but_for("vnet")
def test_training_has_gradients_whatever_padding_holds(name):
    variables = variables_of(name)
    arrays = (variables["params"], name, IMAGES, LABELS, VALID)
    (loss, stats), grads = jitted_value_and_grad(*arrays)
    compiled = jitted_value_and_grad._cache_size()
    assert 0.5 < loss < 20
    for path, grad in jax.tree.leaves_with_path(grads):
        assert jnp.abs(grad).max() > 1e-6, jax.tree_util.keystr(path)
    for path, stat in jax.tree.leaves_with_path(stats):
        before = functools.reduce(lambda tree, key: tree[key.key], path, variables)
        assert jnp.abs(stat - before).max() > 1e-3, jax.tree_util.keystr(path)
    for garbage in (1e3, jnp.nan):
        images, labels = IMAGES.at[2].set(garbage), LABELS.at[2].set(255)
        actual = jitted_value_and_grad(*arrays[:2], images, labels, VALID)
        assert_trees_close(actual, ((loss, stats), grads))
    assert jitted_value_and_grad._cache_size() == compiled


@slow_but_for("vnet")
def test_training_on_two_devices_equals_one(name):
    params = variables_of(name)["params"]

    def on_device(*arrays):
        result, grads = value_and_grad(params, name, *arrays, axis_name="devices")
        return result, jax.lax.pmean(grads, "devices")

    split = [a.reshape(2, 2, *a.shape[1:]) for a in (IMAGES, LABELS, VALID)]
    actual = jax.pmap(on_device, axis_name="devices", devices=jax.devices()[:2])(*split)
    expected = jitted_value_and_grad(params, name, IMAGES, LABELS, VALID)
    for device in range(2):
        replica = jax.tree.map(lambda a: np.asarray(a)[device], actual)  # noqa: B023
        assert_trees_close(replica, expected, rtol=1e-3, atol=1e-4)


@each_network
@pytest.mark.parametrize(
    ("hyperparameter", "message"),
    [
        (dict(norm="layer"), "norm must be one of batch, frozen, group, none, got 'l"),
        (dict(norm_momentum=1.5), r"norm_momentum must be in \[0, 1\), got 1.5."),
        (
            dict(dtype="float64"),
            "dtype must be one of float32, bfloat16, float16, got ",
        ),
    ],
)
def test_wrong_hyperparameters_are_named(name, hyperparameter, message):
    with pytest.raises(ValueError, match=rf"\w+: {message}"):
        make_tiny(name, **hyperparameter)

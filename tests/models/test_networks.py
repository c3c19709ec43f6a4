"""What every network of `MODELS` promises."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segloss.losses import softmax_cross_entropy
from segloss.models import MODELS, make_model
from segloss.models.layers import NORMS

# Hyperparameters that make a network small; each network has a line.
TINY = {
    "deeplab_v1": dict(stage_sizes=(1,) * 5, width=2, fc_width=4),
    "deeplab_v2": dict(stage_sizes=(1,) * 4, width=2),
    "deeplab_v3": dict(stage_sizes=(1,) * 4, width=2),
    "deeplab_v3_plus": dict(stage_sizes=(1,) * 4, width=2),
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


def shapes(name, images, **hyperparameters):
    """Of logits and variables, without compiling anything."""
    resize = hyperparameters.pop("resize", True)
    model = make_tiny(name, **hyperparameters)
    init = functools.partial(model.init_with_output, train=False, resize=resize)
    return jax.eval_shape(init, KEY, images)


def test_every_network_is_tested():
    assert TINY.keys() == MODELS.keys()


@each_network
@pytest.mark.parametrize("hw", [(1, 1), (33, 17), (24, 50)])
def test_logits_have_the_size_of_the_images(name, hw):
    images = jnp.zeros((2, *hw, 3))
    logits, variables = shapes(name, images, dtype="bfloat16")
    assert logits.shape == (2, *hw, 3)
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    small, _ = shapes(name, images, resize=False)
    assert small.dtype == jnp.float32
    assert small.shape[1] <= hw[0]
    assert small.shape[2] <= hw[1]


@each_network
def test_bfloat16_is_what_all_but_the_scores_are_computed_in(name):
    model = make_tiny(name, dtype="bfloat16")
    apply = functools.partial(model.apply, train=False)
    jaxpr = jax.make_jaxpr(apply)(variables_of(name), IMAGES)
    dtypes = [
        equation.outvars[0].aval.dtype
        for equation in jaxpr.eqns
        if equation.primitive.name == "conv_general_dilated"
    ]
    assert dtypes[0] == jnp.bfloat16
    assert dtypes[-1] == jnp.float32
    assert dtypes.count(jnp.bfloat16) >= len(dtypes) - 5  # FCN-8s scores five times


@each_network
@pytest.mark.parametrize("norm", NORMS)
def test_norm_says_what_normalises(name, norm):
    _, variables = shapes(name, IMAGES, norm=norm)
    running = norm in ("batch", "frozen")
    assert ("batch_stats" in variables) == running
    leaves = jax.tree.leaves_with_path(variables["params"])
    assert any(path[-1].key == "scale" for path, _ in leaves) == (norm != "none")
    if not running:
        return

    def update(stats):
        _, updated = make_tiny(name, norm=norm).apply(
            {"params": params, "batch_stats": stats},
            IMAGES,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": KEY},
        )
        return updated["batch_stats"]

    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), variables["params"])
    jaxpr = jax.make_jaxpr(update)(variables["batch_stats"]).jaxpr
    unchanged = [a is b for a, b in zip(jaxpr.invars, jaxpr.outvars, strict=True)]
    assert all(unchanged) if norm == "frozen" else not any(unchanged)


@pytest.mark.parametrize(
    "name", [name for name in TINY if hasattr(MODELS[name], "remat")]
)
def test_remat_computes_again_with_the_same_variables(name):
    _, variables = shapes(name, IMAGES, remat=True)
    assert jax.tree.structure(variables) == jax.tree.structure(shapes(name, IMAGES)[1])
    for remat in (True, False):
        apply = functools.partial(make_tiny(name, remat=remat).apply, train=False)
        text = str(jax.make_jaxpr(apply)(variables_of(name), IMAGES))
        assert ("remat" in text or "checkpoint" in text) == remat


@each_network
def test_every_parameter_has_a_gradient(name):
    params = variables_of(name)["params"]
    (loss, _), grads = jitted_value_and_grad(params, name, IMAGES, LABELS, VALID)
    assert 0.5 < loss < 20
    for path, grad in jax.tree.leaves_with_path(grads):
        assert jnp.abs(grad).max() > 1e-6, jax.tree_util.keystr(path)


@each_network
@pytest.mark.parametrize("garbage", [1e3, jnp.nan])
def test_padding_samples_change_nothing_and_nothing_is_compiled_anew(name, garbage):
    params = variables_of(name)["params"]
    expected = jitted_value_and_grad(params, name, IMAGES, LABELS, VALID)
    compiled = jitted_value_and_grad._cache_size()
    images = IMAGES.at[2].set(garbage)
    actual = jitted_value_and_grad(params, name, images, LABELS.at[2].set(255), VALID)
    assert_trees_close(actual, expected)
    assert jitted_value_and_grad._cache_size() == compiled


@each_network
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
        (dict(dtype="float16"), "dtype must be one of float32, bfloat16, got 'float1"),
    ],
)
def test_wrong_hyperparameters_are_named(name, hyperparameter, message):
    with pytest.raises(ValueError, match=f"{MODELS[name].__name__}: {message}"):
        make_tiny(name, **hyperparameter)

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segloss.models import ResNet

pytestmark = pytest.mark.shared_out

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
IMAGES = jnp.array(RNG.normal(size=(2, 35, 50, 3)), jnp.float32)
make_tiny = functools.partial(ResNet, stage_sizes=(1, 1, 2, 2), width=2)


@functools.cache
def tiny_variables():
    """Drawn at random throughout, as layers that begin at zero hide what is wrong."""

    def draw(path, leaf):
        if path[-1].key in ("scale", "var"):
            return jnp.array(RNG.uniform(0.5, 1.5, leaf.shape), leaf.dtype)
        stddev = np.sqrt(2 / np.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 0.5
        return jnp.array(RNG.normal(0, stddev, leaf.shape), leaf.dtype)

    return jax.tree.map_with_path(draw, shapes(make_tiny())[1])


def shapes(model, images=IMAGES):
    """Of the features, and of the variables."""
    init_with_output = functools.partial(model.init_with_output, train=False)
    return jax.eval_shape(init_with_output, KEY, images)


def convolutions(model):
    """Parameters of each 3x3 convolution, in order."""
    apply = functools.partial(model.apply, train=False)
    _, variables = shapes(model)
    equations = jax.make_jaxpr(apply)(variables, IMAGES).eqns
    return [
        equation.params
        for equation in equations
        if equation.primitive.name == "conv_general_dilated"
        and equation.invars[1].aval.shape[:2] == (3, 3)
    ]


def test_parameters_are_those_of_torchvision():
    # Its resnet50 has 25,557,032; 2048 * 1000 + 1000 of them belong to the classifier.
    _, variables = shapes(ResNet())
    leaves = jax.tree.leaves(variables["params"])
    assert sum(leaf.size for leaf in leaves) == 23_508_032
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}


def test_names_of_variables_are_the_checkpoint_format():
    _, variables = shapes(make_tiny())
    assert set(variables["params"]) == {
        "conv1",
        "norm1",
        *(f"stage{i}" for i in range(1, 5)),
    }
    stage = variables["params"]["stage4"]
    assert set(stage) == {"block0", "block1"}
    layers = {f"{kind}{i}" for kind in ("conv", "norm") for i in (1, 2, 3)}
    assert set(stage["block1"]) == layers
    assert set(stage["block0"]) == layers | {"shortcut", "shortcut_norm"}
    assert set(stage["block0"]["conv2"]) == {"kernel"}
    assert set(stage["block0"]["norm2"]) == {"scale", "bias"}
    stats = variables["batch_stats"]["stage4"]["block0"]
    assert set(stats["shortcut_norm"]) == {"mean", "var"}


# 35x50 pixels: 18x25 after the stem, then pooled.
@pytest.mark.parametrize(
    ("ceil_pool", "output_stride", "sizes"),
    [
        (False, 32, [(9, 13), (5, 7), (3, 4), (2, 2)]),
        (False, 16, [(9, 13), (5, 7), (3, 4), (3, 4)]),
        (False, 8, [(9, 13), (5, 7), (5, 7), (5, 7)]),
        (True, 32, [(10, 13), (5, 7), (3, 4), (2, 2)]),
        (True, 8, [(10, 13), (5, 7), (5, 7), (5, 7)]),
    ],
)
def test_sizes_of_features(ceil_pool, output_stride, sizes):
    model = make_tiny(ceil_pool=ceil_pool, output_stride=output_stride)
    features, _ = shapes(model)
    expected = [(2, *hw, 8 << i) for i, hw in enumerate(sizes)]
    assert [x.shape for x in features] == expected


@pytest.mark.parametrize("version", ["v1", "v1.5"])
def test_dilation_gives_between_what_striding_gives(version):
    strided, dilated = (
        jax.jit(
            functools.partial(
                make_tiny(version=version, output_stride=stride).apply, train=False
            )
        )(tiny_variables(), IMAGES)[-1]
        for stride in (32, 8)
    )
    assert np.std(strided) > 0.1
    np.testing.assert_allclose(dilated[:, ::4, ::4], strided, rtol=1e-4, atol=1e-5)


def test_a_block_strides_where_its_version_says():
    strides = {
        version: [
            c["window_strides"][0] for c in convolutions(make_tiny(version=version))
        ]
        for version in ("v1", "v1.5")
    }
    assert strides == {"v1": [1] * 6, "v1.5": [1, 2, 2, 1, 2, 1]}


@pytest.mark.parametrize("version", ["v1", "v1.5"])
def test_multi_grid_multiplies_the_rate_of_the_last_stage(version):
    # The example of arXiv:1706.05587, sec. 3.2.1: 2 * (1, 2, 4).
    model = make_tiny(
        stage_sizes=(1, 1, 1, 3),
        version=version,
        output_stride=16,
        multi_grid=(1, 2, 4),
    )
    rates = [c["rhs_dilation"] for c in convolutions(model)]
    assert rates == [(1, 1)] * 3 + [(2, 2), (4, 4), (8, 8)]


def test_remat_computes_again_and_changes_nothing():
    def make_gradient(remat):
        model = make_tiny(remat=remat)

        # Of two stages, because compiling more of them takes long.
        def loss(params):
            features, updated = model.apply(
                {**tiny_variables(), "params": params},
                IMAGES,
                train=True,
                mutable=["batch_stats"],
            )
            return jnp.mean(features[1] ** 2), updated["batch_stats"]["stage2"]

        return jax.grad(loss, has_aux=True)

    def count(gradient):
        return str(jax.make_jaxpr(gradient)(params)).count("conv_general_dilated[")

    assert shapes(make_tiny(remat=True)) == shapes(make_tiny())
    params = tiny_variables()["params"]
    kept, again = make_gradient(False), make_gradient(True)
    # Those of the two stages: of each a block of three and a shortcut.
    assert count(again) == count(kept) + 2 * 4
    expected, updated = jax.jit(kept)(params)
    actual, updated_again = jax.jit(again)(params)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, atol=1e-4 * np.abs(e).max() + 1e-6)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
        updated_again,
        updated,
    )


def test_without_norms_convolutions_have_biases():
    _, variables = shapes(make_tiny(norm="none"))
    assert set(variables) == {"params"}
    block = variables["params"]["stage1"]["block0"]
    assert {name: set(layer) for name, layer in block.items()} == {
        name: {"kernel", "bias"} for name in ("conv1", "conv2", "conv3", "shortcut")
    }


@pytest.mark.parametrize(
    ("hyperparameters", "message"),
    [
        (dict(width=0), "ResNet: width must be >= 1, got 0."),
        (dict(version="v2"), "ResNet: version must be one of v1, v1.5, got 'v2'."),
        (
            dict(output_stride=4),
            "ResNet: output_stride must be one of 8, 16, 32, got 4",
        ),
        (
            dict(stage_sizes=(3, 4)),
            "stage_sizes must be four numbers >= 1, got (3, 4).",
        ),
        (
            dict(multi_grid=(1, 2)),
            "ResNet: multi_grid must be None or a number >= 1 for each of the "
            "3 blocks of the last stage, got (1, 2).",
        ),
        (dict(norm="layer"), "ResNet: norm must be one of batch, frozen, group, none"),
    ],
)
def test_wrong_hyperparameters_are_named(hyperparameters, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ResNet(**hyperparameters)

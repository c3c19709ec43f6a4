import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import InvalidRngError

from segloss.models import make_model
from segloss.models.deeplab import ASPPSum, Decoder

pytestmark = pytest.mark.shared_out

KEY = jax.random.key(0)
IMAGES = jnp.zeros((2, 35, 50, 3))
make_tiny = functools.partial(
    make_model, num_classes=3, stage_sizes=(1, 1, 1, 1), width=4
)


def shapes(model, **options):
    """Of the logits, and of the variables."""
    init = functools.partial(model.init_with_output, train=False, **options)
    return jax.eval_shape(init, KEY, IMAGES)


def dilations(model):
    """Of the 3x3 convolutions that are dilated, in order."""
    apply = functools.partial(model.apply, train=False)
    rates = [
        equation.params["rhs_dilation"][0]
        for equation in jax.make_jaxpr(apply)(shapes(model)[1], IMAGES).eqns
        if equation.primitive.name == "conv_general_dilated"
    ]
    return [rate for rate in rates if rate > 1]


@pytest.mark.parametrize(
    ("name", "hyperparameters", "parameters"),
    [
        # "20.5M" of table 2 of arXiv:1412.7062: 14,714,688 of VGG-16's convolutions,
        # 4,719,616 of fc6, 1,049,600 of fc7 and 21,525 of the classes.
        ("deeplab_v1", {}, 20_505_429),
        # kazuto1011/deeplab-pytorch: DeepLabV2_ResNet101_MSC(n_classes=21).
        ("deeplab_v2", {}, 44_048_532),
        # torchvision: deeplabv3_resnet50 and deeplabv3_resnet101 with 21 classes.
        ("deeplab_v3", dict(backbone="resnet50"), 39_638_869),
        ("deeplab_v3", {}, 58_630_997),
        # jfzhang95/pytorch-deeplab-xception: DeepLab(backbone="resnet"), 21 classes.
        ("deeplab_v3_plus", {}, 59_344_309),
    ],
)
def test_parameters_are_those_of_public_implementations(
    name, hyperparameters, parameters
):
    _, variables = shapes(make_model(name, num_classes=21, **hyperparameters))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == parameters


def test_names_of_variables_are_the_checkpoint_format():
    names = {
        name: {
            child: set(grandchildren)
            for child, grandchildren in shapes(make_tiny(name))[1]["params"].items()
            if child != "backbone"
        }
        for name in ("deeplab_v2", "deeplab_v3", "deeplab_v3_plus")
    }
    assert names["deeplab_v2"] == {"aspp": {f"conv{i}" for i in range(4)}}
    aspp = {f"{kind}{i}" for kind in ("conv", "norm") for i in range(4)} | {
        "pool_conv",
        "pool_norm",
        "project",
        "project_norm",
    }
    head = {"kernel", "bias"}
    assert names["deeplab_v3"] == {
        "aspp": aspp,
        "head_conv": {"kernel"},
        "head_norm": {"scale", "bias"},
        "head": head,
    }
    assert names["deeplab_v3_plus"] == {
        "aspp": aspp,
        "decoder": {"fine_conv", "fine_norm", "conv0", "norm0", "conv1", "norm1"},
        "head": head,
    }
    _, variables = shapes(make_model("deeplab_v1", num_classes=3))
    assert set(variables["params"]) == {"backbone", "head"}


# 35x50 pixels: 18x25 after the stem, which v2 pools to 10x13 and the others to 9x13.
@pytest.mark.parametrize(
    ("name", "output_stride", "hw"),
    [
        ("deeplab_v2", 8, (5, 7)),
        ("deeplab_v2", 32, (2, 2)),
        ("deeplab_v3", 8, (5, 7)),
        ("deeplab_v3", 16, (3, 4)),
        ("deeplab_v3_plus", 8, (9, 13)),
        ("deeplab_v3_plus", 16, (9, 13)),
    ],
)
def test_size_at_which_logits_are_computed(name, output_stride, hw):
    model = make_tiny(name, output_stride=output_stride)
    logits, _ = shapes(model, resize=False)
    assert logits.shape == (2, *hw, 3)


@pytest.mark.parametrize(
    ("name", "hyperparameters", "rates"),
    [
        # Of blocks, one a stage, and of the pyramid.
        ("deeplab_v2", {}, [2, 4, 6, 12, 18, 24]),
        ("deeplab_v3", {}, [2, 12, 24, 36]),
        ("deeplab_v3", dict(output_stride=16), [6, 12, 18]),
        ("deeplab_v3_plus", {}, [6, 12, 18]),
        ("deeplab_v3_plus", dict(output_stride=8), [2, 12, 24, 36]),
        ("deeplab_v3_plus", dict(rates=(2, 3), multi_grid=(5,)), [10, 2, 3]),
        # Of the three convolutions of conv5, and of fc6.
        ("deeplab_v1", dict(stage_sizes=(1, 1, 1, 1, 3)), [2, 2, 2, 12]),
    ],
)
def test_dilation_of_each_convolution(name, hyperparameters, rates):
    assert dilations(make_tiny(name, **hyperparameters)) == rates


def test_pyramid_of_deeplab_v2_adds_its_convolutions_up():
    # A pixel of 1 seen through kernels of 1 and 2, dilated by 1 and 3, and biases of
    # 10 and 20: taps of both at the pixel, of one around it.
    layer = ASPPSum(features=1, rates=(1, 3))
    params = {
        f"conv{i}": {"kernel": jnp.full((3, 3, 1, 1), i + 1.0), "bias": jnp.full(1, b)}
        for i, b in enumerate((10.0, 20.0))
    }
    x = jnp.zeros((1, 7, 7, 1)).at[0, 3, 3].set(1)
    expected = np.full((7, 7), 30.0)
    expected[2:5, 2:5] += 1
    expected[::3, ::3] += 2
    actual = layer.apply({"params": params}, x)
    np.testing.assert_array_equal(actual[0, ..., 0], expected)


def test_decoder_sees_coarse_features_beside_the_fine_ones():
    # Four coarse channels, and behind them a fine one. The kernels hand on the first
    # coarse channel as 0 and the fine one as 1.
    decoder = Decoder(width=1, norm="none")
    fine = jnp.arange(12.0).reshape(1, 4, 3, 1)
    coarse = jnp.zeros((1, 2, 2, 4)).at[0, ..., 0].set(jnp.array([[0, 4], [8, 12]]))
    how = dict(train=False, sample_valid=None)
    variables = jax.eval_shape(
        functools.partial(decoder.init, **how), KEY, coarse, fine
    )
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape), variables["params"])
    params["fine_conv"]["kernel"][0, 0, 0, 0] = 1
    params["conv0"]["kernel"][1, 1, 0, 0] = params["conv0"]["kernel"][1, 1, 4, 1] = 1
    params["conv1"]["kernel"][1, 1, 0, 0] = params["conv1"]["kernel"][1, 1, 1, 1] = 1
    actual = decoder.apply({"params": params}, coarse, fine, **how)
    np.testing.assert_array_equal(actual[..., 1], fine[..., 0])
    # Between 2 rows 4 lie at -1/4, 1/4, 3/4 and 5/4, and 3 columns at -1/6, 1/2, 7/6.
    rows, columns = np.array([0, 0.25, 0.75, 1]), np.array([0, 0.5, 1])
    expected = 8 * rows[:, None] + 4 * columns
    np.testing.assert_allclose(actual[0, ..., 0], expected, rtol=1e-6)
    np.testing.assert_array_equal(actual[..., 2:], 0)


@pytest.mark.parametrize("name", ["deeplab_v1", "deeplab_v3", "deeplab_v3_plus"])
def test_drop_out_draws_numbers_in_training_only(name):
    def make(dropout):
        sizes = (1,) * (5 if name == "deeplab_v1" else 4)
        return make_tiny(name, stage_sizes=sizes, norm="none", dropout=dropout)

    def apply(train, dropout, **options):
        model = make(dropout)
        how = functools.partial(model.apply, train=train, **options)
        return jax.eval_shape(how, variables, IMAGES)

    expected, variables = shapes(make(0.5))
    assert apply(True, 0.0) == expected
    assert apply(True, 0.5, rngs={"dropout": KEY}) == expected
    with pytest.raises(InvalidRngError, match="dropout"):
        apply(True, 0.5)


def test_norm_of_the_backbone_may_differ_from_the_others():
    model = make_tiny("deeplab_v3", backbone_norm="frozen")
    how = dict(train=True, mutable=["batch_stats"], rngs={"dropout": KEY})

    def update(variables):
        return model.apply(variables, IMAGES, **how)[1]["batch_stats"]

    _, variables = shapes(model)
    traced, stats = jax.make_jaxpr(update, return_shape=True)(variables)
    given = set(traced.jaxpr.invars)
    paths = [path[0].key for path, _ in jax.tree.leaves_with_path(stats)]
    for path, leaf in zip(paths, traced.jaxpr.outvars, strict=True):
        assert (leaf in given) == (path == "backbone"), path


@pytest.mark.parametrize(
    ("name", "hyperparameters", "message"),
    [
        ("deeplab_v1", dict(fc_rate=0), "DeepLabV1: fc_rate must be >= 1, got 0."),
        ("deeplab_v1", dict(dropout=1), "DeepLabV1: dropout must be in [0, 1), got 1."),
        (
            "deeplab_v2",
            dict(rates=()),
            "DeepLabV2: rates must be numbers >= 1, got ().",
        ),
        ("deeplab_v3", dict(stage_sizes=()), "stage_sizes must be four numbers >= 1"),
        (
            "deeplab_v2",
            dict(backbone="vgg16"),
            "DeepLabV2: backbone must be one of resnet50, resnet101, eff",
        ),
        (
            "deeplab_v3",
            dict(backbone_norm="running"),
            "DeepLabV3: backbone_norm must be one of None, batch, frozen, group, none",
        ),
        (
            "deeplab_v3",
            dict(rates=(6, 0)),
            "DeepLabV3: rates must be numbers >= 1, got (6, 0).",
        ),
        ("deeplab_v3", dict(dropout=-0.1), "DeepLabV3: dropout must be in [0, 1)"),
        (
            "deeplab_v3_plus",
            dict(output_stride=4),
            "ResNet: output_stride must be one of 8, 16, 32, got 4.",
        ),
        ("deeplab_v3", dict(num_clases=2), "known are "),
    ],
)
def test_wrong_hyperparameters_are_named(name, hyperparameters, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make_model(name, num_classes=3, **hyperparameters)

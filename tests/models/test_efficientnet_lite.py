import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segloss.models import EfficientNetLite, make_model
from segloss.models.efficientnet_lite import EFFICIENTNET_LITE

pytestmark = pytest.mark.shared_out

TINY = dict(stage_sizes=(1, 1, 1, 1, 1, 2, 1), stage_widths=(2, 3) * 3 + (4,))
LITE = dict(backbone="efficientnet_lite0", stage_sizes=(1,) * 7, num_classes=3)


def shapes(model, hw, **options):
    """Of what the model returns, and of its variables."""
    init = functools.partial(model.init_with_output, train=False, **options)
    return jax.eval_shape(init, jax.random.key(0), jnp.zeros((2, *hw, 3)))


def test_scaling_gives_the_sizes_of_the_authors():
    # As in the published weights; of lite2 a test of layouts compares every array.
    lite0 = dict(
        stage_sizes=(1, 2, 2, 3, 3, 4, 1),
        stage_widths=(16, 24, 40, 80, 112, 192, 320),
    )
    expected = {
        "efficientnet_lite0": lite0,
        "efficientnet_lite1": lite0 | dict(stage_sizes=(1, 3, 3, 4, 4, 5, 1)),
        "efficientnet_lite2": dict(
            stage_sizes=(1, 3, 3, 4, 4, 5, 1),
            stage_widths=(16, 24, 48, 88, 120, 208, 352),
        ),
    }
    assert expected == EFFICIENTNET_LITE


def test_features_and_names_of_variables():
    network = EfficientNetLite(**TINY, output_stride=16)
    features, variables = shapes(network, (30, 65))
    assert [f.shape[1:] for f in features] == [
        (15, 33, 2),
        (8, 17, 3),
        (4, 9, 2),
        (2, 5, 2),
        (2, 5, 4),
    ]
    params = variables["params"]
    assert set(params) == {"stem", "stem_norm", *(f"stage{i + 1}" for i in range(7))}
    first = {"depthwise", "depthwise_norm", "project", "project_norm"}
    assert set(params["stage1"]["block0"]) == first
    assert set(params["stage6"]) == {"block0", "block1"}
    assert set(params["stage6"]["block1"]) == first | {"expand", "expand_norm"}
    assert params["stage3"]["block0"]["depthwise"]["kernel"].shape == (5, 5, 1, 18)


def test_dilation_in_place_of_stride_keeps_the_features():
    """Every fourth of the dense features is one of the strided network.

    Sizes are odd at every stride, so that "SAME" pads both sides alike.
    """
    images = np.random.default_rng(0).normal(size=(1, 33, 33, 3)).astype(np.float32)
    networks = [EfficientNetLite(**TINY, output_stride=stride) for stride in (32, 8)]
    rng = np.random.default_rng(1)
    variables = jax.tree.map(
        lambda leaf: rng.uniform(0.1, 1, leaf.shape).astype(np.float32),
        shapes(networks[0], (33, 33))[1],
    )

    @jax.jit
    def last_features(variables):
        return [x.apply(variables, images, train=False)[-1] for x in networks]

    strided, dense = last_features(variables)
    assert strided.shape == (1, 2, 2, 4)
    assert jnp.std(strided) > 0.1
    np.testing.assert_allclose(dense[:, ::4, ::4], strided, rtol=1e-4, atol=1e-5)


def test_width_is_that_of_the_classifier_alone():
    model = make_model("deeplab_v3_plus", **LITE, width=32)
    params = shapes(model, (33, 50))[1]["params"]
    assert params["backbone"]["stem"]["kernel"].shape == (3, 3, 3, 32)
    assert params["aspp"]["conv0"]["kernel"].shape == (1, 1, 320, 128)
    # The features at stride 4 have 24 channels, and 0.75 * width of them are made.
    assert params["decoder"]["fine_conv"]["kernel"].shape == (1, 1, 24, 24)
    assert params["decoder"]["conv0"]["kernel"].shape == (3, 3, 128 + 24, 128)


@pytest.mark.parametrize(
    ("fields", "hw", "levels"),
    [
        (dict(backbone="efficientnet_lite0", stage_sizes=(1,) * 7), (17, 25), 4),
        (dict(backbone="resnet50", stage_sizes=(1,) * 4), (9, 13), 3),
    ],
)
def test_decoder_of_the_unet_reaches_the_finest_features(fields, hw, levels):
    model = make_model("backbone_unet", num_classes=3, width=2, **fields)
    logits, variables = shapes(model, (33, 50), resize=False)
    assert logits.shape == (2, *hw, 3)
    ups = {f"up{i}" for i in range(levels)}
    assert set(variables["params"]) == {"backbone", "head"} | ups
    kernel = variables["params"][f"up{levels - 1}"]["conv1"]["conv"]["kernel"]
    assert kernel.shape[-1] == 2 << (levels - 1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            dict(version="v1"),
            "DeepLabV3: version is for a ResNet, and the backbone is ",
        ),
        (
            dict(multi_grid=(1, 2, 4)),
            "efficientnet_lite0, which has none; leave multi_",
        ),
        (dict(ceil_pool=True), "leave ceil_pool out."),
        (
            dict(stage_sizes=(3, 4, 6, 3)),
            "stage_sizes must be seven numbers >= 1, got ",
        ),
        (dict(output_stride=4), "output_stride must be one of 8, 16, 32, got 4."),
        (dict(width=0), "DeepLabV3: width must be >= 1, got 0."),
        (
            dict(backbone="efficientnet_b0"),
            "backbone must be one of resnet50, resnet101, efficientnet_lite0, efficien",
        ),
    ],
)
def test_wrong_attributes_are_named(fields, message):
    given = dict(backbone="efficientnet_lite0", num_classes=3) | fields
    with pytest.raises(ValueError, match=re.escape(message)):
        make_model("deeplab_v3", **given)


def test_wrong_widths_are_named():
    with pytest.raises(ValueError, match="stage_widths must be seven numbers >= 1"):
        EfficientNetLite(stage_widths=(16, 24))
    with pytest.raises(ValueError, match="BackboneUNet: width must be <= 131072, got"):
        make_model("backbone_unet", num_classes=3, width=2**18)

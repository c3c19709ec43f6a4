import functools
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from segloss.data.augment import normalize
from segloss.models import EfficientNetLite, ResNet, make_model
from segloss.models.efficientnet_lite import EFFICIENTNET_LITE
from segloss.models.pretrained import (
    from_deeplab_v2,
    from_efficientnet_lite,
    from_torchvision_deeplabv3,
    from_torchvision_resnet,
    from_torchvision_vgg16,
)
from segloss.models.vgg import VGG16

ORACLE = Path(__file__).parents[1] / "oracles" / "torch_names.json"
NETWORKS = json.loads(ORACLE.read_text())
IMPORTERS = {
    "deeplabv3_resnet101": from_torchvision_deeplabv3,
    "efficientnet_lite2": from_efficientnet_lite,
    "resnet50": from_torchvision_resnet,
    "vgg16": from_torchvision_vgg16,
    "deeplab_v2": from_deeplab_v2,
}
OURS = {
    "deeplabv3_resnet101": lambda: make_model("deeplab_v3", num_classes=21),
    "efficientnet_lite2": lambda: EfficientNetLite(
        **EFFICIENTNET_LITE["efficientnet_lite2"]
    ),
    "resnet50": ResNet,
    "vgg16": lambda: VGG16(fc_width=4096),
    "deeplab_v2": lambda: make_model("deeplab_v2", num_classes=21),
}


@functools.cache
def shapes_of(network):
    """Name to shape of the reference's state dict."""
    if network == "deeplab_v2":
        return deeplab_v2_shapes()
    stored = NETWORKS[network]
    shapes = {name: tuple(shape) for name, shape in stored["arrays"].items()}
    for name, features in stored["norms"].items():
        for array in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{array}"] = (features,)
        shapes[f"{name}.num_batches_tracked"] = ()
    return shapes


def deeplab_v2_shapes():
    """Those of kazuto1011/deeplab-pytorch: the same ResNet by other names."""
    layers = {
        "conv1": "reduce.conv",
        "bn1": "reduce.bn",
        "conv2": "conv3x3.conv",
        "bn2": "conv3x3.bn",
        "conv3": "increase.conv",
        "bn3": "increase.bn",
        "downsample.0": "shortcut.conv",
        "downsample.1": "shortcut.bn",
    }
    shapes = {}
    for name, shape in shapes_of("deeplabv3_resnet101").items():
        if found := re.match(r"backbone\.layer(\d)\.(\d+)\.(.+)\.(\w+)$", name):
            stage, block, layer, array = found.groups()
            name = f"layer{int(stage) + 1}.block{int(block) + 1}.{layers[layer]}"
            shapes[f"base.{name}.{array}"] = shape
        elif found := re.match(r"backbone\.(conv|bn)1\.(\w+)$", name):
            shapes[f"base.layer1.conv1.{found[1]}.{found[2]}"] = shape
    for i in range(4):
        shapes[f"base.aspp.c{i}.weight"] = (21, 2048, 3, 3)
        shapes[f"base.aspp.c{i}.bias"] = (21,)
    return shapes


def small(network):
    """A state dict like the reference's with a sixteenth of the channels."""
    rng = np.random.default_rng(0)
    kept = {1, 3, 7, 21, 1000}
    state_dict = {
        name: rng.normal(size=[n if n in kept else n // 16 for n in shape])
        for name, shape in shapes_of(network).items()
    }
    return {k: np.abs(v) if k.endswith("_var") else v for k, v in state_dict.items()}


def flat(variables):
    return traverse_util.flatten_dict(variables, sep="/")


@pytest.mark.parametrize(
    ("network", "entries", "parameters"),
    [
        # As counted in torch, on the networks themselves.
        ("deeplabv3_resnet101", 676, 60_996_202),
        ("efficientnet_lite2", 386, 6_092_072),
        ("resnet50", 320, 25_557_032),
        ("vgg16", 32, 138_357_544),
        ("deeplab_v2", 632, 44_048_532),
    ],
)
def test_names_are_those_of_the_reference(network, entries, parameters):
    shapes = shapes_of(network)
    assert len(shapes) == entries
    state = ("running_mean", "running_var", "num_batches_tracked")
    sizes = [np.prod(s, dtype=int) for n, s in shapes.items() if not n.endswith(state)]
    assert sum(sizes) == parameters


@pytest.mark.parametrize("network", IMPORTERS)
def test_every_array_of_our_network_is_there_in_its_shape(network):
    zero = np.zeros((), np.float32)
    state_dict = {k: np.broadcast_to(zero, s) for k, s in shapes_of(network).items()}
    variables = IMPORTERS[network](state_dict)
    init = functools.partial(OURS[network]().init, train=False)
    expected = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 33, 33, 3)))
    expected = {"params": {}, "batch_stats": {}} | expected
    assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, expected)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype("float32")}


@pytest.mark.parametrize(
    ("network", "name", "path"),
    [
        ("resnet50", "conv1.weight", "params/conv1/kernel"),
        ("resnet50", "bn1.weight", "params/norm1/scale"),
        ("resnet50", "bn1.bias", "params/norm1/bias"),
        ("resnet50", "bn1.running_mean", "batch_stats/norm1/mean"),
        ("resnet50", "bn1.running_var", "batch_stats/norm1/var"),
        ("resnet50", "layer3.5.conv2.weight", "params/stage3/block5/conv2/kernel"),
        (
            "resnet50",
            "layer2.0.downsample.0.weight",
            "params/stage2/block0/shortcut/kernel",
        ),
        (
            "resnet50",
            "layer2.0.downsample.1.running_var",
            "batch_stats/stage2/block0/shortcut_norm/var",
        ),
        (
            "deeplabv3_resnet101",
            "backbone.layer3.22.bn3.running_mean",
            "batch_stats/backbone/stage3/block22/norm3/mean",
        ),
        (
            "deeplabv3_resnet101",
            "classifier.0.convs.0.0.weight",
            "params/aspp/conv0/kernel",
        ),
        (
            "deeplabv3_resnet101",
            "classifier.0.convs.3.1.bias",
            "params/aspp/norm3/bias",
        ),
        (
            "deeplabv3_resnet101",
            "classifier.0.convs.4.1.weight",
            "params/aspp/pool_conv/kernel",
        ),
        (
            "deeplabv3_resnet101",
            "classifier.0.convs.4.2.running_mean",
            "batch_stats/aspp/pool_norm/mean",
        ),
        (
            "deeplabv3_resnet101",
            "classifier.0.project.0.weight",
            "params/aspp/project/kernel",
        ),
        (
            "deeplabv3_resnet101",
            "classifier.0.project.1.weight",
            "params/aspp/project_norm/scale",
        ),
        ("deeplabv3_resnet101", "classifier.1.weight", "params/head_conv/kernel"),
        ("deeplabv3_resnet101", "classifier.2.weight", "params/head_norm/scale"),
        ("deeplabv3_resnet101", "classifier.4.weight", "params/head/kernel"),
        ("deeplabv3_resnet101", "classifier.4.bias", "params/head/bias"),
        ("vgg16", "features.0.weight", "params/conv1_1/kernel"),
        ("vgg16", "features.7.weight", "params/conv2_2/kernel"),
        ("vgg16", "features.10.weight", "params/conv3_1/kernel"),
        ("vgg16", "features.28.bias", "params/conv5_3/bias"),
        ("vgg16", "classifier.0.bias", "params/fc6/bias"),
        ("vgg16", "classifier.3.bias", "params/fc7/bias"),
        (
            "deeplab_v2",
            "base.layer1.conv1.conv.weight",
            "params/backbone/conv1/kernel",
        ),
        (
            "deeplab_v2",
            "base.layer2.block1.shortcut.conv.weight",
            "params/backbone/stage1/block0/shortcut/kernel",
        ),
        (
            "deeplab_v2",
            "base.layer4.block23.increase.bn.running_var",
            "batch_stats/backbone/stage3/block22/norm3/var",
        ),
        ("deeplab_v2", "base.aspp.c3.weight", "params/aspp/conv3/kernel"),
        ("deeplab_v2", "base.aspp.c3.bias", "params/aspp/conv3/bias"),
    ],
)
def test_values_land_where_they_should(network, name, path):
    theirs = small(network)[name]
    ours = imported(network)[path]
    if theirs.ndim == 4:  # out, in, h, w becomes h, w, in, out
        theirs = np.moveaxis(theirs, (0, 1), (3, 2))
    np.testing.assert_array_equal(ours, theirs.astype(np.float32))
    assert ours.flags.c_contiguous


@functools.cache
def imported(network):
    return flat(IMPORTERS[network](small(network)))


def test_dense_layers_of_vgg_are_convolutions_of_the_whole_map():
    state_dict = small("vgg16")
    # torch flattens channel by channel, and each of them row by row.
    columns = state_dict["classifier.0.weight"][5].reshape(32, 7, 7)
    kernel = imported("vgg16")["params/fc6/kernel"]
    np.testing.assert_array_equal(kernel[2, 4, 31, 5], np.float32(columns[31, 2, 4]))
    kernel = imported("vgg16")["params/fc7/kernel"]
    expected = state_dict["classifier.3.weight"].T.astype(np.float32)
    np.testing.assert_array_equal(kernel, expected[None, None])


def test_initial_weights_of_deeplab_v2_hold_a_backbone_alone():
    state_dict = {
        name.removeprefix("base."): array
        for name, array in small("deeplab_v2").items()
        if "aspp" not in name
    }
    # Of the DeepLab v1 that it is, for the 91 classes of COCO.
    state_dict |= {"fc.weight": np.ones((91, 128, 1, 1)), "fc.bias": np.ones(91)}
    variables = from_deeplab_v2(state_dict)
    assert set(variables["params"]) == {"backbone"}
    expected = {k: v for k, v in imported("deeplab_v2").items() if "aspp" not in k}
    assert flat(variables).keys() == expected.keys()
    for path, array in flat(variables).items():
        np.testing.assert_array_equal(array, expected[path])


def test_colours_of_deeplab_v2_are_folded_into_the_first_layer():
    state_dict = small("deeplab_v2")
    rgb = np.random.default_rng(1).integers(0, 256, (7, 7, 3), np.uint8)

    def first_layer(variables, window):
        """What the window gives at its middle, normalised."""
        norm = variables["batch_stats"]["backbone"]["norm1"]
        kernel = variables["params"]["backbone"]["conv1"]["kernel"]
        return np.einsum("hwi,hwio->o", window, kernel) - norm["mean"]

    caffe = rgb[..., ::-1] - np.array((104.008, 116.669, 122.675))
    expected = first_layer(from_deeplab_v2(state_dict), caffe)
    ours = from_deeplab_v2(state_dict, normalized_rgb=True)
    actual = first_layer(ours, np.asarray(normalize(jnp.asarray(rgb))))
    np.testing.assert_allclose(actual, expected, rtol=1e-4)
    changed = {
        k for k, v in flat(ours).items() if (v != imported("deeplab_v2")[k]).any()
    }
    assert changed == {
        "params/backbone/conv1/kernel",
        "batch_stats/backbone/norm1/mean",
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"bn9.bias": np.ones(5)},
            r"^torchvision_resnet: 1 unexpected \(bn9.bias \(5,\)\); the names must be",
        ),
        (
            {"layer2.3.conv3.weight": None, "bn1.running_var": None},
            r"2 missing \(bn1.running_var \(4,\), "
            r"layer2.3.conv3.weight \(32, 8, 1, 1\)\)",
        ),
        (
            {"layer1.0.conv2.weight": np.ones((4, 4, 1, 1))},
            r"1 of the wrong shape \(layer1.0.conv2.weight \(4, 4, 1, 1\) must be "
            r"\(4, 4, 3, 3\)\)",
        ),
        (
            {"layer3.7.conv1.weight": np.ones((16, 64, 1, 1))},
            # Three kernels and the four arrays of each of their norms.
            r"1 unexpected \(layer3.7.conv1.weight .*; 15 missing \(layer3.6.conv1.w",
        ),
        (
            {"conv1.weight": np.ones(3)},
            r"must be \(3, 3, 7, 7\).* and \d+ more\)",
        ),
    ],
)
def test_what_does_not_fit_is_listed(changes, message):
    state_dict = {
        name: array
        for name, array in (small("resnet50") | changes).items()
        if array is not None
    }
    with pytest.raises(ValueError, match=message) as caught:
        from_torchvision_resnet(state_dict)
    assert len(str(caught.value)) < 1000


def test_empty_state_dict_is_missing_everything():
    with pytest.raises(
        ValueError, match=r"^deeplab_v2: \d+ missing \(layer1.conv1.conv"
    ):
        from_deeplab_v2({})

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from segloss.models import ResNet, make_model
from segloss.models.pretrained import (
    Weights,
    fit_bands,
    put_into,
    warn_of_another_resnet,
)
from segloss.models.vgg import VGG16

RESNET = dict(stage_sizes=(1, 1, 1, 1), width=4)
DEEPLAB_V2 = dict(name="deeplab_v2", **RESNET)
DEEPLAB_V3 = dict(name="deeplab_v3", **RESNET)
MULTI_SCALE = dict(name="multi_scale", network=DEEPLAB_V2)
FRESH, FILE = 7.0, 1.0


@functools.cache
def shapes_of(model):
    images = jnp.zeros((1, 33, 33, 3))
    init = functools.partial(model.init, train=False)
    return jax.eval_shape(init, jax.random.key(0), images)


def filled(model, value):
    """Variables of the network, all of one value."""
    variables = {"params": {}, "batch_stats": {}} | shapes_of(model)
    return jax.tree.map(lambda s: np.full(s.shape, value, np.float32), variables)


def network(num_classes=5, **fields):
    return filled(make_model(num_classes=num_classes, **fields), FRESH)


def weights(model):
    arrays = traverse_util.flatten_dict(filled(model, FILE), sep="/")
    return Weights(source="IN.pth", layout="segloss", arrays=arrays)


def values(variables):
    """Path to the value that fills the array."""
    arrays = traverse_util.flatten_dict(variables, sep="/")
    assert all((a == a.flat[0]).all() for a in arrays.values())
    return {path: a.flat[0] for path, a in arrays.items()}


def test_file_of_the_whole_network_replaces_everything():
    file = weights(make_model(num_classes=5, **DEEPLAB_V3))
    fresh = network(**DEEPLAB_V3)
    variables = put_into(fresh, file, num_classes=5)
    assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, fresh)
    assert {*values(variables).values()} == {FILE}
    assert {*values(fresh).values()} == {FRESH}


@pytest.mark.parametrize(
    ("fields", "root"), [(DEEPLAB_V2, ""), (MULTI_SCALE, "network/")]
)
def test_file_of_a_backbone_leaves_the_head_fresh(fields, root):
    lacking = rf"lacks 8 of \d+ arrays, .*: params/{root}aspp/conv0/.* and 3 more"
    with pytest.warns(UserWarning, match=lacking) as caught:
        variables = put_into(
            network(**fields), weights(ResNet(**RESNET)), num_classes=5
        )
    assert len(caught) == 1
    for path, value in values(variables).items():
        assert value == (FRESH if "aspp" in path else FILE), path


def test_file_of_the_network_goes_into_multi_scale():
    file = weights(make_model(num_classes=5, **DEEPLAB_V2))
    variables = put_into(network(**MULTI_SCALE), file, num_classes=5)
    assert {*values(variables).values()} == {FILE}


def test_class_head_of_another_size_is_not_loaded_and_warns():
    file = weights(make_model(num_classes=21, **DEEPLAB_V3))
    message = (
        r"^IN.pth has 21 classes, the network 5; the class head is not loaded: "
        r"params/head/bias \(21,\) to \(5,\), "
        r"params/head/kernel \(1, 1, 16, 21\) to \(1, 1, 16, 5\)\.$"
    )
    with pytest.warns(UserWarning, match=message) as caught:
        variables = put_into(network(**DEEPLAB_V3), file, num_classes=5)
    assert len(caught) == 1
    kept = {path for path, value in values(variables).items() if value == FRESH}
    assert kept == {"params/head/bias", "params/head/kernel"}


def test_no_score_layer_of_an_fcn_is_loaded_for_other_classes():
    fcn = dict(name="fcn", width=4, fc_width=8, fc_window=1)
    with pytest.warns(UserWarning, match="score_fr.* and 3 more"):
        variables = put_into(
            network(**fcn), weights(make_model(num_classes=21, **fcn)), num_classes=5
        )
    for path, value in values(variables).items():
        assert value == (FRESH if "score" in path else FILE), path


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (
            ResNet(stage_sizes=(1, 1, 1, 1), width=8),
            r"^IN.pth: \d+ arrays do not fit the network: params/backbone/conv1/kernel "
            r"\(7, 7, 3, 8\) must be \(7, 7, 3, 4\), .* and \d+ more\.$",
        ),
        (
            ResNet(stage_sizes=(1, 2, 1, 1), width=4),
            r"params/backbone/stage2/block1/conv1/kernel \(1, 1, 32, 8\) must be abse",
        ),
        (
            make_model(num_classes=5, **DEEPLAB_V3),
            r"params/aspp/conv0/kernel \(1, 1, 128, 16\) must be \(3, 3, 128, 5\), ",
        ),
        (
            make_model("unet", num_classes=5, depth=1, width=4),
            r"^IN.pth belongs to another network: it has bottom, .*, the network aspp,",
        ),
    ],
    ids=["width", "depth", "head", "kind"],
)
def test_what_does_not_fit_is_an_error_with_both_shapes(file, message):
    with pytest.raises(ValueError, match=message):
        put_into(network(**DEEPLAB_V2), weights(file), num_classes=5)


@pytest.mark.parametrize(
    ("file", "kept", "gap"),
    [
        (ResNet(**RESNET), r"(?!.*block1/)", "stage2/block1/norm1/mean"),
        (ResNet(**RESNET), r"params/conv1", "conv1/.*|stage1"),
        (ResNet(**RESNET), r"(?!.*stage4/)", "stage4/block0/norm1/mean"),
        (ResNet(**RESNET), r"(?!.*/var)", "norm1/var"),
        (make_model(num_classes=5, **DEEPLAB_V2), "params/aspp", "norm1/mean"),
        (make_model(num_classes=5, **DEEPLAB_V2), "(?!.*/aspp/conv3)", "aspp/conv3/b"),
    ],
    ids=["depth", "one_array", "stage", "statistics", "head_alone", "head"],
)
def test_part_of_a_module_is_an_error_with_the_shapes(file, kept, gap):
    deep = DEEPLAB_V2 | dict(stage_sizes=(1, 2, 1, 1))
    fields = deep if gap.startswith("stage2") else DEEPLAB_V2
    file = weights(file)
    arrays = {p: a for p, a in file.arrays.items() if re.match(kept, p)}
    file = dataclasses.replace(file, arrays=arrays)
    message = rf"^IN.pth must .* whole .* it lacks \d+ arrays \(.*({gap}).* \(.*\d,\)"
    with pytest.raises(ValueError, match=message):
        put_into(network(**fields), file, num_classes=5)


def test_unet_may_lack_its_head_alone():
    unet = dict(name="unet", depth=1, width=4)
    file = weights(make_model(num_classes=5, **unet))
    for path in [p for p in file.arrays if "/head/" in p]:
        del file.arrays[path]
    with pytest.warns(UserWarning, match="lacks 2 of"):
        put_into(network(**unet), file, num_classes=5)
    for path in [p for p in file.arrays if "/up0/" in p]:
        del file.arrays[path]
    with pytest.raises(ValueError, match=r"lacks \d+ arrays .*/up0/"):
        put_into(network(**unet), file, num_classes=5)


@pytest.mark.parametrize(
    ("fields", "layout", "changes"),
    [
        (
            DEEPLAB_V3,
            "deeplab_v2",
            r"model.version='v1' \(is 'v1.5'\), model.ceil_pool=True \(is False\)\.$",
        ),
        (DEEPLAB_V3 | dict(ceil_pool=True), "deeplab_v2", r"set model.version='v1' .*"),
        (DEEPLAB_V2, "torchvision_resnet", r"set model.version='v1.5' \(is 'v1'\), .*"),
        (MULTI_SCALE, "torchvision_deeplabv3", "set model.network.version='v1.5'"),
    ],
)
def test_weights_of_another_resnet_warn_which_fields_to_set(fields, layout, changes):
    model = make_model(num_classes=5, **fields)
    with pytest.warns(UserWarning, match=rf"^IN.pth \({layout}\) fits .*{changes}"):
        warn_of_another_resnet(model, Weights("IN.pth", layout, {}))


@pytest.mark.parametrize(
    ("fields", "layout"),
    [
        (DEEPLAB_V3, "torchvision_deeplabv3"),
        (MULTI_SCALE, "deeplab_v2"),
        (dict(name="segnet"), "torchvision_vgg16"),
        (DEEPLAB_V2, "segloss"),
    ],
)
def test_weights_of_the_same_resnet_do_not_warn(fields, layout):
    model = make_model(num_classes=5, **fields)
    warn_of_another_resnet(model, Weights("IN.pth", layout, {}))


def test_heads_of_several_numbers_of_classes_are_no_head():
    file = weights(make_model(num_classes=21, **DEEPLAB_V3))
    file.arrays["params/head/bias"] = np.ones(20, np.float32)
    message = (
        r"2 arrays do not fit the network: params/head/bias \(20,\) must be \(5,\), "
        r"params/head/kernel \(1, 1, 16, 21\) must be \(1, 1, 16, 5\)"
    )
    with pytest.raises(ValueError, match=message):
        put_into(network(**DEEPLAB_V3), file, num_classes=5)


def test_batch_statistics_do_not_go_into_group_norms():
    fields = dict(norm="group", **DEEPLAB_V2)
    with pytest.raises(ValueError, match=r"batch_stats/.* \(4,\) must be absent"):
        put_into(network(**fields), weights(ResNet(**RESNET)), num_classes=5)


def test_dense_layers_of_vgg_are_loaded_only_if_all_of_them_fit():
    file = weights(VGG16(width=4, fc_width=16))
    variables = put_into(
        filled(VGG16(width=4, fc_width=16), FRESH), file, num_classes=5
    )
    assert {*values(variables).values()} == {FILE}
    # Its `fc6` has a window of 3, so what follows does not fit, whatever its shape.
    fresh = network(name="deeplab_v1", width=4, fc_width=16)
    with (
        pytest.warns(UserWarning, match=r"lacks 6 of 32 arrays.*fc7/kernel \(1, 1, 16"),
        pytest.warns(UserWarning, match=r"unused .*: params/backbone/fc6/bias .*fc7/k"),
    ):
        variables = put_into(fresh, file, num_classes=5)
    for path, value in values(variables).items():
        assert value == (FRESH if "fc" in path or "head" in path else FILE), path


def test_biases_of_vgg_become_means_where_norms_follow():
    file = weights(VGG16(width=4))
    fresh = network(name="segnet", width=4)
    with pytest.warns(UserWarning, match=r"lacks \d+ of \d+ arrays"):
        variables = put_into(fresh, file, num_classes=5)
    expected = {"kernel": FILE, "scale": FRESH, "bias": FRESH, "var": FRESH}
    # So (x - mean) is x + bias, as without a norm.
    expected["mean"] = -FILE
    for path, value in values(variables).items():
        kind = path.rpartition("/")[2]
        assert value == (expected[kind] if "/backbone/" in path else FRESH), path


@pytest.mark.parametrize(
    ("fields", "kernel"),
    [
        (DEEPLAB_V3, "backbone/conv1/kernel"),
        (dict(name="unet", depth=1, width=6), "down0/conv0/conv/kernel"),
        (
            dict(name="unet", depth=1, width=6, input_stride=2),
            "down0/conv0/conv/kernel",
        ),
    ],
)
def test_first_convolution_for_rgb_is_spread_over_other_bands(fields, kernel):
    model = make_model(num_classes=5, **fields)
    of_rgb, path = weights(model), f"params/{kernel}"
    rng = np.random.default_rng(0)
    of_rgb.arrays[path] = rng.normal(size=of_rgb.arrays[path].shape).astype(np.float32)
    images = jnp.zeros((1, 33, 33, 7))
    init = functools.partial(model.init, train=False)
    shapes = {"params": {}, "batch_stats": {}}
    shapes |= jax.eval_shape(init, jax.random.key(0), images)
    fresh = jax.tree.map(lambda s: np.full(s.shape, FRESH, np.float32), shapes)
    fitted = fit_bands(of_rgb, fresh)
    assert fitted.adapted == "first convolution adapted from RGB to 7 bands"
    variables = put_into(fresh, fitted, num_classes=5)
    found = traverse_util.flatten_dict(variables, sep="/").pop(path)
    theirs = of_rgb.arrays[path]
    for pixel in range(theirs.shape[2] // 3):
        mean = sum(theirs[:, :, 3 * pixel + c] for c in range(3)) / 7
        for band in range(7):
            np.testing.assert_allclose(found[:, :, 7 * pixel + band], mean, rtol=1e-5)
    assert fit_bands(of_rgb, filled(model, FRESH)) is of_rgb


def test_weights_of_another_width_are_not_adapted():
    file = weights(make_model(num_classes=5, **DEEPLAB_V3))
    wider = network(name="deeplab_v3", stage_sizes=(1, 1, 1, 1), width=8)
    assert fit_bands(file, wider) is file

"""Published weights of EfficientNet-Lite."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from network_cases import random_image, random_weights

from segloss.data.augment import normalize
from segloss.models import EfficientNetLite, make_model
from segloss.models.efficientnet_lite import EFFICIENTNET_LITE
from segloss.models.pretrained import (
    digest_of_weights,
    find_weights,
    from_efficientnet_lite,
    load_weights,
    put_into,
    read_weights,
)

ORACLES = Path(__file__).parents[1] / "oracles"


def each_published(*slow):
    """Each network with published weights, `slow` ones only in the slow tests."""
    absent = "the package of {} is not installed: it is in the extra 'pretrained'"
    params = []
    for name in EFFICIENTNET_LITE:
        lacks = digest_of_weights(name) is None
        marks = [pytest.mark.skipif(lacks, reason=absent.format(name))]
        marks += [pytest.mark.slow] * (name in slow)
        params.append(pytest.param(name, marks=marks))
    return pytest.mark.parametrize("name", params)


@functools.cache
def tiny():
    """A state dict of a small network."""
    values = np.load(ORACLES / "network_values.npz")
    return random_weights(json.loads(str(values["tiny efficientnet_lite/shapes"])))


def test_colours_are_folded_into_the_first_layer():
    rgb = np.random.default_rng(1).integers(0, 256, (3, 3, 3), np.uint8)

    def first_layer(variables, window):
        """What the window gives at its middle, normalised."""
        kernel = variables["params"]["stem"]["kernel"]
        mean = variables["batch_stats"]["stem_norm"]["mean"]
        return np.einsum("hwi,hwio->o", window, kernel) - mean

    expected = first_layer(from_efficientnet_lite(tiny()), (rgb - 127.0) / 128)
    ours = from_efficientnet_lite(tiny(), normalized_rgb=True)
    actual = first_layer(ours, np.asarray(normalize(jnp.asarray(rgb))))
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_the_classifier_is_set_aside_and_each_other_name_used(tmp_path):
    classifier = {
        "_conv_head.weight": np.ones((1280, 8, 1, 1)),
        "_bn1.running_var": np.ones(1280),
        "_fc.bias": np.ones(1000),
    }
    np.savez(tmp_path / "w.npz", **tiny(), **classifier)
    weights = load_weights(tmp_path / "w.npz")
    assert weights.layout == "efficientnet_lite"
    counters = [name for name in tiny() if name.endswith("num_batches_tracked")]
    assert len(weights.arrays) == len(tiny()) - len(counters)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            # EfficientNet-B0 has the same names and more.
            {"_blocks.1._se_reduce.weight": np.ones((1, 4, 1, 1))},
            r"^efficientnet_lite: 1 unexpected \(_blocks.1._se_reduce.weight",
        ),
        (
            {"_blocks.5._depthwise_conv.weight": np.ones((42, 1, 3, 3))},
            r"1 of the wrong shape .* must be \(48, 1, 5, 5\)\)",
        ),
        ({"_blocks.2._bn2.bias": None}, r"1 missing \(_blocks.2._bn2.bias \(6,\)\)"),
        (
            # An eighth stage, of other channels than the seventh.
            {"_blocks.8._project_conv.weight": np.ones((9, 48, 1, 1))},
            r"14 missing .*_blocks.8._project_conv.weight .* must be \(8, 48, 1, 1\)\)",
        ),
    ],
)
def test_what_does_not_fit_is_listed(changes, message):
    state_dict = {k: v for k, v in (tiny() | changes).items() if v is not None}
    with pytest.raises(ValueError, match=message):
        from_efficientnet_lite(state_dict)


@each_published()
def test_published_weights_fit_a_network_and_leave_its_classifier_fresh(name):
    model = make_model("backbone_unet", num_classes=3, backbone=name, width=2)
    init = functools.partial(model.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 33, 33, 3)))
    fresh = jax.tree.map(lambda x: np.full(x.shape, np.nan, np.float32), shapes)
    with pytest.warns(UserWarning, match=r"lacks \d+ of \d+ arrays, which keep their"):
        variables = put_into(fresh, load_weights(find_weights(name)), num_classes=3)
    for path, leaf in jax.tree.leaves_with_path(variables):
        assert np.isfinite(leaf).all() == (path[1].key == "backbone"), path


@each_published("efficientnet_lite1", "efficientnet_lite2")
def test_scores_of_published_weights_are_those_of_torch(name):
    file = read_weights(find_weights(name))
    network = EfficientNetLite(**EFFICIENTNET_LITE[name])
    apply = jax.jit(functools.partial(network.apply, train=False))
    stored = np.load(ORACLES / "efficientnet_scores.npz")
    # Each size compiles for seconds.
    sizes = ((96, 130), (75, 64)) if name != "efficientnet_lite0" else ((96, 130),)
    for hw in sizes:
        features = apply(from_efficientnet_lite(file), random_image(hw))[-1]
        expected = stored[f"{name}/{hw[0]}x{hw[1]}"]
        actual = scores(file, np.asarray(features, np.float64))
        np.testing.assert_allclose(actual, expected, atol=1e-4 * np.ptp(expected))


def scores(file, features):
    """The classifier, which the network leaves out, in NumPy."""
    x = features @ file["_conv_head.weight"][:, :, 0, 0].T
    scale, bias, mean, var = (
        file[f"_bn1.{k}"] for k in ("weight", "bias", "running_mean", "running_var")
    )
    x = np.clip((x - mean) / np.sqrt(var + 1e-3) * scale + bias, 0, 6)
    return x.mean((1, 2))[0] @ file["_fc.weight"].T + file["_fc.bias"]

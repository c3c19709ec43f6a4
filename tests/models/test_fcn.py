import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segloss.models import make_model

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
IMAGES = jnp.array(RNG.normal(size=(2, 75, 130, 3)), jnp.float32)
make_tiny = functools.partial(
    make_model,
    "fcn",
    num_classes=3,
    stage_sizes=(1,) * 5,
    width=2,
    fc_width=4,
    fc_window=3,
)


@functools.cache
def variables():
    """Of FCN-8s; it holds those of FCN-16s and -32s."""
    init = jax.jit(functools.partial(make_tiny().init, train=False))
    variables = init(KEY, IMAGES)
    for name in ("score_fr", "score_pool4", "score_pool3"):
        score = variables["params"][name]
        assert not any(leaf.any() for leaf in jax.tree.leaves(score))
        score["kernel"] = jnp.array(RNG.normal(size=score["kernel"].shape), jnp.float32)
    return variables


@functools.partial(jax.jit, static_argnames=("stride", "resize"))
def predict(variables, stride, resize):
    model = make_tiny(stride=stride)
    return model.apply(variables, IMAGES, train=False, resize=resize)


@pytest.mark.parametrize(
    ("stride", "parameters"),
    [
        # VGG-16 without `fc8`, 134,260,544, and 4096 x 21 + 21 of scores: "134 M" in
        # table 1 of arXiv:1411.4038, where the fixed enlargement does not count.
        (32, 134_346_581),
        # And 512 x 21 + 21 of pool4, 4 x 4 x 21 x 21 of an up-convolution.
        (16, 134_364_410),
        # And 256 x 21 + 21 of pool3, and one more up-convolution.
        (8, 134_376_863),
    ],
)
def test_parameters_are_those_of_the_paper(stride, parameters):
    model = make_model("fcn", num_classes=21, stride=stride)
    init = functools.partial(model.init, train=False)
    variables = jax.eval_shape(init, KEY, jnp.zeros((1, 32, 32, 3)))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == parameters


def test_names_of_variables_are_those_of_the_reference():
    assert variables()["params"].keys() - {"backbone"} == {
        *("score_fr", "score_pool4", "score_pool3", "upscore2", "upscore_pool4")
    }


def test_up_convolutions_begin_as_bilinear_interpolation():
    without_skips = jax.tree.map(lambda leaf: leaf, variables())
    for name in ("score_pool4", "score_pool3"):
        score = without_skips["params"][name]
        score["kernel"] = jnp.zeros_like(score["kernel"])
    logits = predict(without_skips, 32, resize=False)
    assert logits.shape == (2, 3, 5, 3)  # 75 x 130 over 32, rounded up
    assert jnp.std(logits) > 0.1
    # What doubling brings beyond the size of pool4, and then of pool3, is cut off.
    for stride, hw in ((16, (5, 9)), (8, (10, 17))):
        b, h, w, c = logits.shape
        twice = jax.image.resize(logits, (b, 2 * h, 2 * w, c), "bilinear")
        logits = predict(without_skips, stride, resize=False)
        assert logits.shape[1:3] == hw
        np.testing.assert_allclose(logits, twice[:, : hw[0], : hw[1]], atol=1e-5)


def test_scores_of_pools_are_added():
    small = predict(variables(), 16, resize=False)
    coarse = jax.tree.map(lambda leaf: leaf, variables())
    score = coarse["params"]["score_pool4"]
    score["bias"] = score["bias"] + jnp.arange(3.0)
    shifted = predict(coarse, 16, resize=False)
    added = np.broadcast_to(np.arange(3.0), small.shape)
    np.testing.assert_allclose(shifted - small, added, atol=1e-5)


def test_logits_are_enlarged_in_place():
    small = predict(variables(), 8, resize=False)
    logits = predict(variables(), 8, resize=True)
    # Pixel 11 lies 7.5 pixels behind the centre of cell 0, at 3.5: 15/16 of a cell.
    row = small[:, 0, 0] / 16 + small[:, 0, 1] * 15 / 16
    np.testing.assert_allclose(logits[:, 0, 11], row, atol=1e-5)


@pytest.mark.parametrize(
    ("hyperparameter", "message"),
    [
        (dict(stride=4), "FCN: stride must be one of 8, 16, 32, got 4."),
        (dict(fc_width=0), "FCN: fc_width must be >= 1, got 0."),
        (dict(fc_window=4), "FCN: fc_window must be odd and >= 1, got 4."),
        (dict(dropout=1.0), r"FCN: dropout must be in \[0, 1\), got 1.0."),
        (dict(stage_sizes=(1, 1, 2, 2, 0)), "FCN: stage_sizes must be five numbers"),
        (dict(depth=3), "fcn has no hyperparameter 'depth'; known are norm, "),
    ],
)
def test_wrong_hyperparameters_are_named(hyperparameter, message):
    with pytest.raises(ValueError, match=message):
        make_tiny(**hyperparameter)

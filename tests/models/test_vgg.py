import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segloss.models import VGG16

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


def shapes(images_hw, **hyperparameters):
    init = functools.partial(VGG16(**hyperparameters).init_with_output, train=False)
    return jax.eval_shape(init, KEY, jnp.zeros((1, *images_hw, 3)))


@pytest.mark.parametrize(
    ("hyperparameters", "parameters"),
    [
        # Torchvision's 138,357,544, the paper's 138 M, without `fc8` (4,097,000).
        (dict(fc_width=4096), 134_260_544),
        # Its convolutions, torchvision's `features`.
        (dict(), 14_714_688),
        # 20.5 M with scores of 21 classes: DeepLab-LargeFOV in arXiv:1412.7062.
        (dict(fc_width=1024, fc_window=3, fc_rate=12), 20_483_904),
        # Torchvision's `vgg16_bn.features`, 14,723,136, less 4,224 biases.
        (dict(norm="batch"), 14_718_912),
        # Torchvision's `vgg11.features`.
        (dict(stage_sizes=(1, 1, 2, 2, 2)), 9_220_480),
    ],
)
def test_parameters_are_those_of_the_paper(hyperparameters, parameters):
    _, variables = shapes((32, 32), **hyperparameters)
    leaves = jax.tree.leaves(variables["params"])
    assert sum(leaf.size for leaf in leaves) == parameters


def test_names_of_variables_are_the_checkpoint_format():
    _, variables = shapes((32, 32), fc_width=8, norm="batch")
    stages = ["1_1", "1_2", "2_1", "2_2", "3_1", "3_2", "3_3"]
    stages += ["4_1", "4_2", "4_3", "5_1", "5_2", "5_3"]
    assert jax.tree.map(lambda _: None, variables) == {
        "params": {
            **{f"conv{i}": {"kernel": None} for i in stages},
            **{f"norm{i}": {"bias": None, "scale": None} for i in stages},
            "fc6": {"bias": None, "kernel": None},
            "fc7": {"bias": None, "kernel": None},
        },
        "batch_stats": {f"norm{i}": {"mean": None, "var": None} for i in stages},
    }


@pytest.mark.parametrize(
    ("hyperparameters", "sides"),
    [
        (dict(), [161, 81, 41, 21, 11]),
        (dict(output_stride=16), [161, 81, 41, 21, 21]),
        (dict(output_stride=8, pool_window=3), [161, 81, 41, 41, 41]),
    ],
)
def test_pooling_rounds_sizes_up_until_the_stride_is_reached(hyperparameters, sides):
    maps, _ = shapes((321, 322), **hyperparameters)
    assert [m.shape[1:3] for m in maps] == [(s, s) for s in sides]


def test_pooling_of_3x3_pads_both_sides_alike():
    # Brightest at (0, 3): two of the windows at rows and columns -1, 1, 3 hold it.
    model = VGG16(stage_sizes=(1,) * 5, width=1, pool_window=3)
    image = jnp.zeros((1, 6, 6, 1)).at[0, 0, 3].set(5.0)
    variables = jax.jit(functools.partial(model.init, train=False))(KEY, image)
    kernel = variables["params"]["conv1_1"]["kernel"]
    variables["params"]["conv1_1"]["kernel"] = kernel.at[:].set(0).at[1, 1].set(1)
    pool1, *_ = jax.jit(functools.partial(model.apply, train=False))(variables, image)
    expected = [[0, 5, 5], [0, 0, 0], [0, 0, 0]]
    np.testing.assert_array_equal(pool1[0, :, :, 0], expected)


def test_dilated_stages_hold_the_maps_of_the_strided():
    """Atrous convolution: what striding leaves out lies in between."""
    strided = VGG16(stage_sizes=(1,) * 5, width=2)
    dilated = VGG16(stage_sizes=(1,) * 5, width=2, output_stride=8)
    image = jnp.array(RNG.normal(size=(1, 75, 66, 3)), jnp.float32)

    @jax.jit
    def maps(variables):
        how = dict(train=False, sample_valid=None)
        coarse = strided.apply(variables, image, train=False)[3]
        fine = dilated.apply(variables, image, train=False)[3]
        stage5 = functools.partial(strided.apply, variables, method="stage", **how)
        return coarse, fine, stage5(coarse, 5), stage5(fine, 5, rate=2)

    variables = jax.jit(functools.partial(strided.init, train=False))(KEY, image)
    pool4, fine_pool4, conv5, fine_conv5 = maps(variables)
    assert fine_pool4.shape == (1, 10, 9, 16)
    assert conv5.max() > 0.1
    np.testing.assert_array_equal(fine_pool4[:, ::2, ::2], pool4)
    np.testing.assert_allclose(fine_conv5[:, ::2, ::2], conv5, atol=1e-5)


@pytest.mark.parametrize(
    ("hyperparameter", "message"),
    [
        (dict(width=0), "VGG16: width must be >= 1, got 0."),
        (dict(output_stride=4), "VGG16: output_stride must be one of 8, 16, 32, got 4"),
        (dict(pool_window=4), "VGG16: pool_window must be one of 2, 3, got 4."),
        (dict(fc_window=2), "VGG16: fc_window must be odd and >= 1, got 2."),
        (dict(dropout=1), r"VGG16: dropout must be in \[0, 1\), got 1."),
        (dict(stage_sizes=(1, 2)), "VGG16: stage_sizes must be five numbers >= 1, got"),
    ],
)
def test_wrong_hyperparameters_are_named(hyperparameter, message):
    with pytest.raises(ValueError, match=message):
        VGG16(**hyperparameter)

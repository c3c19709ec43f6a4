import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segloss.models import make_model
from segloss.models.deeplab import Decoder

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
IMAGES = jnp.array(RNG.normal(size=(4, 33, 41, 3)), jnp.float32)
NAMES = ("deeplab_v2", "deeplab_v3", "deeplab_v3_plus")
each_network = pytest.mark.parametrize("name", NAMES)
make_tiny = functools.partial(
    make_model, num_classes=3, stage_sizes=(1, 1, 1, 1), width=4
)


def init(model):
    return jax.jit(functools.partial(model.init, train=False))(KEY, IMAGES)


def shapes(model, images=IMAGES, **options):
    """Of the logits, and of the variables."""
    init_with_output = functools.partial(model.init_with_output, train=False, **options)
    return jax.eval_shape(init_with_output, KEY, images)


def convolutions(model):
    """Parameters of each convolution, in order."""
    apply = functools.partial(model.apply, train=False)
    equations = jax.make_jaxpr(apply)(shapes(model)[1], IMAGES).eqns
    return [
        (equation.params, equation.outvars[0].aval.dtype)
        for equation in equations
        if equation.primitive.name == "conv_general_dilated"
    ]


@pytest.mark.parametrize(
    ("name", "backbone", "parameters"),
    [
        # kazuto1011/deeplab-pytorch: DeepLabV2_ResNet101_MSC(n_classes=21).
        ("deeplab_v2", "resnet101", 44_048_532),
        # torchvision: deeplabv3_resnet50 and .._resnet101, num_classes=21, no aux_loss.
        ("deeplab_v3", "resnet50", 39_638_869),
        ("deeplab_v3", "resnet101", 58_630_997),
        # jfzhang95/pytorch-deeplab-xception: DeepLab("resnet", num_classes=21).
        ("deeplab_v3_plus", "resnet101", 59_344_309),
    ],
)
def test_parameters_are_those_of_public_implementations(name, backbone, parameters):
    model = make_model(name, num_classes=21, backbone=backbone)
    _, variables = shapes(model)
    leaves = jax.tree.leaves(variables["params"])
    assert sum(leaf.size for leaf in leaves) == parameters
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}

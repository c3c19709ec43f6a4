"""Logits and gradients of networks in torch, with the same weights."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from network_cases import (
    CASES,
    NUM_CLASSES,
    random_image,
    random_labels,
    random_weights,
    sample,
)

from segloss.losses import softmax_cross_entropy
from segloss.models import EfficientNetLite, ResNet, make_model
from segloss.models.pretrained import (
    from_deeplab_v2,
    from_efficientnet_lite,
    from_torchvision_deeplabv3,
    from_torchvision_resnet,
    from_torchvision_vgg16,
)
from segloss.models.vgg import VGG16

pytestmark = pytest.mark.shared_out

ORACLES = pathlib.Path(__file__).parents[1] / "oracles"
IMPORTERS = {
    "efficientnet_lite": from_efficientnet_lite,
    "resnet": from_torchvision_resnet,
    "deeplab_v2": from_deeplab_v2,
    "deeplab_v3": from_torchvision_deeplabv3,
    "multi_scale": from_deeplab_v2,
    "vgg16": from_torchvision_vgg16,
}
BACKBONES = {"efficientnet_lite": EfficientNetLite, "resnet": ResNet, "vgg16": VGG16}


@functools.cache
def stored_values():
    return np.load(ORACLES / "network_values.npz")


@functools.cache
def make_network(case):
    """What maps variables and images to logits, and the variables."""
    name, hyperparameters, _ = CASES[case]
    shapes = json.loads(str(stored_values()[f"{case}/shapes"]))
    variables = IMPORTERS[name](random_weights(shapes))
    if name in BACKBONES:
        backbone = BACKBONES[name](**hyperparameters)
        return lambda *arrays: backbone.apply(*arrays, train=False)[-1], variables
    if name == "multi_scale":
        hyperparameters = dict(network=dict(hyperparameters, name="deeplab_v2"))
        variables = {kind: {"network": tree} for kind, tree in variables.items()}
    model = make_model(name, num_classes=NUM_CLASSES, **hyperparameters)
    return functools.partial(model.apply, train=False), variables


@pytest.mark.parametrize(
    ("case", "hw"),
    [
        pytest.param(
            case,
            hw,
            id=f"{case} {hw[0]}x{hw[1]}",
            marks=() if case.startswith("tiny") else pytest.mark.slow,
        )
        for case, (*_, sizes) in CASES.items()
        for hw in sizes
    ],
)
def test_logits_and_gradient_by_the_image_are_those_of_torch(case, hw):
    network, variables = make_network(case)

    def loss_and_logits(image, variables):
        logits = network(variables, image)
        labels = jnp.asarray(random_labels(logits.shape))
        return softmax_cross_entropy(logits, labels), logits

    value_and_grad = jax.jit(jax.value_and_grad(loss_and_logits, has_aux=True))
    (loss, logits), gradient = value_and_grad(random_image(hw), variables)
    actual = {"logits": sample(logits), "loss": loss, "gradient": sample(gradient)}
    stored = functools.partial("{}/{}x{}/{}".format, case, *hw)
    errors = {}
    for name, values in actual.items():
        expected = stored_values()[stored(name)]
        errors[name] = np.abs(values - expected) / np.abs(expected).max()
    assert errors["logits"].max() < 1e-3
    assert errors["loss"] < 1e-3
    # Torch's own rounding in float32, which full networks of 10**8 units are beyond.
    rounding = stored_values()[stored("gradient_rounding")]
    assert np.quantile(errors["gradient"], 0.99) < max(1e-3, 4 * rounding)
    if case.startswith("tiny"):
        assert errors["gradient"].max() < 1e-3

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segloss.models import make_model

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
make_tiny = functools.partial(make_model, "vnet", num_classes=3, width=2, convs=(1, 1))


@pytest.mark.parametrize(
    ("hyperparameters", "parameters"),
    [
        # The authors' prototxt at github.com/faustomilletari/VNet has 61,986,690. Its 3
        # classes come of a 5x5x5 convolution (12,003), a PReLU (3) and a 1x1x1
        # convolution (12); here of the paper's 1x1x1 convolution (99).
        (dict(num_classes=3, convs=(1, 1, 2, 3, 3)), 61_974_771),
        # The paper's stages have four convolutions more: 125 n^2 weights, n biases and
        # n slopes at n = 32, 64, 64, 128. One class less is 33 parameters less.
        (dict(num_classes=2), 61_974_771 + 3_200_000 + 576 - 33),
    ],
)
def test_parameters_are_those_of_the_paper(hyperparameters, parameters):
    model = make_model("vnet", norm="none", **hyperparameters)
    init = functools.partial(model.init, train=False)
    variables = jax.eval_shape(init, KEY, jnp.zeros((1, 16, 16, 16, 1)))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == parameters


def test_stages_see_what_the_paper_says():
    # Table 1: the receptive fields of the stages on the way down, along one axis.
    fields = [5, 22, 72, 172, 372]
    model = make_model("vnet", num_classes=2, width=1, norm="none")
    image = jnp.ones((1, 512, 1))
    variables = jax.jit(functools.partial(model.init, train=False))(KEY, image)
    # Weights of one sign: nothing cancels.
    variables = jax.tree.map(jnp.ones_like, variables)

    @jax.jit
    @jax.jacrev
    def middles(image):
        _, seen = model.apply(variables, image, train=False, capture_intermediates=True)
        stages = [seen["intermediates"][f"down{i}"]["__call__"][0] for i in range(5)]
        return jnp.stack([x[0, x.shape[1] // 2, 0] for x in stages])

    assert [int((row > 0).sum()) for row in middles(image)] == fields


def test_images_and_volumes_share_the_network():
    """A volume that is the same at each depth gives what its image does."""
    model = make_tiny(norm="none")
    image = jnp.array(RNG.normal(size=(1, 9, 7, 1)), jnp.float32)
    volume = jnp.repeat(image[:, None], 24, axis=1)
    init = jax.jit(functools.partial(model.init, train=False))
    apply = jax.jit(functools.partial(model.apply, train=False))
    variables = init(KEY, volume)

    def flatten(leaf):
        # Kernels of a volume's network have one axis more, over which inputs add up.
        return leaf.sum(axis=0) if leaf.ndim == 5 else leaf

    flat = jax.tree.map(flatten, variables)
    # An up-convolution takes one of its two depths, which are equal in this volume.
    upconv = variables["params"]["up0"]["upconv"]
    both = upconv["kernel"].mean(axis=0)
    upconv["kernel"] = jnp.stack([both, both])
    flat["params"]["up0"]["upconv"]["kernel"] = both
    logits = apply(variables, volume)
    assert logits.shape == (1, 24, 9, 7, 3)
    # In the middle, out of sight of the padding.
    np.testing.assert_allclose(logits[:, 12], apply(flat, image), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("hyperparameter", "message"),
    [
        (dict(width=0), "VNet: width must be >= 1, got 0."),
        (dict(convs=(1, 0)), r"VNet: convs must be .* each >= 1, got \(1, 0\)."),
        (dict(convs=()), r"VNet: convs must be at least one number, .* got \(\)."),
    ],
)
def test_wrong_hyperparameters_are_named(hyperparameter, message):
    with pytest.raises(ValueError, match=message):
        make_tiny(**hyperparameter)

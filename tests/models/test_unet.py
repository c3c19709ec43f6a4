import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segloss.models import make_model
from segloss.models.layers import space_to_depth

pytestmark = pytest.mark.shared_out

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
IMAGES = jnp.array(RNG.normal(size=(4, 9, 7, 3)), jnp.float32)
LABELS = jnp.array(RNG.integers(0, 3, (4, 9, 7)), jnp.int32)
make_tiny = functools.partial(make_model, "unet", num_classes=3, width=4, depth=1)


@functools.cache
def tiny_variables():
    return init(make_tiny())


def init(model, images=IMAGES):
    return jax.jit(functools.partial(model.init, train=False))(KEY, images)


def predict(model, variables, images=IMAGES):
    return jax.jit(functools.partial(model.apply, train=False))(variables, images)


def train(params, images, labels, sample_valid=None, axis_name=None):
    """Mean cross-entropy of the global batch's valid samples, with the statistics."""
    logits, updated = make_tiny(axis_name=axis_name).apply(
        {**tiny_variables(), "params": params},
        images,
        train=True,
        sample_valid=sample_valid,
        mutable=["batch_stats"],
    )
    log_probs = jax.nn.log_softmax(logits)
    losses = -jnp.take_along_axis(log_probs, labels[..., None], axis=-1)
    if sample_valid is None:
        sample_valid = jnp.ones(len(images), bool)
    where = sample_valid.reshape(-1, 1, 1, 1)
    sums = jnp.sum(losses, where=where), jnp.sum(jnp.ones_like(losses), where=where)
    if axis_name is not None:
        sums = jax.lax.psum(sums, axis_name)
    return sums[0] / sums[1], updated["batch_stats"]


value_and_grad = jax.value_and_grad(train, has_aux=True)
jitted_value_and_grad = jax.jit(value_and_grad)


def replica(tree, device):
    return jax.tree.map(lambda a: np.asarray(a)[device], tree)


def assert_trees_close(actual, expected, **tolerance):
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, **tolerance), actual, expected
    )


@pytest.mark.parametrize(
    ("channels", "num_classes", "norm", "parameters"),
    [
        # milesial/Pytorch-UNet with UNet(n_channels=3, n_classes=2, bilinear=False).
        (3, 2, "batch", 31_037_698),
        # The paper's layers for one channel and one class: as often quoted, 31.03 M.
        # From the line above: no 2 * 5888 of norms but 5888 biases, 2 * 64 * 9 weights
        # of the first layer and 64 + 1 of the last less.
        (1, 1, "none", 31_030_593),
    ],
)
def test_parameters_are_those_of_the_paper(channels, num_classes, norm, parameters):
    model = make_model("unet", num_classes=num_classes, norm=norm)
    images = jnp.zeros((1, 16, 16, channels))
    variables = jax.eval_shape(functools.partial(model.init, train=False), KEY, images)
    leaves = jax.tree.leaves(variables["params"])
    assert sum(leaf.size for leaf in leaves) == parameters
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}


def test_names_of_variables_are_the_checkpoint_format():
    model = make_model("unet", num_classes=3, width=4, depth=1)
    variables = jax.eval_shape(functools.partial(model.init, train=False), KEY, IMAGES)
    conv = {"conv": {"kernel": None}, "norm": {"bias": None, "scale": None}}
    block = {"conv0": conv, "conv1": conv}
    bias_and_kernel = {"bias": None, "kernel": None}
    names = jax.tree.map(lambda _: None, variables["params"])
    assert names == {
        "down0": block,
        "bottom": block,
        "upconv0": bias_and_kernel,
        "up0": block,
        "head": bias_and_kernel,
    }
    stats = {"norm": {"mean": None, "var": None}}
    block = {"conv0": stats, "conv1": stats}
    names = jax.tree.map(lambda _: None, variables["batch_stats"])
    assert names == {"down0": block, "bottom": block, "up0": block}


@pytest.mark.parametrize("input_stride", [1, 2])
@pytest.mark.parametrize("hw", [(1, 1), (8, 8), (7, 13), (10, 5)])
def test_logits_have_the_size_of_the_images(hw, input_stride):
    model = make_tiny(depth=3, input_stride=input_stride)
    init_with_output = functools.partial(model.init_with_output, train=False)
    logits, _ = jax.eval_shape(init_with_output, KEY, jnp.zeros((2, *hw, 3)))
    assert logits.shape == (2, *hw, 3)
    assert logits.dtype == jnp.float32


def test_logits_of_odd_sizes_stay_in_place():
    # The same pixels far from the edges, which each size pads and cuts in its own way.
    images = jnp.array(RNG.normal(size=(1, 25, 25, 3)), jnp.float32)
    whole = predict(make_tiny(), tiny_variables(), images)
    cut = predict(make_tiny(), tiny_variables(), images[:, :22, :24])
    np.testing.assert_allclose(cut[:, :12, :12], whole[:, :12, :12], atol=1e-5)
    assert not np.allclose(cut[:, -1], whole[:, 21, :24], atol=1e-3)


def test_every_parameter_has_a_gradient():
    valid = jnp.ones(4, bool)
    (loss, _), grads = jitted_value_and_grad(
        tiny_variables()["params"], IMAGES, LABELS, valid
    )
    assert 0.5 < loss < 5
    for path, grad in jax.tree.leaves_with_path(grads):
        assert jnp.abs(grad).max() > 1e-4, jax.tree_util.keystr(path)


def test_jit_equals_eager():
    expected = make_tiny().apply(tiny_variables(), IMAGES, train=False)
    actual = predict(make_tiny(), tiny_variables())
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_training_on_many_devices_equals_one():
    valid = jnp.array([1, 1, 0, 1], bool)  # the third device holds no valid sample
    params = tiny_variables()["params"]

    def on_device(images, labels, valid):
        (loss, stats), grads = value_and_grad(params, images, labels, valid, "devices")
        return loss, stats, jax.lax.pmean(grads, "devices")

    split = [a.reshape(4, 1, *a.shape[1:]) for a in (IMAGES, LABELS, valid)]
    actual = jax.pmap(on_device, axis_name="devices", devices=jax.devices()[:4])(*split)
    (loss, stats), grads = jitted_value_and_grad(params, IMAGES, LABELS, valid)
    for device in range(4):
        assert_trees_close(
            replica(actual, device), (loss, stats, grads), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("garbage", [0.0, 1e3, jnp.nan])
def test_padding_samples_change_nothing_whatever_they_hold(garbage):
    valid = jnp.array([1, 1, 0, 1], bool)
    params = tiny_variables()["params"]
    expected = jitted_value_and_grad(params, IMAGES, LABELS, valid)
    images = IMAGES.at[2].set(garbage)
    assert_trees_close(jitted_value_and_grad(params, images, LABELS, valid), expected)


def test_remat_computes_again_and_changes_nothing():
    def make_gradient(remat):
        model = make_tiny(remat=remat)

        def loss(params):
            logits, updated = model.apply(
                {**tiny_variables(), "params": params},
                IMAGES,
                train=True,
                mutable=["batch_stats"],
            )
            return jnp.mean(logits**2), updated["batch_stats"]

        return jax.grad(loss, has_aux=True)

    def count(gradient):
        return str(jax.make_jaxpr(gradient)(params)).count("conv_general_dilated[")

    params = tiny_variables()["params"]
    kept, again = make_gradient(False), make_gradient(True)
    assert count(again) == count(kept) + 3 * 2  # two of each of three levels
    assert_trees_close(jax.jit(again)(params), jax.jit(kept)(params), atol=1e-5)


def test_input_stride_is_the_network_on_squares_enlarged():
    model = make_tiny(input_stride=2)
    variables = init(model)
    logits = predict(make_tiny(), variables, space_to_depth(IMAGES, stride=2))
    assert logits.shape == (4, 5, 4, 3)
    enlarged = jax.image.resize(logits, (4, 10, 8, 3), "bilinear")
    actual = predict(model, variables)
    np.testing.assert_allclose(actual, enlarged[:, :9, :7], rtol=1e-5, atol=1e-5)
    # Pixel 1 lies a quarter of the way from the centre of square 0 to that of square 1.
    row = 0.75 * logits[:, 0, 0] + 0.25 * logits[:, 0, 1]
    np.testing.assert_allclose(actual[:, 0, 1], row, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_bfloat16_computes_in_bfloat16_around_float32_parameters(norm):
    model = make_tiny(norm=norm, dtype="bfloat16")
    variables = init(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    apply = functools.partial(model.apply, train=False)
    jaxpr = jax.make_jaxpr(apply)(variables, IMAGES)
    dtypes = [
        equation.outvars[0].aval.dtype
        for equation in jaxpr.eqns
        if equation.primitive.name in ("conv_general_dilated", "dot_general")
    ]
    # Six convolutions and an up-convolution; the last is the head.
    assert dtypes == [jnp.bfloat16] * 7 + [jnp.float32]
    logits = predict(model, variables)
    assert logits.dtype == jnp.float32
    expected = predict(make_tiny(norm=norm), variables)
    np.testing.assert_allclose(logits, expected, atol=0.05 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("hyperparameters", "message"),
    [
        (dict(depth=-1), "UNet: depth must be >= 0, got -1."),
        (dict(width=0), "UNet: width must be >= 1, got 0."),
        (dict(input_stride=0), "UNet: input_stride must be >= 1, got 0."),
        (
            dict(norm="layer"),
            "UNet: norm must be one of batch, frozen, group, none, got 'layer'.",
        ),
        (dict(dtype="float64"), "UNet: dtype must be one of .*, got 'float64'."),
        (
            dict(dept=3),
            "no hyperparameter 'dept'; known are .*, remat, depth, width, ",
        ),
    ],
)
def test_wrong_hyperparameters_are_named(hyperparameters, message):
    with pytest.raises(ValueError, match=message):
        make_model("unet", num_classes=3, **hyperparameters)


def test_unknown_model_lists_the_known():
    with pytest.raises(ValueError, match="no model is named 'resnet'; known are "):
        make_model("resnet", num_classes=3)

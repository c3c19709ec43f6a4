import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from segloss.losses import lovasz_hinge, lovasz_softmax

pytestmark = pytest.mark.shared_out

# One sample of three pixels and two classes. With the errors in order and f for the
# foreground, 1 - IoU as the pixels go wrong one by one is
# class 0: 0.6f 0.3 0.1f: 1/2, 2/3, 1     class 1: 0.6 0.3f 0.1: 1/2, 1, 1
PROBS = jnp.array([[[0.9, 0.1], [0.4, 0.6], [0.3, 0.7]]])
LABELS = jnp.array([[0, 0, 1]])


@pytest.mark.parametrize(
    ("bins", "class_0", "class_1"),
    [
        (None, 0.6 / 2 + 0.3 / 6 + 0.1 / 3, 0.6 / 2 + 0.3 / 2),
        # In one bin, the mean of the foreground before and after the background.
        (
            1,
            (0.7 * (1 / 2 + 1 / 3) + 0.3 * (0 + 1 / 3)) / 2,
            (0.3 * (1 + 1 / 3) + 0.7 * (0 + 1 / 3)) / 2,
        ),
        # 0.1 lies in the first quarter, 0.3 in the second, 0.6 in the third.
        (4, 0.6 / 2 + 0.3 / 6 + 0.1 / 3, 0.6 / 2 + 0.3 / 2),
    ],
)
def test_lovasz_softmax_matches_hand_computed_value(bins, class_0, class_1):
    loss = lovasz_softmax(jnp.log(PROBS), LABELS, bins=bins)
    np.testing.assert_allclose(loss, (class_0 + class_1) / 2, rtol=1e-6)


@pytest.mark.parametrize(
    ("classes", "expected"),
    [("present", 0.7 / 2 + 0.6 / 2), ("all", (0.7 / 2 + 0.6 / 2 + 0.7) / 2)],
)
def test_an_absent_class_is_left_out_or_costs_its_largest_probability(
    classes, expected
):
    logits = jnp.log(PROBS[:, 1:])
    loss = lovasz_softmax(logits, jnp.zeros((1, 2), jnp.int32), classes=classes)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


@pytest.mark.parametrize("bins", [None, 10])
def test_all_pixels_wrong_cost_1_each_class(bins):
    """Class ids taken for foreground, as kornia had them, cost less with 4."""
    labels = jnp.arange(8).reshape(1, 8) % 4
    logits = 1e4 * jax.nn.one_hot((labels + 1) % 4, 4)
    np.testing.assert_allclose(lovasz_softmax(logits, labels, bins=bins), 1, rtol=1e-6)


def jaccard_loss(foreground, wrong):
    """1 - IoU of the foreground and a prediction that is wrong in a set of pixels."""
    predicted = foreground ^ wrong
    union = (foreground | predicted).sum()
    return 1 - (foreground & predicted).sum() / union if union else 0.0


def extension(errors, foreground):
    """Integral over t of the loss of `{i: e_i >= t}`, which needs no weights."""
    thresholds = np.unique([0.0, *errors])
    return sum(
        (high - low) * jaccard_loss(foreground, errors >= high)
        for low, high in itertools.pairwise(thresholds)
    )


def softmax_oracle(logits, labels, valid, *, classes="present", per_image=False):
    """Berman et al.'s mean over classes in float64, over images if any is valid."""
    rows = zip(logits, labels, valid, strict=True)
    if not per_image:
        rows = [tuple(np.concatenate(x) for x in zip(*rows, strict=True))]
    losses = []
    for row_logits, row_labels, row_valid in rows:
        z, y = row_logits[row_valid].astype(np.float64), row_labels[row_valid]
        probs = np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True)
        costs = [
            extension(np.abs((y == k) - probs[:, k]), y == k)
            for k in range(z.shape[-1])
            if classes == "all" or (y == k).any()
        ]
        losses += [np.mean(costs)] if y.size else []
    return np.mean(losses)


def make_batch(seed=0, levels=None):
    """Three samples of 7 pixels and 4 classes, the last absent and a sample void."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(3, 7, 4)).astype(np.float32)
    if levels is not None:
        logits = np.round(logits * levels) / levels
    labels = rng.integers(0, 3, (3, 7), dtype=np.int32)
    valid = rng.random((3, 7)) < np.reshape([0.9, 0.0, 0.7], (3, 1))
    return logits, labels, valid


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("classes", ["present", "all"])
def test_lovasz_softmax_is_the_integral_over_thresholds(classes, per_image):
    settings = {"classes": classes, "per_image": per_image}
    # With few levels many errors are equal, within a kind and across.
    for seed, levels in enumerate([None, 4, 1, 0.5]):
        batch = make_batch(seed, levels)
        np.testing.assert_allclose(
            lovasz_softmax(*batch, **settings),
            softmax_oracle(*batch, **settings),
            rtol=1e-6,
        )


def test_lovasz_softmax_has_the_slope_of_the_integral():
    logits, labels, valid = make_batch()
    grad = jax.grad(lovasz_softmax)(logits, labels, valid)
    directions = np.random.default_rng(1).normal(size=(5, *logits.shape))
    for step in 1e-6 * directions:
        up, down = (
            softmax_oracle(logits.astype(np.float64) + s, labels, valid)
            for s in (step, -step)
        )
        np.testing.assert_allclose((grad * step).sum(), (up - down) / 2, rtol=1e-4)


@pytest.mark.parametrize("bins", [None, 5])
def test_lovasz_softmax_has_all_second_derivatives_of_its_softmax(bins):
    batch = make_batch()[1:]
    # Five bins are too few for the value to be the integral of the slope.
    loss = functools.partial(lovasz_softmax, bins=bins)
    logits = jnp.array(make_batch()[0])
    if bins is None:
        check_grads(lambda x: loss(x, *batch), (logits,), order=2, eps=1e-3, rtol=2e-2)
    else:
        slope = jax.grad(lambda x: loss(x, *batch))
        check_grads(slope, (logits,), order=1, eps=1e-3, rtol=2e-2)


@pytest.mark.parametrize("bins", [1, 3, 50])
@pytest.mark.parametrize("per_image", [False, True])
def test_bins_cost_no_more_than_the_exact_loss_and_at_most_a_bin_less(bins, per_image):
    settings = {"classes": "all", "per_image": per_image}
    for seed in range(4):
        batch = make_batch(seed)
        loss = lovasz_softmax(*batch, bins=bins, **settings)
        exact = softmax_oracle(*batch, **settings)
        assert exact - 1 / bins <= loss <= exact + 1e-6


def test_bins_can_cost_almost_a_bin_less():
    # No label holds class 1, whose 100 errors are 0 but for one just below the half.
    probs = jnp.array([[[0.501, 0.499]] + 99 * [[1.0, 0.0]]])
    labels = jnp.zeros((1, 100), jnp.int32)
    exact, loss = (
        2 * lovasz_softmax(jnp.log(probs), labels, classes="all", bins=bins)
        for bins in (None, 2)
    )
    np.testing.assert_allclose(exact, 0.499 / 100 + 0.499, rtol=1e-5)
    np.testing.assert_allclose(loss, 0.499 / 100 + 0.499 / 100, rtol=1e-5)


# Errors of the first image: 0, 1.5, void, 1.25 and 0; without foreground in the second:
# 1.5, 0, 0, 1 and void.
SCORES = jnp.array([[2.0, -0.5, 9.0, 0.25, -3.0], [0.5, -1.0, -2.0, 0.0, jnp.nan]])
MASK = jnp.array([[1.0, 1, 0.5, 0, 0], [0, 0, 0, 0, 1]])
COUNTED = jnp.array([[1, 1, 0, 1, 1], [1, 1, 1, 1, 0]], bool)


@pytest.mark.parametrize(
    ("per_image", "expected"),
    [
        (True, (1.5 / 2 + 1.25 / 6 + 1.5) / 2),
        # 1 - IoU is 1/2 after 1.5f, then 2/3, 3/4 and 4/5 after 1.5, 1.25 and 1.
        (False, 1.5 * 2 / 3 + 1.25 * (3 / 4 - 2 / 3) + 4 / 5 - 3 / 4),
    ],
)
def test_lovasz_hinge_matches_hand_computed_value(per_image, expected):
    loss = functools.partial(lovasz_hinge, per_image=per_image)
    np.testing.assert_allclose(loss(SCORES, MASK, COUNTED), expected, rtol=1e-6)
    np.testing.assert_allclose(loss(SCORES, MASK == 1, COUNTED), expected, rtol=1e-6)


def test_lovasz_hinge_takes_half_a_label_for_none():
    everywhere = jnp.isfinite(SCORES)
    assert jnp.isnan(lovasz_hinge(SCORES, MASK, everywhere))


@pytest.mark.parametrize("per_image", [False, True])
def test_lovasz_hinge_is_above_its_tangents_where_errors_are_equal(per_image):
    """It is convex in the scores, and this is what a subgradient means."""
    rng = np.random.default_rng(0)
    scores = rng.integers(-2, 3, (2, 20)) / np.float32(2)
    mask = rng.random((2, 20)) < 0.5
    loss = functools.partial(lovasz_hinge, labels=mask, per_image=per_image)
    value, grad = map(np.array, jax.value_and_grad(loss)(scores))
    others = scores + rng.normal(size=(50, 2, 20)).astype(np.float32)
    tangents = value + ((others - scores) * grad).sum(axis=(1, 2))
    above = jax.vmap(loss)(others) - tangents
    assert (above >= -1e-5).all()


@pytest.mark.parametrize("bins", [None, 8])
def test_pixels_of_equal_error_share_the_gradient(bins):
    logits = jnp.zeros((1, 6, 3))
    labels = jnp.array([[0, 0, 1, 1, 2, 2]])
    grad = jax.grad(functools.partial(lovasz_softmax, bins=bins))(logits, labels)
    np.testing.assert_allclose(grad[0, ::2], grad[0, 1::2], rtol=1e-6)
    # By symmetry the label rises by twice what each other class falls.
    np.testing.assert_allclose(grad[0, 0] / grad[0, 0, 1], [-2, 1, 1], rtol=1e-5)


@pytest.mark.parametrize(
    ("hyperparameters", "message"),
    [
        ({"classes": "some"}, "classes must be 'all' or 'present', got 'some'"),
        ({"bins": 0}, r"bins must be in \[1, inf\), got 0"),
    ],
)
def test_lovasz_softmax_refuses(hyperparameters, message):
    with pytest.raises(ValueError, match=f"^lovasz_softmax: {message}"):
        lovasz_softmax(jnp.log(PROBS), LABELS, **hyperparameters)


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("bins", [1, 3, 100, 1000])
def test_a_tpu_multiplies_to_the_same_weights(monkeypatch, bins, per_image):
    def value_and_grad():
        # Without `jit`, which would keep what it compiled for the other platform.
        loss = functools.partial(lovasz_softmax, bins=bins, per_image=per_image)
        with jax.disable_jit():
            return jax.value_and_grad(loss)(*map(jnp.array, make_batch()))

    here = value_and_grad()
    monkeypatch.setattr(
        jax.lax, "platform_dependent", lambda *args, tpu, default: tpu(*args)
    )
    for actual, expected in zip(value_and_grad(), here, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-8)


def test_more_pixels_than_a_row_of_the_sums_that_run_along_them():
    rng = np.random.default_rng(0)
    logits = np.round(rng.normal(size=(2, 1500, 2)), 2).astype(np.float32)
    labels, valid = rng.integers(0, 2, (2, 1500)), rng.random((2, 1500)) < 0.9
    np.testing.assert_allclose(
        lovasz_softmax(logits, labels, valid),
        softmax_oracle(logits, labels, valid),
        rtol=1e-5,
    )


LOSSES = {
    "exact": lovasz_softmax,
    "bins": functools.partial(lovasz_softmax, bins=5),
    "bins per image": functools.partial(lovasz_softmax, bins=5, per_image=True),
    "hinge": lambda x, y, v, **k: lovasz_hinge(x[..., 0], y == 1, v, **k),
}


def make_images():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(8, 4, 3, 3)).astype(np.float32)
    labels = rng.integers(0, 3, (8, 4, 3), dtype=np.int32)
    return logits, labels, rng.random((8, 4, 3)) < 0.8


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
@pytest.mark.parametrize("name", LOSSES)
def test_batch_and_height_may_be_sharded(name, kind):
    kinds = 2 * (jax.sharding.AxisType[kind],)
    mesh = jax.make_mesh((2, 4), ("batch", "height"), axis_types=kinds)
    sharding = jax.NamedSharding(mesh, jax.P("batch", "height"))
    step = jax.jit(jax.value_and_grad(LOSSES[name]))
    images = make_images()
    many = step(*(jax.device_put(x, sharding) for x in images))
    for actual, expected in zip(many, step(*images), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("name", LOSSES)
def test_shard_map_equals_one_device(name, check_vma):
    batch = jax.P("batch")
    value = jax.shard_map(
        functools.partial(LOSSES[name], axis_name="batch"),
        mesh=jax.sharding.Mesh(jax.devices(), "batch"),
        in_specs=batch,
        out_specs=jax.P(),
        check_vma=check_vma,
    )
    images = make_images()
    np.testing.assert_allclose(
        jax.jit(value)(*images), LOSSES[name](*images), rtol=1e-5
    )

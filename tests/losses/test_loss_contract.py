"""What DESIGN.md promises of every loss, checked for each of their settings."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies
from jax.test_util import check_grads

from segloss.losses import soft_dice, soft_iou, softmax_cross_entropy

WEIGHTS = (0.5, 2.0, 1.5)
SETTINGS = {
    "cross_entropy": (softmax_cross_entropy, {}),
    "cross_entropy_by_weights": (
        softmax_cross_entropy,
        dict(class_weights=WEIGHTS, label_smoothing=0.2, normalize_by="weights"),
    ),
    "cross_entropy_by_samples": (softmax_cross_entropy, dict(normalize_by="samples")),
    "dice": (soft_dice, {}),
    "dice_linear": (
        soft_dice,
        dict(denominator="linear", classes="present", class_weights=WEIGHTS),
    ),
    "dice_per_image": (soft_dice, dict(per_image=True, smooth=1)),
    "dice_by_samples": (soft_dice, dict(normalize_by="samples")),
    "iou": (soft_iou, {}),
    "iou_per_image": (
        soft_iou,
        dict(per_image=True, classes="present", normalize_by="samples"),
    ),
    "multi_label": (soft_dice, dict(multi_label=True)),
}


def make_loss(setting, **changes):
    """The loss, which takes class ids also where it is a multi-label loss."""
    function, hyperparameters = SETTINGS[setting]
    loss = functools.partial(function, **(hyperparameters | changes))
    if "multi_label" not in hyperparameters:
        return loss

    def multi_label_loss(logits, labels, valid=None):
        targets = jax.nn.one_hot(labels.astype(jnp.int32), logits.shape[-1])
        return loss(logits, targets, None if valid is None else valid[..., None])

    return multi_label_loss


def make_batch(seed=0):
    """Four samples of 6 x 4 pixels and 3 classes: one all void, the others partly."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(4, 6, 4, 3)).astype(np.float32)
    labels = rng.integers(0, 3, size=(4, 6, 4), dtype=np.int32)
    valid = rng.random((4, 6, 4)) < np.reshape([0, 0.9, 0.5, 0.7], (4, 1, 1))
    return logits, labels, valid


LOGITS, LABELS, VALID = make_batch()
SHARES_ONE_BATCH = hypothesis.settings(
    max_examples=10, derandomize=True, deadline=None, database=None
)


@functools.cache
def value_and_grad(setting, **changes):
    return jax.jit(jax.value_and_grad(make_loss(setting, **changes)))


@pytest.fixture(params=SETTINGS)
def setting(request):
    return request.param


def assert_close(actual, desired, rtol=1e-5, atol=1e-7):
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=rtol, atol=atol),
        actual,
        desired,
    )


def test_it_is_a_float32_scalar_with_the_slope_it_claims(setting):
    loss = functools.partial(make_loss(setting), labels=LABELS, valid=VALID)
    value = loss(LOGITS)
    assert (value.shape, value.dtype) == ((), jnp.float32)
    assert value > 0
    check_grads(loss, (LOGITS,), order=1, atol=1e-3, rtol=1e-2, eps=1e-2)


def test_eager_equals_jit(setting):
    with jax.disable_jit():
        eager = jax.value_and_grad(make_loss(setting))(LOGITS, LABELS, VALID)
    assert_close(eager, value_and_grad(setting)(LOGITS, LABELS, VALID))


def test_a_perfect_prediction_is_a_flat_minimum(setting):
    smoothed = "label_smoothing" in SETTINGS[setting][1]
    changes = {"label_smoothing": 0.0} if smoothed else {}
    logits = np.where(jax.nn.one_hot(LABELS, 3), 1e4, -1e4).astype(np.float32)
    value, grad = value_and_grad(setting, **changes)(logits, LABELS, VALID)
    assert value == 0
    np.testing.assert_array_equal(grad, np.zeros_like(grad))


def test_all_wrong_is_the_worst_and_keeps_its_gradient_finite(setting):
    logits = np.where(jax.nn.one_hot(LABELS, 3), -1e4, 1e4).astype(np.float32)
    value, grad = value_and_grad(setting)(logits, LABELS, VALID)
    assert value > 1.2 * make_loss(setting)(LOGITS, LABELS, VALID)
    assert np.isfinite(grad).all()


@pytest.mark.parametrize("junk", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("void", [255, -1, 1])
def test_what_a_void_pixel_holds_changes_nothing(setting, junk, void):
    clean = value_and_grad(setting)(LOGITS, LABELS, VALID)
    logits = np.where(VALID[..., None], LOGITS, np.float32(junk))
    labels = np.where(VALID, LABELS, void)
    value, grad = value_and_grad(setting)(logits, labels, VALID)
    np.testing.assert_array_equal(value, clean[0])
    np.testing.assert_array_equal(grad, clean[1])
    np.testing.assert_array_equal(grad[~VALID], np.zeros_like(grad[~VALID]))


def test_void_pixels_might_as_well_be_cut_out(setting):
    cut = VALID[1]
    value, grad = value_and_grad(setting)(LOGITS[1:2], LABELS[1:2], VALID[1:2])
    cut_value, cut_grad = value_and_grad(setting)(
        LOGITS[1][cut][None], LABELS[1][cut][None]
    )
    assert_close((value, grad[0][cut]), (cut_value, cut_grad[0]))


def test_padding_with_void_samples_changes_nothing(setting):
    value, grad = value_and_grad(setting)(LOGITS, LABELS, VALID)
    assert_close(
        value_and_grad(setting)(LOGITS[1:], LABELS[1:], VALID[1:]), (value, grad[1:])
    )


def test_no_valid_pixel_is_no_loss_and_no_gradient(setting):
    nothing = value_and_grad(setting)(LOGITS, LABELS, np.zeros_like(VALID))
    assert nothing[0] == 0
    np.testing.assert_array_equal(nothing[1], np.zeros_like(LOGITS))


def test_a_valid_label_that_is_no_class_is_not_overlooked(setting):
    if "multi_label" in SETTINGS[setting][1]:
        pytest.skip("has no class ids")
    for unknown in (255, -1, 3):
        labels = np.where(VALID, LABELS, unknown)
        assert np.isnan(make_loss(setting)(LOGITS, labels))
        assert np.isnan(make_loss(setting)(LOGITS, np.full_like(LABELS, unknown)))


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint32])
def test_the_integer_type_of_labels_does_not_matter(setting, dtype):
    void = np.iinfo(dtype).max
    labels = np.where(VALID, LABELS, void).astype(dtype)
    assert_close(
        value_and_grad(setting)(LOGITS, labels, VALID),
        value_and_grad(setting)(LOGITS, LABELS, VALID),
        rtol=0,
        atol=0,
    )


@pytest.mark.parametrize("hw", [(24,), (2, 3, 4)])
def test_the_number_of_spatial_dims_does_not_matter(setting, hw):
    shape = (4, *hw)
    value, grad = value_and_grad(setting)(
        LOGITS.reshape(*shape, 3), LABELS.reshape(shape), VALID.reshape(shape)
    )
    assert_close(
        (value, grad.reshape(LOGITS.shape)),
        value_and_grad(setting)(LOGITS, LABELS, VALID),
    )


def test_valid_broadcasts_to_labels(setting):
    samples = np.array([True, False, True, True]).reshape(4, 1, 1)
    loss = make_loss(setting)
    assert_close(
        loss(LOGITS, LABELS, samples),
        loss(LOGITS, LABELS, np.broadcast_to(samples, LABELS.shape)),
    )
    if "multi_label" not in SETTINGS[setting][1]:
        row = np.array([True, False, True, True])
        assert_close(
            loss(LOGITS, LABELS, row),
            loss(LOGITS, LABELS, np.broadcast_to(row, LABELS.shape)),
        )


@hypothesis.given(seed=strategies.integers(0, 2**16))
@SHARES_ONE_BATCH
def test_the_order_of_pixels_and_classes_does_not_matter(setting, seed):
    logits, labels, valid = make_batch(seed)
    rng = np.random.default_rng(seed)
    pixels, classes, samples = (rng.permutation(n) for n in (24, 3, 4))
    changes = {}
    if "class_weights" in SETTINGS[setting][1]:
        changes["class_weights"] = tuple(np.take(WEIGHTS, classes))

    def shuffle(x):
        return x.reshape(4, 24, *x.shape[3:])[samples][:, pixels].reshape(x.shape)

    value, grad = value_and_grad(setting)(logits, labels, valid)
    other = value_and_grad(setting, **changes)(
        shuffle(logits)[..., classes],
        np.argsort(classes)[shuffle(labels)],
        shuffle(valid),
    )
    assert_close(other, (value, shuffle(grad)[..., classes]))


def test_vmap_and_checkpoint_change_nothing(setting):
    loss = jax.checkpoint(make_loss(setting))
    batches = [np.stack(x) for x in zip(make_batch(1), make_batch(2), strict=True)]
    mapped = jax.jit(jax.vmap(jax.value_and_grad(loss)))(*batches)
    for i in range(2):
        alone = value_and_grad(setting)(*(x[i] for x in batches))
        assert_close(jax.tree.map(lambda x, i=i: x[i], mapped), alone)

"""Weights of pixels, and labels that share a pixel among the classes."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segloss import losses

pytestmark = pytest.mark.shared_out

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(2, 3, 4, 3)).astype(np.float32)
LABELS = RNG.integers(0, 3, (2, 3, 4))
VALID = RNG.random((2, 3, 4)) < 0.8
WEIGHTS = RNG.integers(0, 4, (2, 3, 4)).astype(np.float32)
PENALTY = 1.0 - np.eye(3)

TAKE_WEIGHTS = [
    name
    for name, loss in losses.LOSSES.items()
    if "pixel_weights" in inspect.signature(loss).parameters
]
TAKE_SOFT_LABELS = [
    ("softmax_cross_entropy", {}),
    ("softmax_cross_entropy", {"class_weights": (1, 2, 3), "normalize_by": "weights"}),
    ("softmax_cross_entropy", {"label_smoothing": 0.3}),
    ("focal_loss", {"gamma": 0.5}),
    ("poly_loss", {}),
    ("soft_dice", {}),
    ("soft_dice", {"denominator": "linear", "per_image": True}),
    ("soft_iou", {"classes": "present"}),
    ("tversky", {"fp_weight": 0.3, "fn_weight": 0.7}),
    ("generalized_dice", {}),
]


def complete_loss(name, complete):
    labels, needed = complete(name, LABELS, 3)
    return functools.partial(losses.LOSSES[name], **needed), labels


def shaped(x, labels):
    """What is given per pixel, with a class axis where the labels have one."""
    return x[..., None] if labels.ndim > LABELS.ndim else x


OF_REGIONS = {
    "focal_tversky",
    "generalized_dice",
    "log_cosh_dice",
    "soft_dice",
    "soft_iou",
    "tversky",
}


# Its frequencies are those of pixels, whatever their weights.
@pytest.mark.parametrize(
    "name", sorted({*TAKE_WEIGHTS} - {"normalized_sigmoid_cross_entropy"})
)
def test_a_pixel_of_weight_2_counts_as_two_pixels(name, complete):
    loss, labels = complete_loss(name, complete)
    given = dict(loss.keywords)
    if name == "top_k_cross_entropy":
        given["fraction"] = 1.0

    def of_pixels(x):
        return np.asarray(x).reshape(1, 24, *x.shape[3:])

    def repeated(x):
        return np.repeat(of_pixels(x), WEIGHTS.ravel().astype(int), axis=1)

    def call(arrange, **weights):
        arrays = {k: arrange(x) if k == "distances" else x for k, x in given.items()}
        valid = shaped(arrange(VALID), labels)
        return loss.func(arrange(LOGITS), arrange(labels), valid, **arrays, **weights)

    weighted = call(of_pixels, pixel_weights=shaped(of_pixels(WEIGHTS), labels))
    # A mean over pixels is still divided by the number of pixels.
    pixels = 1 if name in OF_REGIONS else (WEIGHTS * VALID).sum() / VALID.sum()
    np.testing.assert_allclose(weighted, pixels * call(repeated), rtol=1e-5)


@pytest.mark.parametrize("name", TAKE_WEIGHTS)
def test_ones_change_nothing_and_void_weights_are_ignored(name, complete):
    loss, labels = complete_loss(name, complete)
    valid = shaped(VALID, labels)
    weights = shaped(np.where(VALID, 1.0, np.nan).astype(np.float32), labels)
    weighted = functools.partial(loss, pixel_weights=weights)
    value, gradient = jax.value_and_grad(weighted)(LOGITS, labels, valid)
    plain, plain_gradient = jax.value_and_grad(loss)(LOGITS, labels, valid)
    np.testing.assert_allclose(value, plain, rtol=1e-6)
    np.testing.assert_allclose(gradient, plain_gradient, rtol=1e-5, atol=1e-8)


def test_normalize_by_weights_divides_by_the_weights_of_class_and_pixel():
    logits = jnp.log(jnp.array([[[0.5, 0.5], [0.25, 0.75]]]))
    loss = losses.softmax_cross_entropy(
        logits,
        jnp.array([[0, 1]]),
        class_weights=(3.0, 1.0),
        pixel_weights=jnp.array([[2.0, 4.0]]),
        normalize_by="weights",
    )
    expected = (6 * np.log(2) + 4 * np.log(4 / 3)) / (6 + 4)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_one_weight_per_sample_is_broadcast():
    per_sample = np.array([1.0, 3.0], np.float32).reshape(2, 1, 1)
    everywhere = np.broadcast_to(per_sample, LABELS.shape)
    loss = functools.partial(losses.focal_loss, LOGITS, LABELS)
    assert loss(pixel_weights=per_sample) == loss(pixel_weights=everywhere)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones((2, 3, 4), int), "pixel_weights must be float, got int"),
        (
            np.ones((2, 3, 5)),
            r"pixel_weights must be broadcastable to labels \(2, 3, 4\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights, message):
    with pytest.raises(ValueError, match=f"^soft_iou: {message}"):
        losses.soft_iou(LOGITS, LABELS, pixel_weights=weights)


@pytest.mark.parametrize(("name", "hyperparameters"), TAKE_SOFT_LABELS)
def test_one_hot_labels_are_class_ids(name, hyperparameters):
    loss = jax.value_and_grad(functools.partial(losses.LOSSES[name], **hyperparameters))
    soft = np.eye(3, dtype=np.float32)[LABELS]
    soft[~VALID] = np.nan
    value, gradient = loss(LOGITS, soft, VALID)
    expected, expected_gradient = loss(LOGITS, LABELS, VALID)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-7)


# p = (1/4, 3/4) of a pixel that belongs to class 0 by a half.
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("softmax_cross_entropy", (np.log(4) + np.log(4 / 3)) / 2),
        ("focal_loss", (9 / 16 * np.log(4) + 1 / 16 * np.log(4 / 3)) / 2),
        ("poly_loss", (np.log(4) + 3 / 4 + np.log(4 / 3) + 1 / 4) / 2),
        # (1/4)^2 over 1/16 + 1/4 and over 9/16 + 1/4.
        ("soft_dice", (1 / 5 + 1 / 13) / 2),
        # |p - t| over max(p, t).
        ("soft_iou", (1 / 2 + 1 / 3) / 2),
        # 1/4 of false negatives in class 0, of false positives in class 1.
        ("tversky", (0.5 / 4 / (1 / 4 + 0.5 / 4) + 0.5 / 4 / (1 / 2 + 0.5 / 4)) / 2),
    ],
)
def test_soft_labels_match_hand_computed_values(name, expected):
    logits = jnp.log(jnp.array([[[0.25, 0.75]]]))
    labels = jnp.array([[[0.5, 0.5]]])
    np.testing.assert_allclose(losses.LOSSES[name](logits, labels), expected, rtol=1e-6)


def test_a_share_of_0_costs_nothing_where_the_class_is_impossible():
    logits = jnp.array([[[0.0, 0.0, -jnp.inf]]])
    labels = jnp.array([[[0.5, 0.5, 0.0]]])
    value, gradient = jax.value_and_grad(losses.softmax_cross_entropy)(logits, labels)
    np.testing.assert_allclose(value, np.log(2), rtol=1e-6)
    np.testing.assert_array_equal(gradient, 0.0)


def test_power_of_the_mean_is_that_of_segmentation_models_pytorch():
    mean = losses.tversky(LOGITS, LABELS, VALID)
    loss = losses.focal_tversky(LOGITS, LABELS, VALID, gamma=2.0, power_of="mean")
    np.testing.assert_allclose(loss, mean**2, rtol=1e-6)
    with pytest.raises(ValueError, match=r"power_of must be 'classes' or 'mean'"):
        losses.focal_tversky(LOGITS, LABELS, power_of="sum")


@pytest.mark.parametrize("name", ["softmax_cross_entropy", "focal_loss", "poly_loss"])
def test_a_valid_share_that_is_nan_is_not_overlooked(name):
    labels = np.eye(3, dtype=np.float32)[LABELS]
    labels[0, 0, 0] = np.nan
    assert np.isnan(losses.LOSSES[name](LOGITS, labels))


def test_an_image_may_be_a_single_pixel():
    logits, labels = LOGITS[:, 0, 0], LABELS[:, 0, 0]
    alone = losses.soft_dice(logits, labels, per_image=True)
    line = losses.soft_dice(logits[:, None], labels[:, None], per_image=True)
    np.testing.assert_allclose(alone, line, rtol=1e-6)


def test_masks_of_one_class_are_not_taken_for_a_softmax():
    masks = np.ones((2, 3, 4, 1), np.float32)
    with pytest.raises(ValueError, match=r"^focal_loss: logits must have at least 2"):
        losses.focal_loss(LOGITS[..., :1], masks)


@pytest.mark.parametrize("name", ["softmax_cross_entropy", "soft_dice"])
def test_weights_of_float64_leave_the_loss_float32(name):
    weights = np.ones(LABELS.shape)
    with jax.enable_x64(True):
        loss = losses.LOSSES[name](
            LOGITS, LABELS, class_weights=(1.0, 2.0, 3.0), pixel_weights=weights
        )
    assert loss.dtype == jnp.float32


def test_a_weight_of_0_makes_an_infinite_loss_0():
    logits = jnp.array([[[0.0, -jnp.inf], [0.0, 0.0]]])
    weights = jnp.array([[0.0, 1.0]])
    loss = losses.softmax_cross_entropy(
        logits, jnp.array([[1, 1]]), pixel_weights=weights
    )
    np.testing.assert_allclose(loss, np.log(2) / 2, rtol=1e-6)

"""What DESIGN.md promises of every loss, checked for each of their settings."""

import itertools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies
from loss_settings import (
    LABELS,
    LOGITS,
    MASKS,
    OF_EACH_KIND,
    OF_NEIGHBOURHOODS,
    SETTINGS,
    SOFT,
    VALID,
    WEIGHTED,
    assert_close,
    assert_equal,
    make_batch,
    make_loss,
    value_and_grad,
)

from segloss import losses

pytestmark = pytest.mark.shared_out


def test_no_loss_is_without_a_setting():
    assert {loss for loss, _ in SETTINGS.values()} == {*losses.LOSSES.values()}


each_setting = pytest.mark.parametrize("setting", SETTINGS)
each_of_pixels = pytest.mark.parametrize(
    "setting", [setting for setting in SETTINGS if setting not in OF_NEIGHBOURHOODS]
)


@each_of_pixels
def test_it_has_the_slope_it_claims_by_finite_differences_in_float64(setting):
    """And in float32 it is a float32 scalar of the same value and slope."""
    single = value_and_grad(setting)(LOGITS, LABELS, VALID)
    assert (single[0].shape, single[0].dtype) == ((), jnp.float32)
    # Short, because the slope jumps where two pixels change places.
    step = np.random.default_rng(1).choice([-1e-5, 1e-5], LOGITS.shape)
    logits = LOGITS.astype(np.float64)
    with jax.enable_x64(True):
        up, down, double = (
            jax.tree.map(np.asarray, value_and_grad(setting)(x, LABELS, VALID))
            for x in (logits + step, logits - step, logits)
        )
    assert double[1].dtype == np.float64
    assert_close((up[0] - down[0]) / 2, (double[1] * step).sum(), rtol=1e-6, atol=1e-13)
    assert_close(single, double, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "setting",
    [
        "cross_entropy_smooth",
        "dice",
        "focal",
        "iou_per_image",
        "multi_label",
        "sigmoid_focal",
        "tversky",
    ],
)
def test_its_gradient_has_the_slope_it_claims(setting):
    step = np.random.default_rng(1).choice([-1e-5, 1e-5], LOGITS.shape)
    logits = LOGITS.astype(np.float64)

    def along_step(logits):
        return (jax.grad(make_loss(setting))(logits, LABELS, VALID) * step).sum()

    with jax.enable_x64(True):
        up, down = (
            np.asarray(value_and_grad(setting)(x, LABELS, VALID)[1])
            for x in (logits + step, logits - step)
        )
        slope = np.asarray(jax.jit(jax.grad(along_step))(logits))
    assert np.abs(slope).max() > 1e-9
    assert_close((up - down) / 2, slope, rtol=1e-6, atol=1e-14)


@each_setting
def test_a_perfect_prediction_is_a_flat_minimum(setting):
    smoothed = "label_smoothing" in SETTINGS[setting][1]
    changes = {"label_smoothing": 0.0} if smoothed else {}
    logits = np.where(jax.nn.one_hot(LABELS, 3), 1e4, -1e4).astype(np.float32)
    perfect = value_and_grad(setting, **changes)(logits, LABELS, VALID)
    assert_equal(perfect, (0.0, np.zeros_like(LOGITS)))


@each_of_pixels
def test_infinite_logits_that_are_right_cost_nothing(setting):
    smoothed = "label_smoothing" in SETTINGS[setting][1]
    changes = {"label_smoothing": 0.0} if smoothed else {}
    right = 1e4 if setting not in MASKS else np.inf
    logits = np.where(jax.nn.one_hot(LABELS, 3), right, -np.inf).astype(np.float32)
    perfect = value_and_grad(setting, **changes)(logits, LABELS, VALID)
    assert_equal(perfect, (0.0, np.zeros_like(LOGITS)))


@each_setting
def test_the_opposite_of_the_labels_is_worst_and_its_gradient_finite(setting):
    logits = np.where(jax.nn.one_hot(LABELS, 3), -1e4, 1e4).astype(np.float32)
    value, grad = value_and_grad(setting)(logits, LABELS, VALID)
    assert value > 1.2 * value_and_grad(setting)(LOGITS, LABELS, VALID)[0]
    assert np.isfinite(grad).all()


@each_setting
def test_what_a_void_pixel_holds_changes_nothing(setting):
    clean = value_and_grad(setting)(LOGITS, LABELS, VALID)
    np.testing.assert_array_equal(clean[1][~VALID], 0.0)
    for junk, void in itertools.product([np.nan, np.inf, -np.inf, 3e38], [255, -1, 1]):
        logits = np.where(VALID[..., None], LOGITS, np.float32(junk))
        labels = np.where(VALID, LABELS, void)
        assert_equal(value_and_grad(setting)(logits, labels, VALID), clean)


@each_of_pixels
def test_void_might_as_well_be_cut_out(setting):
    """Void pixels of a sample, and the padding samples beside it."""
    only = VALID & np.reshape(np.arange(8) == 1, (8, 1, 1))
    value, grad = value_and_grad(setting)(LOGITS, LABELS, only)
    cut = value_and_grad(setting)(LOGITS[only][None], LABELS[only][None])
    assert_close((value, grad[only][None]), cut)


@each_setting
def test_no_valid_pixel_is_no_loss_and_no_gradient(setting):
    nothing = value_and_grad(setting)(LOGITS, LABELS, np.zeros_like(VALID))
    assert_equal(nothing, (0.0, np.zeros_like(LOGITS)))


@pytest.mark.parametrize("setting", sorted(SETTINGS.keys() - MASKS - SOFT))
def test_a_valid_pixel_whose_label_is_no_class_is_not_overlooked(setting):
    for unknown in (255, -1, 3):
        some, all_of_it = LABELS.copy(), np.full_like(LABELS, unknown)
        some[1, 2, 3] = unknown
        everywhere = np.ones_like(VALID)
        assert np.isnan(value_and_grad(setting)(LOGITS, some, everywhere)[0])
        assert np.isnan(value_and_grad(setting)(LOGITS, all_of_it, everywhere)[0])


@pytest.mark.parametrize("setting", sorted({*OF_EACH_KIND} - OF_NEIGHBOURHOODS))
def test_uint8_labels_a_third_spatial_dim_and_a_broadcast_valid(setting):
    valid = np.reshape(np.arange(8) != 1, (8, 1, 1)) & np.ones_like(VALID)
    labels = np.where(valid, LABELS, 255).astype(np.uint8)
    value, grad = value_and_grad(setting)(
        LOGITS.reshape(8, 3, 2, 2, 3),
        labels.reshape(8, 3, 2, 2),
        valid[:, :1, :1, None],
    )
    flat = value, grad.reshape(LOGITS.shape)
    assert_close(flat, value_and_grad(setting)(LOGITS, LABELS, valid))


@each_setting
@hypothesis.given(seed=strategies.integers(0, 2**16))
@hypothesis.settings(max_examples=10, derandomize=True, deadline=None, database=None)
def test_the_order_of_samples_pixels_and_classes_does_not_matter(setting, seed):
    logits, labels, valid = make_batch(seed)
    samples, pixels, classes = map(np.random.default_rng(seed).permutation, (8, 12, 3))
    of_class = {"class_weights", "pos_weight", "penalty"}
    if setting in WEIGHTED or of_class & SETTINGS[setting][1].keys():
        classes = np.arange(3)
    if setting in OF_NEIGHBOURHOODS:
        pixels = np.arange(12)

    def shuffle(x):
        return x.reshape(8, 12, -1)[samples][:, pixels].reshape(x.shape)

    value, grad = value_and_grad(setting)(logits, labels, valid)
    shuffled = value_and_grad(setting)(
        shuffle(logits)[..., classes],
        np.argsort(classes)[shuffle(labels)].astype(np.int32),
        shuffle(valid),
    )
    assert_close(shuffled, (value, shuffle(np.array(grad))[..., classes]))

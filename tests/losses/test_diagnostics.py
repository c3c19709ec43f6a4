import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segloss.losses import (
    explain,
    gradient_share,
    sigmoid_cross_entropy,
    soft_dice,
    softmax_cross_entropy,
)
from segloss.losses.diagnostics import pixel_share

# Three pixels of class 0, one of class 1, none of class 2, one void; p_y is 1/2, 1/2,
# 3/4 and 1/8. The gradient of the mean over 4 pixels has norms 2 (1 - p_y) / 4.
PROBS = np.array(
    [[1 / 2, 1 / 4, 1 / 4]] * 2
    + [[3 / 4, 1 / 8, 1 / 8], [7 / 8, 1 / 8, 1e-30], [1 / 3, 1 / 3, 1 / 3]]
)
LOGITS = jnp.log(jnp.array(PROBS, jnp.float32))[None]
LABELS = jnp.array([[0, 0, 0, 1, 255]])
VALID = LABELS != 255
BATCH = (LOGITS, LABELS, VALID)
# 1/2 + 1/2 + 1/4 of class 0 against 7/8 of class 1.
SHARES = np.array([10, 7, 0]) / 17


def weighted(*weights, **hyperparameters):
    return functools.partial(
        softmax_cross_entropy, class_weights=weights, **hyperparameters
    )


def test_gradient_share_matches_hand_computed_values():
    share = gradient_share(softmax_cross_entropy, *BATCH, num_classes=3)
    np.testing.assert_allclose(share, SHARES, rtol=1e-6)
    with jax.disable_jit():
        eager = gradient_share(softmax_cross_entropy, *BATCH, num_classes=3)
    np.testing.assert_allclose(eager, SHARES, rtol=1e-6)


def test_weights_of_classes_move_it_and_factors_do_not():
    even = gradient_share(weighted(7.0, 10.0, 1.0), *BATCH, num_classes=3)
    np.testing.assert_allclose(even, [0.5, 0.5, 0.0], rtol=1e-6)
    scaled = gradient_share(
        lambda *args: 1000 * softmax_cross_entropy(*args), *BATCH, num_classes=3
    )
    np.testing.assert_allclose(scaled, SHARES, rtol=1e-6)


def test_no_gradient_is_no_share():
    perfect = jnp.where(jax.nn.one_hot(LABELS, 3) > 0, 1e4, -1e4)
    shares = gradient_share(soft_dice, perfect, LABELS, VALID, num_classes=3)
    np.testing.assert_array_equal(shares, np.zeros(3))
    nothing = gradient_share(soft_dice, LOGITS, LABELS, LABELS < 0, num_classes=3)
    np.testing.assert_array_equal(nothing, np.zeros(3))


def test_void_holds_what_it_likes_and_a_label_that_is_no_class_shows():
    junk = LOGITS.at[0, 4].set(jnp.nan)
    shares = gradient_share(softmax_cross_entropy, junk, *BATCH[1:], num_classes=3)
    np.testing.assert_allclose(shares, SHARES, rtol=1e-6)
    unmasked = gradient_share(softmax_cross_entropy, LOGITS, LABELS, num_classes=3)
    assert np.isnan(unmasked).all()


def test_positives_and_negatives_of_labels_in_the_shape_of_the_logits():
    """At p = 1/2 all pixels pull alike: a positive of four has w / (w + 3)."""
    labels = jnp.array([[[1.0, 0.0], [0.0, 0.0]]])
    for pos_weight, positives in ((1.0, 1 / 4), (3.0, 1 / 2), (60.0, 60 / 63)):
        loss = functools.partial(sigmoid_cross_entropy, pos_weight=pos_weight)
        found = gradient_share(loss, jnp.zeros((1, 2, 2)), labels, num_classes=2)
        np.testing.assert_allclose(found, [1 - positives, positives], rtol=1e-6)


@pytest.mark.parametrize("loss", [softmax_cross_entropy, soft_dice])
def test_four_devices_have_the_shares_of_one(loss):
    """Void uneven, the last device without a valid pixel."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4, 1, 6, 3)).astype(np.float32)
    labels = rng.integers(0, 3, (4, 1, 6))
    valid = rng.random((4, 1, 6)) < np.reshape([1, 0.7, 0.3, 0], (4, 1, 1))
    several = {"num_classes": 3, "axis_name": "batch"}

    def on_device(*batch):
        return (
            gradient_share(loss, *batch, **several),
            pixel_share(*batch[1:], **several),
        )

    many = jax.pmap(on_device, axis_name="batch")(logits, labels, valid)
    batch = [
        jnp.asarray(x.reshape(4, 6, *x.shape[3:])) for x in (logits, labels, valid)
    ]
    alone = (
        gradient_share(loss, *batch, num_classes=3),
        pixel_share(*batch[1:], num_classes=3),
    )
    for share, expected in zip(many, alone, strict=True):
        np.testing.assert_allclose(share, np.stack([expected] * 4), rtol=1e-5)
        np.testing.assert_allclose(expected.sum(), 1.0, rtol=1e-6)


def test_half_precision_does_not_lose_the_gradient_of_many_pixels():
    labels = (jnp.arange(512 * 512) % 8 == 0).astype(jnp.int32).reshape(1, 512, 512)
    logits = jnp.zeros((1, 512, 512, 2), jnp.float16)
    share = gradient_share(softmax_cross_entropy, logits, labels, num_classes=2)
    np.testing.assert_allclose(share, [7 / 8, 1 / 8], rtol=1e-5)


# Of class 0: log 2 + log 2 + log 4/3, of class 1: log 8.
COSTS = np.array([2 * np.log(2) + np.log(4 / 3), np.log(8), 0.0])


@pytest.mark.parametrize(
    ("loss", "costs", "scale"),
    [
        (softmax_cross_entropy, COSTS, 1.0),
        (lambda *args: 10 * softmax_cross_entropy(*args), COSTS, 10.0),
        # The mean over 4 pixels against the sum over 1 sample.
        (weighted(1, 1, 1, normalize_by="samples"), COSTS, 4.0),
        (weighted(2, 2, 2), COSTS, 2.0),
        (weighted(2, 2, 2, normalize_by="weights"), COSTS, 1.0),
        # Norms 10 and 4 x 7 instead of 10 and 7; weights 3 + 4 instead of 4 pixels.
        (weighted(1, 4, 9), COSTS * [1, 4, 9], 38 / 17),
        (weighted(1, 4, 9, normalize_by="weights"), COSTS * [1, 4, 9], 38 / 17 * 4 / 7),
    ],
)
def test_explain_is_exact_where_the_loss_is_a_sum_over_pixels(loss, costs, scale):
    found = explain(loss, *BATCH, num_classes=3)
    np.testing.assert_allclose(found.loss, loss(*BATCH), rtol=1e-6)
    np.testing.assert_allclose(found.pixel_share, [3 / 4, 1 / 4, 0])
    np.testing.assert_allclose(found.loss_share, costs / costs.sum(), atol=1e-6)
    np.testing.assert_allclose(found.gradient_scale, scale, rtol=1e-5)


def test_explain_says_what_a_loss_of_regions_would_save():
    """Two pixels, two classes, all p = 1/2: each class misses 1 of 2, the loss is 1/2.

    With one pixel certain, its class misses 1/2 of 5/2, the other 1/2 of 3/2: the loss
    is 4/15, which saves 7/15 of it.
    """
    loss = functools.partial(soft_dice, denominator="linear")
    found = explain(loss, jnp.zeros((1, 2, 2)), jnp.array([[0, 1]]), num_classes=2)
    np.testing.assert_allclose(found.loss, 0.5)
    np.testing.assert_allclose(found.loss_share, [7 / 15, 7 / 15], rtol=1e-5)
    np.testing.assert_allclose(found.gradient_share, [0.5, 0.5], rtol=1e-6)


def test_explain_of_labels_in_the_shape_of_the_logits():
    """p = 1/2: each pixel costs log 2, the positives three times that."""
    loss = functools.partial(sigmoid_cross_entropy, pos_weight=3.0)
    labels = jnp.array([[True, False, False, False]])
    found = explain(loss, jnp.zeros((1, 4)), labels, num_classes=2)
    np.testing.assert_allclose(found.loss_share, [0.5, 0.5], rtol=1e-5)
    np.testing.assert_allclose(found.gradient_share, [0.5, 0.5], rtol=1e-6)
    np.testing.assert_allclose(found.gradient_scale, 6 / 4, rtol=1e-6)


def test_explanation_is_a_table_of_the_classes_that_are_there():
    found = explain(softmax_cross_entropy, *BATCH, num_classes=3)
    assert str(found) == (
        "class    pixels      loss  gradient\n"
        "0        75.00%    44.60%    58.82%\n"
        "1        25.00%    55.40%    41.18%\n"
        "loss 0.9384, gradient 1 times that of unweighted cross-entropy"
    )
    named = found.table(["ground", "pedestrian", "sky"]).splitlines()
    assert named[2] == "pedestrian    25.00%    55.40%    41.18%"
    assert "sky" not in "".join(named)
    with pytest.raises(ValueError, match="class_names must be 3 names, got 2"):
        found.table(["ground", "sky"])


@pytest.mark.parametrize("function", [gradient_share, explain])
@pytest.mark.parametrize(
    ("labels", "num_classes", "message"),
    [
        (LABELS, 2, "num_classes must be 3, the logits' last axis, got 2"),
        (LOGITS, 3, "num_classes must be 2, negative and positive, got 3"),
        (LABELS[:, :4], 3, r"labels must have shape \(1, 5\)"),
    ],
)
def test_what_does_not_fit_is_refused(function, labels, num_classes, message):
    with pytest.raises(ValueError, match=f"{function.__name__}: {message}"):
        function(softmax_cross_entropy, LOGITS, labels, num_classes=num_classes)

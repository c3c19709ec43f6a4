import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segloss.losses import soft_dice, soft_iou
from segloss.losses.overlap import with_overlap_options

pytestmark = pytest.mark.shared_out

# Two samples of one labelled pixel each, a third that is all void. Over the batch,
# class 0 has I = 3/4, sum p = 5/4, sum p^2 = 13/16 and class 1 has I = 1/2,
# sum p = 3/4, sum p^2 = 5/16; both have G = 1.
LOGITS = jnp.log(jnp.array([[[3 / 4, 1 / 4]], [[1 / 2, 1 / 2]], [[0.1, 0.9]]]))
LABELS = jnp.array([[0], [1], [255]])
VALID = LABELS != 255

squared = soft_dice
linear = functools.partial(soft_dice, denominator="linear")


@pytest.mark.parametrize(
    ("loss", "costs"),
    [
        (squared, (1 - 24 / 29, 1 - 16 / 21)),
        (linear, (1 - 2 / 3, 1 - 4 / 7)),
        (soft_iou, (1 - 1 / 2, 1 - 2 / 5)),
        (functools.partial(squared, smooth=1), (1 - 40 / 45, 1 - 32 / 37)),
        (functools.partial(linear, smooth=1), (1 - 10 / 13, 1 - 8 / 11)),
        (functools.partial(soft_iou, smooth=1), (1 - 7 / 10, 1 - 6 / 9)),
    ],
)
def test_overlap_matches_hand_computed_value(loss, costs):
    a, b = costs

    @jax.jit
    def values(*arrays):
        return [
            loss(*arrays),
            loss(*arrays, class_weights=(3, 1)),
            loss(*arrays, normalize_by="samples"),
            loss(*arrays, class_weights=[3.0, 0.0], normalize_by="samples"),
        ]

    # Two of the samples hold a valid pixel.
    expected = [(a + b) / 2, (3 * a + b) / 4, (a + b) / 2, 3 * a / 2]
    np.testing.assert_allclose(values(LOGITS, LABELS, VALID), expected, rtol=1e-6)


# Alone, the first sample costs 1/25 for class 0, the second 1/5 for class 1, and each
# lacks the other class.
@pytest.mark.parametrize(
    ("hyperparameters", "loss"),
    [
        ({}, (26 / 25 + 6 / 5) / 2 / 2),
        ({"classes": "present"}, (1 / 25 + 1 / 5) / 2),
        ({"normalize_by": "samples"}, (26 / 25 + 6 / 5) / 2),
        ({"class_weights": (3.0, 1.0)}, ((3 / 25 + 1) / 4 + (3 + 1 / 5) / 4) / 2),
        ({"class_weights": (3.0, 1.0), "classes": "present"}, (1 / 25 + 1 / 5) / 2),
    ],
)
def test_dice_per_image_averages_the_images_with_a_valid_pixel(hyperparameters, loss):
    value = soft_dice(LOGITS, LABELS, VALID, per_image=True, **hyperparameters)
    np.testing.assert_allclose(value, loss, rtol=1e-6)


def cost_of_third_class(loss, score, **hyperparameters):
    """Value and gradient where class 2 is absent and has this score everywhere."""
    logits = jnp.append(LOGITS, jnp.full((3, 1, 1), score), axis=-1)
    only = jnp.array([0.0, 0.0, 1.0])
    loss = functools.partial(loss, class_weights=only, **hyperparameters)
    return jax.value_and_grad(loss)(logits, LABELS, VALID)


@pytest.mark.parametrize("score", [0.0, -40.0, -60.0, -1e4, -jnp.inf])
@pytest.mark.parametrize("loss", [squared, linear, soft_iou])
def test_absent_class_costs_one_without_gradient(loss, score):
    # The square of exp(-60) is 0 in float32, and exp(-1e4) is.
    value, grad = cost_of_third_class(loss, score)
    assert value == 1
    np.testing.assert_array_equal(grad, 0.0)


@pytest.mark.parametrize("loss", [squared, linear, soft_iou])
def test_smooth_lets_an_absent_class_cost_what_is_predicted(loss):
    for smooth in (1e-18, 1.0):
        value, grad = cost_of_third_class(loss, -1e4, smooth=smooth)
        assert value == 0
        np.testing.assert_array_equal(grad, 0.0)
    # exp(0) beside odds that sum to 1 is a probability of 1/2, in two pixels.
    predicted = 2 * (1 / 4 if loss is squared else 1 / 2)
    value, grad = cost_of_third_class(loss, 0.0, smooth=1.0)
    np.testing.assert_allclose(value, predicted / (predicted + 1), rtol=1e-6)
    assert (grad[:2, :, 2] > 0).all()


@pytest.mark.parametrize("loss", [squared, linear, soft_iou])
def test_present_leaves_out_classes_that_no_label_holds(loss):
    two = loss(LOGITS, LABELS, VALID, classes="present")
    more = jnp.append(LOGITS, jnp.full((3, 1, 2), -jnp.inf), axis=-1)
    np.testing.assert_allclose(loss(more, LABELS, VALID, classes="present"), two)
    np.testing.assert_allclose(loss(more, LABELS, VALID), (two + 1) / 2, rtol=1e-6)


@pytest.mark.parametrize("margin", [4.0, 8.0, 12.0])
@pytest.mark.parametrize("loss", [squared, linear, soft_iou])
def test_overlap_keeps_its_digits_near_perfection(loss, margin):
    labels = jnp.arange(3 * 256 * 256).reshape(3, 256, 256) % 3
    logits = margin * jax.nn.one_hot(labels, 3)
    # e is the error of every pixel: (1 - e, e / 2, e / 2), a third of each class.
    e = 2 / (2 + np.exp(margin))
    squares = (1 - e) ** 2 + e**2 / 2
    cost = {
        squared: 1.5 * e**2 / (1 + squares),
        linear: e,
        soft_iou: 2 * e / (1 + e),
    }[loss]
    np.testing.assert_allclose(loss(logits, labels), cost, rtol=0.01)


# p = 3/4 where t = 1, 1/4 where t = 0, in both classes of the only pixel that counts.
def test_multi_label_matches_hand_computed_value():
    logits = jnp.log(jnp.array([[[3.0, 1 / 3], [1.0, jnp.nan]]]))
    labels = jnp.array([[[1.0, 0.0], [jnp.nan, 7.0]]])
    valid = jnp.array([[[True], [False]]])
    dice = functools.partial(soft_dice, logits, labels, valid, multi_label=True)
    iou = functools.partial(soft_iou, logits, labels, valid, multi_label=True)
    np.testing.assert_allclose(dice(), (1 / 25 + 1) / 2, rtol=1e-6)
    np.testing.assert_allclose(
        dice(denominator="linear", classes="present"), 1 / 7, rtol=1e-6
    )
    np.testing.assert_allclose(iou(smooth=1), (1 / 8 + 1 / 5) / 2, rtol=1e-6)
    hot = jnp.array([[[True, False], [True, True]]])
    np.testing.assert_array_equal(
        soft_iou(logits, hot, valid, multi_label=True, smooth=1), iou(smooth=1)
    )


def test_multi_label_leaves_out_a_class_without_a_valid_label():
    logits, labels = jnp.log(jnp.array([[[3.0, 3.0]]])), jnp.ones((1, 1, 2))
    valid = jnp.array([[[True, False]]])
    np.testing.assert_allclose(
        soft_dice(logits, labels, valid, multi_label=True), 1 / 25, rtol=1e-6
    )


@pytest.mark.parametrize("loss", [squared, linear, soft_iou])
def test_soft_labels_are_met_best_by_themselves(loss):
    targets = jax.random.uniform(jax.random.key(0), (1, 8, 1), minval=0.1, maxval=0.9)
    best = jax.scipy.special.logit(targets)
    assert loss(best, targets, multi_label=True) < 1e-6
    for step in (-0.1, 0.1):
        assert loss(best + step, targets, multi_label=True) > 1e-4


@pytest.mark.parametrize("loss", [soft_dice, soft_iou])
@pytest.mark.parametrize(
    ("hyperparameters", "message"),
    [
        ({"smooth": -1.0}, "smooth must be 0, or at least 1e-18 and finite, got -1.0"),
        ({"smooth": float("nan")}, "smooth .* got nan"),
        ({"classes": "seen"}, "classes must be 'all' or 'present', got 'seen'"),
        (
            {"normalize_by": "pixels"},
            "normalize_by must be 'classes' or 'samples', got 'pixels'",
        ),
        ({"class_weights": (1.0,)}, r"class_weights must have shape \(2,\)"),
        ({"multi_label": True}, r"labels must have shape \(3, 1, 2\)"),
    ],
)
def test_overlap_refuses(loss, hyperparameters, message):
    with pytest.raises(ValueError, match=f"^{loss.__name__}: {message}"):
        loss(LOGITS, LABELS, VALID, **hyperparameters)


def test_gradient_of_dice_is_that_of_its_equation():
    """Milletari et al. 2016, sec. 3, for each class, then through the softmax."""
    logits = np.random.default_rng(0).normal(size=(2, 5, 3))
    labels = np.array([[0, 1, 2, 2, 1], [0, 0, 0, 1, 0]])
    p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    t = np.eye(3)[labels]
    overlap, size = (p * t).sum((0, 1)), (p**2).sum((0, 1)) + (t**2).sum((0, 1))
    by_p = -2 * (t * size - 2 * p * overlap) / size**2 / 3
    by_logits = p * (by_p - (by_p * p).sum(axis=-1, keepdims=True))
    with jax.enable_x64(True):
        gradient = np.asarray(jax.grad(soft_dice)(logits, labels))
    np.testing.assert_allclose(gradient, by_logits, rtol=1e-12)


def test_dice_refuses_an_unknown_denominator():
    with pytest.raises(
        ValueError,
        match=r"^soft_dice: denominator must be 'squared' or 'linear', got 'cubic'\.",
    ):
        soft_dice(LOGITS, LABELS, VALID, denominator="cubic")


@pytest.mark.parametrize("unknown", ["smoth", "power", "name", "cost"])
def test_an_unknown_option_is_named_with_the_loss(unknown):
    message = rf"^soft_iou\(\) .* argument '{unknown}'\."
    with pytest.raises(TypeError, match=message):
        soft_iou(LOGITS, LABELS, VALID, **{unknown: 1})


def test_docstring_is_complete_with_and_without_indentation():
    """Python 3.13 takes the indentation out of docstrings before a decorator runs."""

    def documented(doc):
        def loss(logits, labels, valid=None, *, power=2, **options):
            return logits.sum()

        loss.__doc__ = doc
        return inspect.cleandoc(with_overlap_options(loss).__doc__).splitlines()

    indented = "A loss.\n\n    Hyperparameters:\n        power: of p.\n    "
    lines = documented(indented)
    assert documented(inspect.cleandoc(indented)) == lines
    assert [x for x in lines if x and x[0] != " "] == ["A loss.", "Args:", "Raises:"]
    named = ("    power:", "    smooth:")
    assert [x.split(":")[0].strip() for x in lines if x.startswith(named)] == [
        "power",
        "smooth",
    ]

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segloss.losses import (
    LOSSES,
    compound_loss,
    inputs_of,
    make_loss,
    takes_masks,
)

LOGITS = jax.random.normal(jax.random.key(0), (2, 6, 3))
LABELS = jnp.array([[0, 1, 2, 0, 1, 255], [0, 0, 0, 1, 255, 255]])
VALID = LABELS != 255
ARRAYS = (LOGITS, LABELS, VALID)

TERMS = [
    (1, "softmax_cross_entropy", {"class_weights": [1, 2, 3]}),
    (0.5, "soft_dice", {"denominator": "linear", "smooth": 1}),
]


@pytest.mark.parametrize("name", LOSSES)
def test_make_loss_finds_every_loss(name, complete):
    labels, needed = complete(name, LABELS, 3)
    valid = VALID.reshape(VALID.shape + (1,) * (labels.ndim - VALID.ndim))
    arrays = LOGITS, labels, valid
    direct = LOSSES[name](*arrays, **needed)
    inputs = {name: needed.pop(name) for name in inputs_of(name)}
    assert make_loss(name, **needed)(*arrays, **inputs) == direct


def test_make_loss_binds_hyperparameters():
    assert make_loss("soft_dice", smooth=1.0)(*ARRAYS) == LOSSES["soft_dice"](
        *ARRAYS, smooth=1.0
    )


def test_compound_loss_is_the_weighted_sum():
    entropy = LOSSES["softmax_cross_entropy"](*ARRAYS, class_weights=(1.0, 2.0, 3.0))
    dice = LOSSES["soft_dice"](*ARRAYS, denominator="linear", smooth=1.0)
    value = jax.jit(compound_loss(TERMS))(*ARRAYS)
    np.testing.assert_allclose(value, entropy + 0.5 * dice, rtol=1e-6)


def test_compound_loss_gives_distances_to_the_loss_that_takes_them():
    assert inputs_of("boundary_loss") == ("distances",)
    assert inputs_of("soft_dice") == ()
    boundary = LOSSES["boundary_loss"](*ARRAYS, distances=-LOGITS)
    dice = LOSSES["soft_dice"](*ARRAYS)
    both = compound_loss([(2, "boundary_loss", {}), (1, "soft_dice", {})])
    value = both(*ARRAYS, distances=-LOGITS)
    np.testing.assert_allclose(value, 2 * boundary + dice, rtol=1e-6)
    with pytest.raises(TypeError, match="distances"):
        both(*ARRAYS)
    with pytest.raises(TypeError, match=r"^compound_loss: no term takes gamma\.$"):
        both(*ARRAYS, distances=-LOGITS, gamma=LOGITS)


@pytest.mark.parametrize("when", ["making", "calling"])
@pytest.mark.parametrize(
    ("make", "argument"), [(compound_loss, TERMS), (make_loss, "soft_iou")]
)
def test_axis_name_may_be_given_when_making_or_when_calling(make, argument, when):
    given = {"axis_name": "batch"}
    loss = make(argument, **given) if when == "making" else make(argument)

    def on_device(*arrays):
        return loss(*arrays, **({} if when == "making" else given))

    split = [x[:, None] for x in ARRAYS]
    both = jax.pmap(on_device, axis_name="batch", devices=jax.devices()[:2])(*split)
    np.testing.assert_allclose(both, [make(argument)(*ARRAYS)] * 2, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_loss("dice"), "no loss is named 'dice'; known are boundary_loss"),
        (lambda: make_loss("soft_iou", gamma=2.0), "soft_iou has no .* 'gamma'"),
        (lambda: compound_loss([]), "terms must hold at least one loss"),
        (lambda: compound_loss([(-1, "soft_iou", {})]), "weight of soft_iou .* got -1"),
        (
            lambda: compound_loss([(float("nan"), "soft_iou", {})]),
            "weight of soft_iou .* got nan",
        ),
        (lambda: compound_loss([(1, "iou", {})]), "no loss is named 'iou'"),
        (
            lambda: make_loss("boundary_loss", distances=LOGITS),
            "boundary_loss has no hyperparameter 'distances'; known are axis_name",
        ),
        (
            lambda: compound_loss([(1, "soft_iou", {"axis_name": "batch"})]),
            "soft_iou has no hyperparameter 'axis_name'",
        ),
    ],
)
def test_mistakes_are_found_before_anything_runs(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# Losses of a softmax that take shares of classes in place of class ids.
TAKE_SOFT_LABELS = {
    "focal_loss",
    "focal_tversky",
    "generalized_dice",
    "log_cosh_dice",
    "poly_loss",
    "soft_dice",
    "soft_iou",
    "softmax_cross_entropy",
    "tversky",
}


@pytest.mark.parametrize("name", LOSSES)
def test_takes_masks_says_which_labels_fit(name, complete):
    _, needed = complete(name, LABELS, 3)
    inputs = {name: needed[name] for name in inputs_of(name)}
    hyperparameters = {k: v for k, v in needed.items() if k not in inputs}
    parameters = inspect.signature(LOSSES[name]).parameters
    for multi_label in (False, True) if "multi_label" in parameters else (False,):
        chosen = {"multi_label": True} if multi_label else {}
        labels, others = LABELS, jax.nn.one_hot(LABELS, 3, dtype=bool)
        if takes_masks(name, chosen):
            labels, others = others, labels
        loss = make_loss(name, **chosen, **hyperparameters)
        assert loss(LOGITS, labels, **inputs).shape == ()
        if name in TAKE_SOFT_LABELS and not multi_label:
            continue
        with pytest.raises((ValueError, TypeError)):
            loss(LOGITS, others, **inputs)

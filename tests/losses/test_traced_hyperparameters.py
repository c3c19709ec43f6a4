"""Hyperparameters as traced scalars: the values of numbers, and one compilation."""

import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segloss import losses
from segloss.losses import LOSSES, compound_loss, scalars_of

pytestmark = pytest.mark.shared_out

# Hand-made, because a loss that lacks one is a fault that no comparison would find.
OVERLAP = {"smooth"}
SCALARS = {
    "boundary_loss": set(),
    "focal_loss": {"gamma"},
    "focal_tversky": {"fp_weight", "fn_weight", "gamma"} | OVERLAP,
    "gated_sigmoid_cross_entropy": {"gate_weight", "threshold"},
    "generalized_dice": OVERLAP,
    "log_bilinear_loss": {"alpha"},
    "log_cosh_dice": OVERLAP,
    "lovasz_hinge": set(),
    "lovasz_softmax": set(),
    "normalized_sigmoid_cross_entropy": set(),
    "poly_loss": {"epsilon"},
    "sigmoid_cross_entropy": {"pos_weight"},
    "sigmoid_focal_loss": {"gamma", "alpha"},
    "soft_cldice": OVERLAP,
    "soft_dice": OVERLAP,
    "soft_iou": OVERLAP,
    "softmax_cross_entropy": {"label_smoothing"},
    "top_k_cross_entropy": {"fraction"},
    "tversky": {"fp_weight", "fn_weight"} | OVERLAP,
}
# Both ends of each range, and values between.
VALUES = {
    "alpha": (0.0, 0.3, 1.0),
    "epsilon": (-1.0, 0.0, 2.0),
    "fn_weight": (0.2, 1.0, 3.0),
    "fp_weight": (0.0, 0.5, 2.0),
    "fraction": (0.1, 0.5, 1.0),
    "gamma": (0.25, 1.0, 2.5),
    "gate_weight": (0.0, 1.0, 5.0),
    "label_smoothing": (0.0, 0.1, 1.0),
    "pos_weight": (0.0, 1.0, 4.0),
    "smooth": (0.0, 1.0, 20.0),
    "threshold": (0.0, 0.5, 1.0),
}
CASES = [(name, x) for name in sorted(SCALARS) for x in sorted(SCALARS[name])]

LABELS = jnp.array([[0, 1, 0, 0, 1, 255], [0, 0, 0, 1, 255, 255]])
VALID = LABELS != 255
# Class 2 is absent. The second sample is decided beyond what float32 tells from 0 or 1.
LOGITS = jax.random.normal(jax.random.key(0), (2, 6, 3)).at[1].multiply(1e4)


def arrays_of(name, complete):
    labels, needed = complete(name, LABELS, 3)
    valid = VALID.reshape(VALID.shape + (1,) * (labels.ndim - VALID.ndim))
    return labels, valid, needed


def test_the_signatures_say_which_hyperparameters_are_scalars():
    assert {name: set(scalars_of(name)) for name in LOSSES} == SCALARS


@pytest.mark.parametrize(("name", "argument"), CASES)
def test_a_traced_scalar_gives_what_the_number_gives_in_one_compilation(
    name, argument, complete
):
    labels, valid, needed = arrays_of(name, complete)

    def value_and_grad(value):
        def loss(logits):
            return LOSSES[name](logits, labels, valid, **needed, **{argument: value})

        return jax.value_and_grad(loss)(LOGITS)

    traced = jax.jit(chex.assert_max_traces(value_and_grad, n=1))
    values = VALUES[argument]
    if name in ("focal_loss", "sigmoid_focal_loss") and argument == "gamma":
        values = (0.0, *values)
    for value in values:
        found = traced(jnp.float32(value))
        assert np.isfinite(found[0])
        assert np.isfinite(found[1]).all()
        expected = value_and_grad(value)
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(found[1], expected[1], rtol=1e-4, atol=1e-7)
    chex.clear_trace_counter()


@pytest.mark.parametrize(("name", "argument"), CASES)
def test_a_value_that_is_no_number_in_range_is_named(name, argument, complete):
    labels, valid, needed = arrays_of(name, complete)
    for value in (-2.0, float("nan"), "1"):
        with pytest.raises(ValueError, match=f": {argument} must be"):
            LOSSES[name](LOGITS, labels, valid, **needed, **{argument: value})


@pytest.mark.parametrize(("name", "argument"), CASES)
def test_an_array_of_numpy_is_taken_for_its_number(name, argument, complete):
    labels, valid, needed = arrays_of(name, complete)
    value = VALUES[argument][1]
    losses = [
        LOSSES[name](LOGITS, labels, valid, **needed, **{argument: x})
        for x in (value, np.array(value, np.float32))
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.parametrize("name", ["soft_dice", "soft_cldice"])
def test_a_traced_smooth_of_0_leaves_an_absent_class_its_cost(name, complete):
    labels, valid, _ = arrays_of(name, complete)
    loss = jax.jit(
        lambda s: LOSSES[name](LOGITS, labels, valid, smooth=s, classes="all")
    )
    numbers = [
        LOSSES[name](LOGITS, labels, valid, smooth=s, classes="all") for s in (0, 1)
    ]
    assert numbers[0] > numbers[1]
    np.testing.assert_allclose([loss(0.0), loss(1.0)], numbers, rtol=1e-6)


def test_traced_weights_and_hyperparameters_of_a_compound_loss():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def value(weight, gamma):
        terms = [(1, "focal_loss", {"gamma": gamma}), (weight, "soft_dice", {})]
        return compound_loss(terms)(LOGITS, LABELS, VALID)

    for weight, gamma in ((0.0, 2.0), (0.25, 1.0), (1.0, 0.0)):
        focal = losses.focal_loss(LOGITS, LABELS, VALID, gamma=gamma)
        dice = losses.soft_dice(LOGITS, LABELS, VALID)
        np.testing.assert_allclose(
            value(weight, gamma), focal + weight * dice, rtol=1e-6
        )
    chex.clear_trace_counter()


def test_diagnostics_take_a_loss_of_traced_weights():
    def shares(weight):
        loss = compound_loss(
            [(1, "softmax_cross_entropy", {}), (weight, "soft_dice", {})]
        )
        explained = losses.explain(loss, LOGITS, LABELS, VALID, num_classes=3)
        share = losses.gradient_share(loss, LOGITS, LABELS, VALID, num_classes=3)
        return explained.loss, explained.loss_share, share

    for weight in (0.0, 5.0):
        chex.assert_trees_all_close(jax.jit(shares)(weight), shares(weight), rtol=1e-5)


def test_only_scalars_may_be_arrays():
    pair = jnp.ones(2)
    with pytest.raises(ValueError, match=r"the weight of soft_iou must be a number or"):
        inspect.unwrap(compound_loss)([(pair, "soft_iou", {})])

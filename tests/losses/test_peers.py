"""Values and gradients of torch, SMP, MONAI, optax, keras and scikit-learn."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segloss import losses
from segloss.data import signed_distances

pytestmark = pytest.mark.shared_out

STORED = json.loads(
    (pathlib.Path(__file__).parents[1] / "oracles/peer_values.json").read_text()
)
VOID = 255
WEIGHTS = (0.5, 2.0, 3.0, 1.5)
COSTS = ((0, 1, 2), (3, 0, 4), (5, 6, 0))
LINEAR = dict(denominator="linear")
# Of four classes, one is in no label.
PRESENT = dict(classes="present")
DISTANCES = jnp.array(STORED["inputs"]["strokes"]["distances"], jnp.float32)
MONAI = dict(smooth=1e-5)  # its default
TAGS = dict(multi_label=True)

# Stored case, our loss, our hyperparameters, and what to multiply the peer's value by.
AGREE = [
    ("torch CE", "softmax_cross_entropy", {}, 1),
    ("torch CE line", "softmax_cross_entropy", {}, 1),
    ("torch CE volume", "softmax_cross_entropy", {}, 1),
    (
        "torch CE weight",
        "softmax_cross_entropy",
        dict(class_weights=WEIGHTS, normalize_by="weights"),
        1,
    ),
    (
        "torch CE weight smoothing",
        "softmax_cross_entropy",
        dict(class_weights=WEIGHTS, normalize_by="weights", label_smoothing=0.1),
        1,
    ),
    # Two samples.
    ("torch CE sum", "softmax_cross_entropy", dict(normalize_by="samples"), 1 / 2),
    ("torch CE saturated", "softmax_cross_entropy", {}, 1),
    (
        "torch CE saturated weight",
        "softmax_cross_entropy",
        dict(class_weights=WEIGHTS, normalize_by="weights"),
        1,
    ),
    # Five of 20 pixels.
    ("torch CE top 5", "top_k_cross_entropy", dict(fraction=0.25), 1),
    ("torch BCE", "sigmoid_cross_entropy", {}, 1),
    ("torch BCE soft", "sigmoid_cross_entropy", {}, 1),
    ("torch BCE pos_weight", "sigmoid_cross_entropy", dict(pos_weight=WEIGHTS[:3]), 1),
    ("torch BCE saturated", "sigmoid_cross_entropy", {}, 1),
    ("torch BCE complement", "normalized_sigmoid_cross_entropy", {}, 1),
    (
        "torch BCE inverse",
        "normalized_sigmoid_cross_entropy",
        dict(weighting="inverse"),
        1,
    ),
    (
        "torch BCE gated",
        "gated_sigmoid_cross_entropy",
        dict(gate_weight=4.0, threshold=0.3),
        1,
    ),
    ("torch log-bilinear", "log_bilinear_loss", dict(penalty=COSTS, alpha=0.3), 1),
    # Its mean would be over the void, too: 56 of 72 elements are not.
    ("SMP SoftBCE sum", "sigmoid_cross_entropy", {}, 1 / 56),
    ("SMP softmax focal", "focal_loss", {}, 1),
    ("SMP softmax focal volume 0.5", "focal_loss", dict(gamma=0.5), 1),
    ("SMP sigmoid focal", "sigmoid_focal_loss", {}, 1),
    # A sigmoid for every class of the ids, void left out.
    ("SMP sigmoid focal ids", "sigmoid_focal_loss", {}, 1),
    # It gives an absent class 0, but divides by all four.
    ("SMP Dice", "soft_dice", LINEAR | PRESENT, 4 / 3),
    (
        "SMP Dice line smooth weights",
        "soft_dice",
        # It adds smooth to the score before both sides are doubled.
        LINEAR | dict(smooth=2.0, class_weights=WEIGHTS[:3]),
        1,
    ),
    ("SMP Dice saturated", "soft_dice", LINEAR | PRESENT, 4 / 3),
    ("SMP Dice soft", "soft_dice", LINEAR | TAGS, 1),
    ("SMP Dice tags", "soft_dice", LINEAR | TAGS, 1),
    ("SMP Jaccard", "soft_iou", PRESENT, 4 / 3),
    ("SMP Jaccard soft", "soft_iou", TAGS, 1),
    ("SMP Tversky", "tversky", PRESENT | dict(fp_weight=0.3, fn_weight=0.7), 4 / 3),
    ("SMP Tversky line", "tversky", dict(fp_weight=0.9, fn_weight=0.1), 1),
    ("SMP Tversky soft", "tversky", TAGS | dict(fp_weight=0.3, fn_weight=0.7), 1),
    ("SMP Lovasz", "lovasz_softmax", {}, 1),
    ("SMP Lovasz per image", "lovasz_softmax", dict(per_image=True), 1),
    ("SMP Lovasz volume", "lovasz_softmax", {}, 1),
    ("SMP Lovasz saturated", "lovasz_softmax", {}, 1),
    ("SMP Lovasz hinge", "lovasz_hinge", {}, 1),
    ("MONAI focal", "focal_loss", dict(class_weights=WEIGHTS), 1),
    ("MONAI focal saturated", "focal_loss", dict(gamma=1.0), 1),
    ("MONAI sigmoid focal", "sigmoid_focal_loss", dict(gamma=1.5), 1),
    ("MONAI Dice", "soft_dice", LINEAR | MONAI, 1),
    ("MONAI squared Dice", "soft_dice", MONAI, 1),
    ("MONAI squared Dice per image", "soft_dice", MONAI | dict(per_image=True), 1),
    (
        "MONAI squared Dice volume weights",
        "soft_dice",
        dict(class_weights=WEIGHTS[:3]),
        # It does not divide by the weights' sum.
        3 / sum(WEIGHTS[:3]),
    ),
    ("MONAI log cosh Dice", "log_cosh_dice", {}, 1),
    ("MONAI squared Dice tags", "soft_dice", TAGS, 1),
    # It smooths after both sides were doubled.
    ("MONAI Jaccard", "soft_iou", dict(smooth=0.5e-5), 1),
    ("MONAI Jaccard smooth", "soft_iou", dict(smooth=0.5, per_image=True), 1),
    ("MONAI Tversky", "tversky", MONAI | dict(fp_weight=0.3, fn_weight=0.7), 1),
    (
        "MONAI Tversky per image",
        "tversky",
        MONAI | dict(fp_weight=0.8, fn_weight=0.1, per_image=True),
        1,
    ),
    (
        "MONAI Tversky to the power",
        "focal_tversky",
        MONAI | dict(fp_weight=0.3, fn_weight=0.7),
        1,
    ),
    # Every class is there: it gives an absent one the largest weight of the others.
    ("MONAI generalized Dice", "generalized_dice", {}, 1),
    ("MONAI generalized Dice volume", "generalized_dice", dict(smooth=0.1), 1),
    ("MONAI clDice", "soft_cldice", dict(smooth=1.0), 1),
    # Three classes, whose mean it takes.
    ("MONAI boundary", "boundary_loss", dict(distances=DISTANCES), 3),
    ("optax poly", "poly_loss", dict(epsilon=1.0), 1),
    ("optax poly volume", "poly_loss", dict(epsilon=2.0), 1),
    ("optax sigmoid focal", "sigmoid_focal_loss", dict(gamma=0.5), 1),
    # As SMP does, it adds smooth before both sides are doubled.
    (
        "optax Dice smooth",
        "soft_dice",
        LINEAR | dict(smooth=2.0, per_image=True),
        1,
    ),
    (
        "optax Tversky smooth",
        "tversky",
        dict(fp_weight=0.8, fn_weight=0.4, smooth=1.0, per_image=True),
        1,
    ),
    # With hard predictions the soft scores are counts.
    ("scikit-learn f1_score", "soft_dice", {}, 1),
    ("scikit-learn f1_score", "soft_dice", LINEAR, 1),
    ("scikit-learn jaccard_score", "soft_iou", {}, 1),
    # F_beta is Tversky with weights in the ratio 1 : beta^2 that add up to 1.
    ("scikit-learn fbeta_score(2)", "tversky", dict(fp_weight=0.2, fn_weight=0.8), 1),
    ("scikit-learn fbeta_score(0.5)", "tversky", dict(fp_weight=0.8, fn_weight=0.2), 1),
]


def read_input(name, *, sigmoid=False):
    logits = jnp.array(STORED["inputs"][name]["logits"], jnp.float32)
    labels = jnp.array(STORED["inputs"][name]["labels"])
    valid = labels != VOID
    if sigmoid and labels.ndim < logits.ndim:
        return logits, jax.nn.one_hot(labels, logits.shape[-1]), valid[..., None]
    if labels.ndim == logits.ndim:
        labels = labels.astype(jnp.float32)
    return logits, labels, valid


@pytest.mark.parametrize(
    ("case", "name", "hyperparameters", "factor"),
    AGREE,
    ids=[f"{name}-{case}" for case, name, *_ in AGREE],
)
def test_loss_and_gradient_equal_those_of_peers(case, name, hyperparameters, factor):
    stored = STORED["cases"][case]
    inputs = read_input(stored["input"], sigmoid=name.startswith("sigmoid"))
    loss = functools.partial(getattr(losses, name), **hyperparameters)
    value, gradient = jax.jit(jax.value_and_grad(loss))(*inputs)
    np.testing.assert_allclose(value, factor * stored["value"], rtol=1e-5)
    expected = factor * np.array(stored["gradient"])
    # Ours is float32: an entry that is a difference of larger ones has their rounding.
    atol = 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=atol)


def test_every_stored_value_is_compared():
    assert {case for case, *_ in AGREE} == set(STORED["cases"])
    assert set(FAULTS) == set(STORED["faults"])


def at(name, loss, **hyperparameters):
    return getattr(losses, loss)(
        *read_input(name, sigmoid=loss.startswith("sigmoid")), **hyperparameters
    )


def agreed(case, factor=1):
    return factor * STORED["cases"][case]["value"]


# The sums of p, which is 1/2 everywhere, are more than a float16 holds.
MANY_PIXELS = jnp.zeros((1, 512, 256, 2), jnp.float16), jnp.zeros((1, 512, 256), int)

# Where a peer is wrong: what is right, and what we say.
FAULTS = {
    # 0 / 0: one crop without a label ends the training.
    "torch CE all void": (
        0.0,
        lambda: losses.softmax_cross_entropy(
            *read_input("plane")[:2], jnp.zeros((2, 3, 4), bool)
        ),
    ),
    # They divide by the void pixels, too.
    "SMP SoftCE mean": (
        agreed("torch CE"),
        lambda: at("plane", "softmax_cross_entropy"),
    ),
    "SMP SoftBCE mean": (
        agreed("SMP SoftBCE sum", 1 / 56),
        lambda: at("tags_void", "sigmoid_cross_entropy"),
    ),
    # The power is of each class, not of their mean: Abraham and Khan 2018, eq. 4.
    "SMP focal Tversky": (
        agreed("MONAI Tversky to the power"),
        lambda: at("line", "focal_tversky", fp_weight=0.3, fn_weight=0.7),
    ),
    # Class 0 has I = N/2, P = N/2, G = N.
    "SMP Dice float16": (
        1 / 3,
        lambda: losses.soft_dice(*MANY_PIXELS, **LINEAR | PRESENT),
    ),
    "optax Dice float16": (
        1 / 3,
        lambda: losses.soft_dice(*MANY_PIXELS, **LINEAR | PRESENT),
    ),
    # No pixel is right; the weight of two absent classes hides it.
    "optax generalized Dice": (
        1.0,
        lambda: losses.generalized_dice(
            100 * jnp.eye(4)[None, 1::-1], jnp.array([[0, 1]])
        ),
    ),
    # FP and FN exchanged.
    "keras Tversky": (
        agreed("SMP Tversky line"),
        lambda: at("line", "tversky", fp_weight=0.9, fn_weight=0.1),
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_losses_are_right_where_a_peer_is_wrong(name):
    right, ours = FAULTS[name]
    wrong = STORED["faults"][name]["value"]
    np.testing.assert_allclose(ours(), right, rtol=1e-5)
    assert wrong is None or abs(wrong - right) > 5e-4


LABELLED = [1, 0, 0, 1]


@pytest.mark.parametrize(
    ("predicted", "fp_weight", "fn_weight", "expected"),
    [
        # TP 2 and FP 2; TP 1 and FN 1; one of each.
        ([1, 1, 1, 1], 0.3, 0.7, 0.6 / 2.6),
        ([1, 1, 1, 1], 0.7, 0.3, 1.4 / 3.4),
        ([1, 1, 1, 1], 0.0, 0.7, 0.0),
        ([1, 0, 0, 0], 0.3, 0.7, 0.7 / 1.7),
        ([1, 0, 0, 0], 0.7, 0.3, 0.3 / 1.3),
        ([1, 0, 0, 0], 0.0, 0.25, 0.2),
        ([1, 1, 0, 0], 0.3, 0.9, 1.2 / 2.2),
        ([1, 1, 0, 0], 2.0, 1.0, 0.75),
    ],
)
def test_tversky_tells_false_positives_from_false_negatives(
    predicted, fp_weight, fn_weight, expected
):
    logits = jnp.array([predicted])[..., None] * 200.0 - 100.0
    labels = jnp.array([LABELLED])[..., None] == 1
    options = dict(fp_weight=fp_weight, fn_weight=fn_weight, multi_label=True)
    loss = losses.tversky(logits, labels, **options)
    np.testing.assert_allclose(loss, expected, rtol=1e-6, atol=1e-9)


def test_tversky_of_a_softmax_counts_a_pixel_for_each_of_two_classes():
    # All said to be 0: TP 2 and FP 2 of class 0, FN 2 of class 1.
    logits = jnp.array([[[100.0, 0.0]] * 4])
    loss = losses.tversky(logits, jnp.array([LABELLED]), fp_weight=0.3, fn_weight=0.7)
    np.testing.assert_allclose(loss, (0.6 / 2.6 + 1) / 2, rtol=1e-6)


def test_signed_distances_are_those_of_monai_half_a_pixel_further_out():
    labels = np.array(STORED["inputs"]["strokes"]["labels"][0])
    distances = signed_distances(labels, num_classes=3)
    # To the digits of float16.
    np.testing.assert_allclose(distances, DISTANCES[0] - 0.5, rtol=1e-3)

"""Settings of every loss, and a batch to try them on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from segloss import losses
from segloss.losses import soft_dice, soft_iou, softmax_cross_entropy

WEIGHTS = (0.5, 2.0, 1.5)
PENALTY = ((0.0, 1.0, 4.0), (2.0, 0.0, 0.5), (3.0, 0.0, 0.0))
SETTINGS = {
    "boundary": (losses.boundary_loss, {}),
    "cldice": (losses.soft_cldice, {"iterations": 1}),
    "cross_entropy_by_samples": (softmax_cross_entropy, {"normalize_by": "samples"}),
    "cross_entropy_smooth": (
        softmax_cross_entropy,
        {"class_weights": WEIGHTS, "label_smoothing": 0.2, "normalize_by": "weights"},
    ),
    "focal": (losses.focal_loss, {"gamma": 0.5, "class_weights": WEIGHTS}),
    "poly": (losses.poly_loss, {"epsilon": 2}),
    "top_k": (losses.top_k_cross_entropy, {"fraction": 0.4}),
    "log_bilinear": (losses.log_bilinear_loss, {"penalty": PENALTY}),
    "sigmoid": (
        losses.sigmoid_cross_entropy,
        {"pos_weight": WEIGHTS, "normalize_by": "weights"},
    ),
    "sigmoid_complement": (losses.normalized_sigmoid_cross_entropy, {}),
    "sigmoid_inverse": (
        losses.normalized_sigmoid_cross_entropy,
        {"weighting": "inverse", "normalize_by": "samples"},
    ),
    "sigmoid_gated": (losses.gated_sigmoid_cross_entropy, {}),
    "sigmoid_focal": (losses.sigmoid_focal_loss, {"gamma": 1}),
    "dice": (soft_dice, {}),
    "dice_linear": (
        soft_dice,
        {"denominator": "linear", "classes": "present", "class_weights": WEIGHTS},
    ),
    "dice_per_image": (soft_dice, {"per_image": True, "smooth": 1}),
    "iou_by_samples": (soft_iou, {"normalize_by": "samples"}),
    "iou_per_image": (
        soft_iou,
        {"per_image": True, "classes": "present", "normalize_by": "samples"},
    ),
    "tversky": (losses.tversky, {"fp_weight": 0.3, "fn_weight": 0.7}),
    "focal_tversky": (
        losses.focal_tversky,
        {"per_image": True, "classes": "present"},
    ),
    "generalized_dice": (losses.generalized_dice, {}),
    "log_cosh_dice": (losses.log_cosh_dice, {"classes": "present"}),
    "lovasz": (losses.lovasz_softmax, {}),
    # So many that crossing from one to the next is no visible step.
    "lovasz_bins": (losses.lovasz_softmax, {"bins": 2**16, "classes": "all"}),
    "lovasz_hinge": (losses.lovasz_hinge, {}),
    "lovasz_per_image": (losses.lovasz_softmax, {"per_image": True}),
    "multi_label": (soft_dice, {"multi_label": True}),
    "multi_label_linear": (
        losses.tversky,
        {
            "multi_label": True,
            "fp_weight": 0.2,
            "per_image": True,
            "classes": "present",
        },
    ),
    "power_of_mean": (losses.focal_tversky, {"power_of": "mean"}),
    "soft_labels": (losses.focal_loss, {"class_weights": WEIGHTS}),
    "soft_labels_of_regions": (soft_dice, {"denominator": "linear"}),
    "weighted_pixels": (softmax_cross_entropy, {"normalize_by": "weights"}),
    "weighted_pixels_of_regions": (
        soft_iou,
        {"per_image": True, "classes": "present"},
    ),
}
# Those whose labels are a mask for each class.
MASKS = {
    s for s in SETTINGS if s.startswith(("sigmoid", "multi_label", "lovasz_hinge"))
}
SOFT = {"soft_labels", "soft_labels_of_regions"}
# A pixel's weight follows from its label, so that shuffling keeps the two together.
WEIGHTED = {"weighted_pixels", "weighted_pixels_of_regions"}
# The derivative of these is written by hand, for reverse mode.
OF_REGIONS = {
    setting
    for setting in SETTINGS
    if setting.startswith(("dice", "iou", "tversky", "focal_tversky", "generalized"))
} | {"log_cosh_dice", "power_of_mean", "weighted_pixels_of_regions"}
# They compare neighbours: pixels laid out otherwise are another image, and the slope
# jumps where two are equal.
OF_NEIGHBOURHOODS = {"cldice"}


def make_loss(setting, **changes):
    """The loss of class ids, also where it takes several labels or distances."""
    function, hyperparameters = SETTINGS[setting]
    loss = functools.partial(function, **(hyperparameters | changes))

    def loss_of_distances(logits, labels, valid=None):
        inside = jax.nn.one_hot(labels.astype(jnp.int32), logits.shape[-1])
        return loss(logits, labels, valid, distances=3 - 5 * inside)

    def loss_of_weights(logits, labels, valid=None):
        weights = 1.0 + (labels % 3).astype(logits.dtype)
        return loss(logits, labels, valid, pixel_weights=weights)

    def loss_of_soft_labels(logits, labels, valid=None):
        shares = jax.nn.one_hot(labels.astype(jnp.int32), logits.shape[-1])
        return loss(logits, shares, valid)

    if setting == "boundary":
        return loss_of_distances
    if setting in WEIGHTED:
        return loss_of_weights
    if setting in SOFT:
        return loss_of_soft_labels
    if setting not in MASKS:
        return loss

    def loss_of_masks(logits, labels, valid=None):
        targets = jax.nn.one_hot(labels.astype(jnp.int32), logits.shape[-1])
        return loss(logits, targets, None if valid is None else valid[..., None])

    return loss_of_masks


def make_batch(seed=0):
    """Eight samples of 3 x 4 pixels and 3 classes: one all void, the others partly."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(8, 3, 4, 3)).astype(np.float32)
    labels = rng.integers(0, 3, size=(8, 3, 4), dtype=np.int32)
    share = np.reshape([0, 0.9, 0.5, 0.7, 1, 0.3, 0.8, 0.6], (8, 1, 1))
    return logits, labels, rng.random((8, 3, 4)) < share


LOGITS, LABELS, VALID = make_batch()

# One of each way to compute, for what hyperparameters have no part in.
OF_EACH_KIND = (
    "boundary",
    "cldice",
    "cross_entropy_smooth",
    "dice_per_image",
    "focal_tversky",
    "generalized_dice",
    "log_bilinear",
    "lovasz",
    "lovasz_bins",
    "lovasz_hinge",
    "multi_label",
    "poly",
    "sigmoid_complement",
    "sigmoid_focal",
    "sigmoid_gated",
    "soft_labels_of_regions",
    "top_k",
    "weighted_pixels",
    "weighted_pixels_of_regions",
)


@functools.cache
def value_and_grad(setting, **changes):
    return jax.jit(jax.value_and_grad(make_loss(setting, **changes)))


def assert_close(actual, desired, rtol=1e-5, atol=1e-7):
    check = functools.partial(np.testing.assert_allclose, rtol=rtol, atol=atol)
    jax.tree.map(check, actual, desired)


assert_equal = functools.partial(assert_close, rtol=0, atol=0)

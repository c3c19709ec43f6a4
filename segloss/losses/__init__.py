"""Segmentation losses: pure functions `(logits, labels, valid) -> scalar`.

Logits are `[b, *spatial, c]`, channels last. Logits `[b, c, h, w]` are refused where
the shape of the labels shows it, but not where c, h and w are equal: move the axis with
`jnp.moveaxis(logits, 1, -1)`.

A valid label that is no class, or a valid value of a mask outside `[0, 1]`, such as
255, makes the loss NaN; `explain` says why. What an invalid pixel holds is ignored.
"""

from segloss.losses.boundary import boundary_loss
from segloss.losses.cross_entropy import (
    focal_loss,
    log_bilinear_loss,
    poly_loss,
    softmax_cross_entropy,
    top_k_cross_entropy,
)
from segloss.losses.diagnostics import explain, gradient_share
from segloss.losses.dice import generalized_dice, log_cosh_dice, soft_dice
from segloss.losses.iou import focal_tversky, soft_iou, tversky
from segloss.losses.lovasz import lovasz_hinge, lovasz_softmax
from segloss.losses.make import (
    LOSSES,
    compound_loss,
    inputs_of,
    make_loss,
    scalars_of,
    takes_masks,
)
from segloss.losses.sigmoid import (
    gated_sigmoid_cross_entropy,
    normalized_sigmoid_cross_entropy,
    sigmoid_cross_entropy,
    sigmoid_focal_loss,
)
from segloss.losses.topology import soft_cldice

__all__ = [
    "LOSSES",
    "boundary_loss",
    "compound_loss",
    "explain",
    "focal_loss",
    "focal_tversky",
    "gated_sigmoid_cross_entropy",
    "generalized_dice",
    "gradient_share",
    "inputs_of",
    "log_bilinear_loss",
    "log_cosh_dice",
    "lovasz_hinge",
    "lovasz_softmax",
    "make_loss",
    "normalized_sigmoid_cross_entropy",
    "poly_loss",
    "scalars_of",
    "sigmoid_cross_entropy",
    "sigmoid_focal_loss",
    "soft_cldice",
    "soft_dice",
    "soft_iou",
    "softmax_cross_entropy",
    "takes_masks",
    "top_k_cross_entropy",
    "tversky",
]

"""Segmentation losses: pure functions `(logits, labels, valid) -> scalar`."""

from segloss.losses.cross_entropy import softmax_cross_entropy
from segloss.losses.diagnostics import explain, gradient_share
from segloss.losses.make import LOSSES, compound_loss, make_loss
from segloss.losses.overlap import soft_dice, soft_iou

__all__ = [
    "LOSSES",
    "compound_loss",
    "explain",
    "gradient_share",
    "make_loss",
    "soft_dice",
    "soft_iou",
    "softmax_cross_entropy",
]

"""Segmentation losses: pure functions `(logits, labels, valid) -> scalar`."""

from segloss.losses.boundary import boundary_loss
from segloss.losses.cross_entropy import softmax_cross_entropy
from segloss.losses.make import LOSSES, compound_loss, inputs_of, make_loss
from segloss.losses.overlap import soft_dice, soft_iou
from segloss.losses.topology import soft_cldice

__all__ = [
    "LOSSES",
    "boundary_loss",
    "compound_loss",
    "inputs_of",
    "make_loss",
    "soft_cldice",
    "soft_dice",
    "soft_iou",
    "softmax_cross_entropy",
]

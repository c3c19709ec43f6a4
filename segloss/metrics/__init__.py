"""Segmentation metrics: counts on the device, scores on the host."""

from segloss.metrics.boundary import boundary_confusion, boundary_iou
from segloss.metrics.calibration import (
    CalibrationCounts,
    calibration_counts,
    expected_calibration_error,
)
from segloss.metrics.confusion import confusion_matrix
from segloss.metrics.scores import (
    cohen_kappa,
    dice_per_class,
    f1_per_class,
    frequency_weighted_iou,
    iou_per_class,
    matthews_corrcoef,
    mean_accuracy,
    mean_iou,
    pixel_accuracy,
    precision_per_class,
    recall_per_class,
    summary,
)

__all__ = [
    "CalibrationCounts",
    "boundary_confusion",
    "boundary_iou",
    "calibration_counts",
    "cohen_kappa",
    "confusion_matrix",
    "dice_per_class",
    "expected_calibration_error",
    "f1_per_class",
    "frequency_weighted_iou",
    "iou_per_class",
    "matthews_corrcoef",
    "mean_accuracy",
    "mean_iou",
    "pixel_accuracy",
    "precision_per_class",
    "recall_per_class",
    "summary",
]

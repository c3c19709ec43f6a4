"""Evaluation, prediction and export of trained models; needs no optimizer."""

from segloss.trained.export import export
from segloss.trained.model import TrainedModel, load_trained
from segloss.trained.predict import Predictions, SkippedImagesError, predict
from segloss.trained.results import evaluate_run

__all__ = [
    "Predictions",
    "SkippedImagesError",
    "TrainedModel",
    "evaluate_run",
    "export",
    "load_trained",
    "predict",
]

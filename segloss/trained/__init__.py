"""Uses of a trained model: evaluation, prediction, export; none needs an optimizer."""

from segloss.trained.export import export
from segloss.trained.model import TrainedModel, load_trained
from segloss.trained.predict import predict
from segloss.trained.results import evaluate_run

__all__ = ["TrainedModel", "evaluate_run", "export", "load_trained", "predict"]

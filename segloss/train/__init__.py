"""Training, evaluation and prediction from a config."""

from segloss.train.log import NonFiniteError
from segloss.train.loop import Stopped, train
from segloss.train.predict import predict
from segloss.train.setup import make_setup, read_config
from segloss.train.trained import evaluate_run

__all__ = [
    "NonFiniteError",
    "Stopped",
    "evaluate_run",
    "make_setup",
    "predict",
    "read_config",
    "train",
]

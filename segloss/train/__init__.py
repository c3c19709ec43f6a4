"""Training, evaluation and prediction from a config."""

from segloss.train.inspection import inspect_dataset
from segloss.train.log import NonFiniteError
from segloss.train.loop import Stopped, train
from segloss.train.predict import predict
from segloss.train.setup import check_same_config, make_setup, read_config
from segloss.train.trained import evaluate_run

__all__ = [
    "NonFiniteError",
    "Stopped",
    "check_same_config",
    "evaluate_run",
    "inspect_dataset",
    "make_setup",
    "predict",
    "read_config",
    "train",
]

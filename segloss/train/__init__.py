"""Training, evaluation, prediction and export from a config."""

from segloss.train.exporting import export
from segloss.train.inspection import inspect_dataset
from segloss.train.log import NonFiniteError
from segloss.train.loop import Stopped, train
from segloss.train.predict import predict
from segloss.train.setup import make_setup
from segloss.train.stored_config import (
    change_fields,
    check_same_config,
    check_same_weights,
    flat_fields,
    read_config,
)
from segloss.train.trained import TrainedModel, evaluate_run, load_trained

__all__ = [
    "NonFiniteError",
    "Stopped",
    "TrainedModel",
    "change_fields",
    "check_same_config",
    "check_same_weights",
    "evaluate_run",
    "export",
    "flat_fields",
    "inspect_dataset",
    "load_trained",
    "make_setup",
    "predict",
    "read_config",
    "train",
]

"""Training from a config."""

from segloss.train.log import NonFiniteError
from segloss.train.loop import Stopped, train
from segloss.train.setup import make_setup

__all__ = ["NonFiniteError", "Stopped", "make_setup", "train"]

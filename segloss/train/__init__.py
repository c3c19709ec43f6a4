"""Training from a config."""

from segloss.train.loop import Stopped, train
from segloss.train.non_finite import NonFiniteError
from segloss.train.optimizers import OPTIMIZERS, SCHEDULES
from segloss.train.setup import make_setup

# By section of a config: what its `name` may be, beside `segloss.config.CHOICES`.
CHOICES = {"optimizer": OPTIMIZERS, "schedule": SCHEDULES}

__all__ = ["CHOICES", "NonFiniteError", "Stopped", "make_setup", "train"]

"""Restoring some of the fields of a checkpoint, as prediction does."""

import contextlib

import numpy as np
import pytest

from segloss.train.step import TrainState
from segloss.trained.checkpoints import Checkpoints

PARAMS = {"conv1": {"kernel": np.full(3, 2.0)}, "conv2": {"kernel": np.full(2, 3.0)}}


@pytest.fixture
def directory(tmp_path):
    one = np.ones((), np.int32)
    state = TrainState(one, PARAMS, batch_stats={}, opt_state=(one,), key=one)
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        checkpoints.save(state, mean_iou=None, meta={})
    return tmp_path


def restore(directory, params):
    like = {"params": params, "batch_stats": {}}
    with contextlib.closing(Checkpoints(directory, read_only=True)) as checkpoints:
        return checkpoints.restore(like).state


def test_only_the_named_fields_are_restored(directory):
    state = restore(directory, PARAMS)
    assert state.keys() == {"params", "batch_stats"}
    np.testing.assert_array_equal(state["params"]["conv2"]["kernel"], [3, 3])


@pytest.mark.parametrize(
    "params",
    [
        pytest.param({"conv1": PARAMS["conv1"]}, id="model_has_fewer"),
        pytest.param(PARAMS | {"conv3": PARAMS["conv1"]}, id="model_has_more"),
        pytest.param(PARAMS | {"conv2": PARAMS["conv1"]}, id="other_shape"),
    ],
)
def test_parameters_of_another_model_are_refused(directory, params):
    with pytest.raises(ValueError, match="does not fit this model"):
        restore(directory, params)

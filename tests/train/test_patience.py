"""A run whose score no longer rises ends early, however often it is interrupted."""

import json
import os
import signal

import chex
import numpy as np
import pytest
from runs import curve, newest_state

from segloss.train import Stopped, train
from segloss.train.patience import Patience

pytestmark = pytest.mark.shared_out(by="module")


@pytest.mark.parametrize(
    ("scores", "limit", "ends_after", "best"),
    [
        ([0.1, 0.3, 0.2, 0.3, 0.4], 2, 4, (2, 0.3)),  # an equal score is no gain
        ([0.1, 0.3, 0.2, 0.4, 0.4], 2, None, (4, 0.4)),
        ([0.1, 0.1], 1, 2, (1, 0.1)),
        ([np.nan, 0.1, None, np.nan], 2, 4, (2, 0.1)),
        ([np.nan, np.nan], 2, 2, (None, None)),
        ([0.3, 0.2, 0.1, 0.0], None, None, (1, 0.3)),
    ],
)
def test_patience_ends_after_so_many_evaluations_without_gain(
    scores, limit, ends_after, best
):
    patience, ended = Patience(limit), None
    for step, score in enumerate(scores, start=1):
        patience.add(step, score)
        if patience.is_exhausted:
            ended = step
            break
    assert ended == ends_after
    assert (patience.best_step, patience.best) == best


@pytest.fixture
def flat_config(tiny_config):
    """Eight steps that change no prediction, each of which is evaluated."""
    tiny_config.total_steps = 8
    tiny_config.evaluate_every_steps = 1
    tiny_config.checkpoint_every_steps = 8
    tiny_config.model.norm = "group"
    tiny_config.schedule = dict(name="constant", learning_rate=1e-12)
    tiny_config.evaluate.patience = 2
    return tiny_config


def terminate_at(step):
    def on_step(number):
        if number == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return on_step


def test_a_run_without_gain_ends_early_and_says_so(flat_config, tmp_path, capsys):
    results = train(flat_config, tmp_path)
    printed = capsys.readouterr().out
    best = results["summary"]["mean_iou"]
    assert (
        "stops early at step 3 of 8: val_mean_iou has not risen in 2 evaluations "
        f"(evaluate.patience=2); its best is {best:.4f} at step 1; evaluates the "
        "newest checkpoint\n" in printed
    )
    assert results["step"] == 3
    assert json.loads((tmp_path / "results.json").read_text())["step"] == 3
    scores = [x["val_mean_iou"] for x in curve(tmp_path) if "val_mean_iou" in x]
    assert scores == [best] * 3

    # The same command finds nothing left to do, and more patience trains on.
    steps = []
    again = train(flat_config, tmp_path, on_step=steps.append)
    assert (steps, again["step"]) == ([], 3)
    flat_config.evaluate.patience = 4
    assert train(flat_config, tmp_path, on_step=steps.append)["step"] == 5
    assert steps == [4, 5]


@pytest.mark.parametrize("stop", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_an_interrupted_run_ends_at_the_same_step(flat_config, tmp_path, stop):
    whole = train(flat_config, tmp_path / "whole")
    with pytest.raises(Stopped):
        train(flat_config, tmp_path / "parts", on_step=terminate_at(stop))
    parts = train(flat_config, tmp_path / "parts")
    assert parts["step"] == whole["step"] == 3
    assert parts["confusion"] == whole["confusion"]
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")
    a, b = (newest_state(flat_config, tmp_path / x) for x in ("whole", "parts"))
    chex.assert_trees_all_equal(a.state, b.state)


@pytest.mark.parametrize("wrong", [0, 2.5, "3", True, float("nan")])
def test_wrong_patience_is_refused(flat_config, tmp_path, wrong):
    with flat_config.ignore_type():
        flat_config.evaluate.patience = wrong
    with pytest.raises(ValueError, match=r"config\.evaluate\.patience must be "):
        train(flat_config, tmp_path / "run")
    assert not (tmp_path / "run").exists()

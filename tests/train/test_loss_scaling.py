"""Training in float16: overflow, loss scaling, skipped steps."""

import itertools
import json

import jax
import numpy as np
import pytest
from runs import curve, newest_state
from test_step import begin, first_batches

from segloss.devices import first_replica, shard
from segloss.train import NonFiniteError, make_setup, train

pytestmark = pytest.mark.shared_out(by="module")


def in_float16(config, *, weight, loss_scale=None, steps=4):
    """With this weight of the loss, the gradient is about this many times larger."""
    config.model.dtype = "float16"
    config.loss.weight = weight
    config.total_steps = steps
    config.checkpoint_every_steps = config.evaluate_every_steps = steps
    config.log_every_steps = steps
    if loss_scale is not None:
        config.optimizer.loss_scale = loss_scale
    return config


def steps_taken(config, num_steps, num_devices=1):
    """The scalars and the parameters after each step."""
    setup = make_setup(config)
    train_step, state = begin(setup, num_devices)
    taken = [({}, first_replica(state.params))]
    for batch in first_batches(setup, num_steps):
        state, scalars = train_step(state, shard(batch, num_devices))
        taken.append(first_replica((scalars, state.params)))
    return taken


def test_overflow_stops_the_run_and_names_the_cure(tiny_config, tmp_path):
    with pytest.raises(NonFiniteError) as stopped:
        train(in_float16(tiny_config, weight=1e9), tmp_path)
    line = str(stopped.value)
    assert line.startswith("step 1: grad_norm is ")
    assert ", and so is param_norm; its batch holds samples 'train_000" in line
    assert (
        "; float16 ends at 65504: set config.optimizer.loss_scale='dynamic' or "
        "config.model.dtype='bfloat16'. The saved checkpoints are finite."
    ) in line


def test_a_small_scale_trains_what_overflows(tiny_config):
    tiny_config.model.norm = "group"
    taken = steps_taken(in_float16(tiny_config, weight=1e9, loss_scale=2.0**-16), 4)
    tiny_config.model.dtype = "float32"
    del tiny_config.optimizer.loss_scale
    wanted = steps_taken(tiny_config, 4)
    for (found, _), (right, _) in zip(taken[1:], wanted[1:], strict=True):
        assert found["skipped_steps"] == 0
        assert found["loss_scale"] == 2.0**-16
        for name in ("loss", "grad_norm", "param_norm"):
            np.testing.assert_allclose(found[name], right[name], rtol=0.02)


@pytest.mark.parametrize("num_devices", [1, 4])
def test_dynamic_scale_skips_halves_and_then_trains(tiny_config, num_devices):
    config = in_float16(tiny_config, weight=100.0, loss_scale="dynamic", steps=8)
    taken = steps_taken(config, 8, num_devices)
    skipped = [int(scalars["skipped_steps"]) for scalars, _ in taken[1:]]
    assert skipped[:2] == [1, 2]
    assert 2 < skipped[-1] < 7
    scales = [float(scalars["loss_scale"]) for scalars, _ in taken[1:]]
    assert scales == [2.0 ** (16 - n) for n in skipped]
    for (_, before), (scalars, after) in itertools.pairwise(taken):
        same = jax.tree.map(np.array_equal, before, after)
        was_skipped = scalars["skipped_in_a_row"] > 0
        assert all(jax.tree.leaves(same)) == was_skipped
        assert np.isfinite(scalars["grad_norm"]) == (not was_skipped)
        assert np.isfinite(scalars["param_norm"])


def test_skipped_steps_are_logged_and_a_resumed_run_has_the_same_bits(
    tiny_config, tmp_path
):
    config = in_float16(tiny_config, weight=100.0, loss_scale="dynamic", steps=10)
    train(config, tmp_path / "whole")
    config.checkpoint_every_steps = 2

    def fail(step):
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "resumed", on_step=fail)
    train(config, tmp_path / "resumed")
    lines = curve(tmp_path / "whole")
    assert curve(tmp_path / "resumed") == lines
    ends = [newest_state(config, tmp_path / x).state for x in ("whole", "resumed")]
    jax.tree.map(np.testing.assert_array_equal, *ends)
    steps = [line for line in lines if "loss" in line]
    assert steps[0]["skipped_steps"] == 1
    assert steps[0]["grad_norm"] is None
    assert 2 < steps[-1]["skipped_steps"] < 9
    assert steps[-1]["skipped_steps"] == ends[0].loss_scale["skipped_steps"]
    assert steps[-1]["loss"] is not None
    assert "skipped_in_a_row" not in steps[0]
    # The schedule waits for the first update.
    assert steps[1]["learning_rate"] == steps[0]["learning_rate"]
    assert (tmp_path / "whole/results.json").exists()


def test_a_run_that_skips_too_many_steps_in_a_row_stops(tiny_config, tmp_path):
    config = in_float16(tiny_config, weight=1.0, loss_scale=1e30, steps=30)
    config.log_every_steps = 5
    with pytest.raises(
        ValueError, match="step 25: 25 steps in a row were skipped"
    ) as e:
        train(config, tmp_path)
    assert str(e.value).endswith(
        ", because their gradient was NaN or infinite; the loss scale is 1e+30; lower "
        "config.optimizer.loss_scale if it is a number, or set "
        "config.model.dtype='bfloat16'. The saved checkpoints are finite."
    )
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert (last["step"], last["skipped_steps"]) == (24, 24)

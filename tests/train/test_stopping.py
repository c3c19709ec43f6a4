"""A run that is stopped or killed loses nothing but time."""

import json
import multiprocessing
import os
import shutil
import signal
import time

import chex
import pytest
from runs import curve, newest_state, run_until

from segloss.train import Stopped, loop, make_setup, train, watch
from segloss.trained import results as trained_results
from segloss.trained.evaluation import evaluate

pytestmark = pytest.mark.shared_out(by="module")


def stop_at(step):
    """An `on_step` that asks the run to stop, as a cluster does."""

    def on_step(number):
        if number == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return on_step


def evaluate_under_signal(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGTERM)
    return evaluate(*args, **kwargs)


def kept_scores(workdir):
    """Step to score of the checkpoints on disk."""
    files = (workdir / "checkpoints").glob("*/score/metadata")
    return {int(p.parts[-3]): json.loads(p.read_text())["mean_iou"] for p in files}


@pytest.mark.parametrize(
    ("number", "num_workers", "group"),
    [
        pytest.param(signal.SIGTERM, 0, [], marks=pytest.mark.slow, id="sigterm"),
        pytest.param(signal.SIGINT, 2, ["group"], id="ctrl_c_with_workers"),
    ],
)
def test_stopped_after_2_steps_and_resumed_equals_4_bit_for_bit(
    tiny_config, tmp_path, finished_run, number, num_workers, group
):
    tiny_config.data.num_workers = num_workers
    # Only the signal makes it save here, at no step that a checkpoint is due.
    tiny_config.checkpoint_every_steps = 4
    done = run_until(tmp_path / "parts", tiny_config, 2, number, *group)
    assert done.returncode == 128 + number, done.stderr
    assert f"{number.name}: saved at step 2 of 4" in done.stdout
    assert "Traceback" not in done.stderr
    assert curve(tmp_path / "parts") == curve(finished_run)[:2]

    steps = []
    again = train(tiny_config, tmp_path / "parts", on_step=steps.append)
    assert steps == [3, 4]
    assert not multiprocessing.active_children()
    assert curve(tmp_path / "parts") == curve(finished_run)
    a, b = (newest_state(tiny_config, w) for w in (finished_run, tmp_path / "parts"))
    assert a.step == b.step == 4
    chex.assert_trees_all_equal(a.state, b.state)
    assert a.state.batch_stats, "BatchNorm statistics must be part of the comparison"
    results = json.loads((finished_run / "results.json").read_text())
    for key in ("summary", "confusion", "per_class", "images_seen"):
        assert again[key] == results[key]


def test_signal_during_evaluation_saves_without_waiting_for_its_end(
    tiny_config, tmp_path, monkeypatch
):
    monkeypatch.setattr(watch, "evaluate", evaluate_under_signal)
    tiny_config.evaluate.batch_size = 4
    with pytest.raises(Stopped) as stopped:
        train(tiny_config, tmp_path)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert newest_state(tiny_config, tmp_path).step == 2
    assert "val_mean_iou" not in (tmp_path / "metrics.jsonl").read_text()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_stops_at_the_best_step_change_neither_scores_nor_results(
    tiny_config, tmp_path, monkeypatch
):
    tiny_config.seed = 6  # of which step 7 is better than step 8
    tiny_config.evaluate.checkpoint = "best"
    tiny_config.total_steps = 8
    tiny_config.evaluate_every_steps = 7
    tiny_config.checkpoint_every_steps = 8
    whole = train(tiny_config, tmp_path / "whole")
    best = whole["step"]
    assert best == 7
    scores = kept_scores(tmp_path / "whole")
    assert scores[best] == max(scores.values()) > 0

    with pytest.raises(Stopped):
        train(tiny_config, tmp_path / "parts", on_step=stop_at(best))
    assert best in kept_scores(tmp_path / "parts")
    steps = []
    # The stopped run evaluates first, and is stopped while it does.
    with monkeypatch.context() as patch:
        patch.setattr(watch, "evaluate", evaluate_under_signal)
        with pytest.raises(Stopped):
            train(tiny_config, tmp_path / "parts", on_step=steps.append)
    assert steps == []
    assert not (tmp_path / "parts" / "results.json").exists()
    parts = train(tiny_config, tmp_path / "parts", on_step=steps.append)
    assert steps == list(range(best + 1, 9))
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")
    assert kept_scores(tmp_path / "parts") == scores
    for key in ("step", "summary", "confusion", "per_class", "images_seen"):
        assert parts[key] == whole[key]


def test_score_is_not_lost_where_a_kill_follows_it(
    tiny_config, tmp_path, monkeypatch, finished_run
):
    class Killed(Exception):  # noqa: N818, it stands for a signal
        pass

    def write(writer, step, scalars):
        if "val_mean_iou" in scalars:
            raise Killed
        write_whole(writer, step, scalars)

    write_whole = loop.MetricWriter.write
    with pytest.raises(Stopped):
        train(tiny_config, tmp_path, on_step=stop_at(2))
    with monkeypatch.context() as patch:
        patch.setattr(loop.MetricWriter, "write", write)
        with pytest.raises(Killed):
            train(tiny_config, tmp_path)
    with pytest.raises(Stopped):
        train(tiny_config, tmp_path, on_step=stop_at(3))
    assert curve(tmp_path) == curve(finished_run)[: len(curve(tmp_path))]
    scored = {x["step"]: x["val_mean_iou"] for x in curve(tmp_path) if "loss" not in x}
    assert scored[2] == kept_scores(tmp_path)[2]


def test_speed_after_a_stop_does_not_count_the_evaluation_that_was_left(
    tiny_config, tmp_path, monkeypatch
):
    tiny_config.total_steps = 8
    tiny_config.evaluate_every_steps = 4
    tiny_config.log_every_steps = 1
    with pytest.raises(Stopped):
        train(tiny_config, tmp_path, on_step=stop_at(4))
    times = []

    def evaluate_slowly(*args, **kwargs):
        time.sleep(2)
        evaluation = evaluate(*args, **kwargs)
        times.append(time.monotonic())
        return evaluation

    monkeypatch.setattr(watch, "evaluate", evaluate_slowly)
    train(tiny_config, tmp_path, on_step=lambda step: times.append(time.monotonic()))
    lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    (speed,) = (x["images_per_second"] for x in lines if x["step"] == 5)
    # Step 5 is over when step 6 was handed to the devices.
    evaluated, _, after = times[:3]
    images = len(make_setup(tiny_config).sampler[4])
    assert images / speed < after - evaluated


def test_signal_during_the_final_evaluation_is_a_stop(
    tiny_config, tmp_path, monkeypatch, finished_run
):
    shutil.copytree(finished_run, tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(trained_results, "evaluate", evaluate_under_signal)
        with pytest.raises(Stopped) as stopped:
            train(tiny_config, tmp_path / "run")
    assert stopped.value.code == 128 + signal.SIGTERM
    assert not (tmp_path / "run" / "results.json").exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    again = train(tiny_config, tmp_path / "run")
    results = json.loads((finished_run / "results.json").read_text())
    assert again["summary"] == results["summary"]


def test_killed_run_goes_on_from_its_checkpoint(tiny_config, tmp_path, finished_run):
    done = run_until(tmp_path / "killed", tiny_config, 3, signal.SIGKILL)
    assert done.returncode == -signal.SIGKILL
    # A kill may leave a line half written.
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    train(tiny_config, tmp_path / "killed")
    assert curve(tmp_path / "killed") == curve(finished_run)
    a, b = (newest_state(tiny_config, w) for w in (finished_run, tmp_path / "killed"))
    chex.assert_trees_all_equal(a.state, b.state)


def test_a_finished_run_takes_no_step_and_says_the_same(
    tiny_config, finished_run, tmp_path
):
    shutil.copytree(finished_run, tmp_path / "copy")
    steps = []
    again = train(tiny_config, tmp_path / "copy", on_step=steps.append)
    assert steps == []
    results = json.loads((finished_run / "results.json").read_text())
    assert again["summary"] == results["summary"]

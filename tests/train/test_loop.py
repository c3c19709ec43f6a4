import dataclasses
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

from segloss.config import write_config
from segloss.data import iterate_batches
from segloss.data.datasets import longtail_scenes
from segloss.data.loading import pipeline
from segloss.train import NonFiniteError, Stopped, loop, make_setup, train, watch
from segloss.train.step import make_state
from segloss.trained import results as trained_results
from segloss.trained.checkpoints import Checkpoints
from segloss.trained.evaluation import evaluate

ROOT = Path(__file__).parents[2]

# A real run in a process of its own, which a real signal stops after a given step.
RUN = """
import os, signal, sys
from pathlib import Path
from segloss.config import read_config
from segloss.train import train

def on_step(step):
    if step == int(sys.argv[2]):
        # 0 is the whole group of processes, which is what Ctrl-C in a terminal signals.
        os.kill(0 if sys.argv[4:] else os.getpid(), int(sys.argv[3]))

if __name__ == "__main__":
    train(read_config(Path(sys.argv[1])), sys.argv[1], on_step=on_step)
"""


def run_until(workdir, config, step, number, *group):
    """Trains in a new process that gets signal `number` at `step`.

    Returns once nothing holds its output open, so its workers are gone as well.
    """
    workdir.mkdir()
    (workdir / "config.json").write_text(config.to_json_best_effort())
    return subprocess.run(
        [sys.executable, "-c", RUN, str(workdir), str(step), str(int(number)), *group],
        cwd=ROOT,
        capture_output=True,
        text=True,
        start_new_session=True,
        timeout=300,
    )


def newest_state(config, workdir):
    setup = make_setup(config)
    like = make_state(setup.model, setup.optimizer, seed=0, image_hw=(32, 32))
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    restored = checkpoints.restore(like)
    checkpoints.close()
    return restored


def curve(workdir):
    """What was written in order, without what depends on the machine's speed."""
    speed = {"images_per_second", "data_wait_fraction"}
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k not in speed} for line in lines]


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


def test_bad_image_is_skipped_and_counted_where_asked_for(
    tiny_config, tmp_path, monkeypatch
):
    def draw_split(config, split):
        for sample in whole(config, split):
            cut = sample.image[: len(sample.image) // 2]
            bad = sample.stem == "train_00003"
            yield dataclasses.replace(sample, image=cut) if bad else sample

    whole = longtail_scenes.draw_split
    monkeypatch.setattr(longtail_scenes, "draw_split", draw_split)
    tiny_config.data.data_dir = str(tmp_path / "datasets")
    sampler = make_setup(tiny_config).sampler
    chosen = [int(3 in sampler[k]) for k in range(4)]
    assert 0 < sum(chosen) < 4
    with pytest.raises(ValueError, match="image of sample 'train_00003' of split"):
        train(tiny_config, tmp_path / "run")
    # The same run goes on, once its user wants the rest all the same.
    tiny_config.data.on_bad_sample = "skip"
    with pytest.warns(UserWarning, match=r"'train_00003' .* bad samples so far: 1"):
        train(tiny_config, tmp_path / "run")
    lines = [line for line in curve(tmp_path / "run") if "loss" in line]
    assert [line.get("skipped_samples", 0) for line in lines] == chosen
    used = sum(len(sampler[k]) for k in range(4)) - sum(chosen)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["images_seen"] == used


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
    files = (workdir / "checkpoints").glob("*/metrics/metrics")
    return {int(p.parts[-3]): json.loads(p.read_text())["mean_iou"] for p in files}


def test_stops_at_the_best_step_change_neither_scores_nor_results(
    tiny_config, tmp_path, monkeypatch
):
    tiny_config.evaluate.checkpoint = "best"
    tiny_config.total_steps = 8
    tiny_config.evaluate_every_steps = 7
    tiny_config.checkpoint_every_steps = 8
    whole = train(tiny_config, tmp_path / "whole")
    best = whole["step"]
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


def test_what_a_run_leaves(finished_run):
    found = {p.name for p in finished_run.iterdir()}
    assert found == {
        "checkpoints",
        "config.json",
        "confusions.npz",
        "figures",
        "metrics.jsonl",
        "results.json",
        "tensorboard",
    }
    results = json.loads((finished_run / "results.json").read_text())
    assert results["num_images"] == 8
    per_image = np.load(finished_run / "confusions.npz")["per_image"]
    assert per_image.shape == (8, 21, 21)
    np.testing.assert_array_equal(per_image.sum(axis=0), results["confusion"])
    assert np.sum(results["confusion"]) > 0
    assert len(results["per_class"]) == 21
    lines = [
        json.loads(x) for x in (finished_run / "metrics.jsonl").read_text().splitlines()
    ]
    assert [x["step"] for x in lines if "val_mean_iou" in x] == [2, 4]
    final = [x for x in lines if "val_mean_iou" in x][-1]
    assert final["val_mean_iou"] == results["summary"]["mean_iou"]
    assert {"images_per_second", "data_wait_fraction"} <= lines[1].keys()
    names = [row["name"] for row in results["per_class"]]
    for kind in ("gradient_share", "pixel_share"):
        shared = [x for x in lines if f"{kind}/background" in x]
        assert [x["step"] for x in shared] == [2, 4]
        for line in shared:
            assert sum(line[f"{kind}/{name}"] for name in names) == pytest.approx(1)
    events = list((finished_run / "tensorboard").iterdir())
    assert sum(p.stat().st_size for p in events) > 100


def test_tensorboard_reads_back_the_curve(finished_run):
    from tensorboardX.proto import event_pb2

    read = {}
    for path in (finished_run / "tensorboard").iterdir():
        data = path.read_bytes()
        while data:
            # A record is its length, a checksum, the event, a checksum.
            length = int.from_bytes(data[:8], "little")
            event = event_pb2.Event.FromString(data[12 : 12 + length])
            for value in event.summary.value:
                read[value.tag, event.step] = value.simple_value
            data = data[16 + length :]
    assert sorted(step for tag, step in read if tag == "loss") == [1, 2, 3, 4]
    for line in curve(finished_run):
        for name in {"loss", "gradient_share/background"} & line.keys():
            assert read[name, line["step"]] == pytest.approx(line[name], rel=1e-6)


def test_newest_and_best_checkpoints_are_kept(tiny_config, tmp_path):
    tiny_config.total_steps = 6
    tiny_config.checkpoint_every_steps = 1
    tiny_config.evaluate_every_steps = 2
    train(tiny_config, tmp_path)
    lines = [
        json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ]
    scores = {x["step"]: x["val_mean_iou"] for x in lines if "val_mean_iou" in x}
    best = max(scores.values())
    kept = {int(p.name) for p in (tmp_path / "checkpoints").iterdir()}
    assert 6 in kept
    assert any(scores.get(step) == best for step in kept)
    assert len(kept) <= 3


def test_non_finite_loss_stops_the_run_and_checkpoints_stay_finite(
    tiny_config, tmp_path
):
    tiny_config.schedule = dict(name="constant", learning_rate=1e16)
    tiny_config.optimizer = dict(name="sgd")
    tiny_config.checkpoint_every_steps = 1
    with pytest.raises(
        NonFiniteError, match=r"step \d+: (loss|grad_norm|param_norm) is (nan|inf)"
    ):
        train(tiny_config, tmp_path)
    restored = newest_state(tiny_config, tmp_path)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(restored.state))
    assert not (tmp_path / "results.json").exists()


def test_run_of_another_config_is_refused_and_left_alone(tiny_config, finished_run):
    before = (finished_run / "config.json").read_text()
    tiny_config.schedule.learning_rate = 0.5
    with pytest.raises(ValueError, match=r"schedule.learning_rate was 0.003, is 0.5"):
        train(tiny_config, finished_run)
    assert (finished_run / "config.json").read_text() == before


def test_checkpoint_of_another_dataset_is_refused(tiny_config, finished_run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(finished_run, other)
    tiny_config.data.train = 41
    # As if the data under the same root had changed.
    write_config(tiny_config, other)
    before = (other / "config.json").read_text()
    with pytest.raises(ValueError, match="the dataset changed since checkpoint 4"):
        train(tiny_config, other)
    assert (other / "config.json").read_text() == before


def test_best_checkpoint_is_what_is_reported_where_asked_for(tiny_config, tmp_path):
    tiny_config.evaluate.checkpoint = "best"
    tiny_config.total_steps = 8
    tiny_config.evaluate_every_steps = 1
    tiny_config.checkpoint_every_steps = 8
    results = train(tiny_config, tmp_path)
    scores = {x["step"]: x["val_mean_iou"] for x in curve(tmp_path) if "loss" not in x}
    assert len(scores) == 8
    assert results["summary"]["mean_iou"] == max(scores.values())
    assert scores[results["step"]] == max(scores.values())


def test_boundary_loss_trains_on_distances_that_the_loader_made(
    tiny_config, tmp_path, monkeypatch
):
    threads = set()

    def signed_distances(*args, **kwargs):
        threads.add(threading.current_thread())
        return make_distances(*args, **kwargs)

    make_distances = pipeline.signed_distances
    monkeypatch.setattr(pipeline, "signed_distances", signed_distances)
    with tiny_config.ignore_type():
        tiny_config.loss = [
            dict(name="softmax_cross_entropy"),
            dict(name="boundary_loss", weight=0.01),
        ]
    train(tiny_config, tmp_path)
    losses = [x["loss"] for x in curve(tmp_path) if "loss" in x]
    assert len(losses) == 4
    assert np.isfinite(losses).all()
    assert threads
    assert threading.main_thread() not in threads


def test_run_of_another_loss_makes_no_distances(tiny_config, tmp_path, monkeypatch):
    class FirstBatch(Exception):  # noqa: N818, it is what was asked for
        pass

    def load(*args, **kwargs):
        raise FirstBatch(*next(iterate_batches(*args, **kwargs)))

    monkeypatch.setattr(loop, "iterate_batches", load)
    with pytest.raises(FirstBatch) as loaded:
        train(tiny_config, tmp_path)
    assert set(loaded.value.args) == {"images", "labels", "valid", "sample_valid"}


def test_rows_that_no_image_ever_fills_are_told_once_at_the_start(
    tiny_config, tmp_path, capsys
):
    assert tiny_config.sampler.batch_max == 9
    train(tiny_config, tmp_path)
    line = (
        "sampler.batch_max=9 on 8 devices: every step computes 16 rows, and 7 of them "
        "never hold an image; batch_max=8 or 16 has no such rows\n"
    )
    before, after = capsys.readouterr().out.split(line)
    assert "trains for 4 steps" in before
    assert "step 2: val mean IoU" in after


def test_environment_of_the_tests_has_eight_devices():
    assert "device_count=8" in os.environ["XLA_FLAGS"]

"""What a run resumes from, refuses and replaces, and what needs no optimizer."""

import json
import math
import os
import random
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import chex
import numpy as np
import pytest
from PIL import Image
from runs import curve, newest_state

from segloss.config import read_config, write_config
from segloss.train import Stopped, train
from segloss.train.workdir import claimed
from segloss.trained import evaluate_run, export, load_trained, predict


@pytest.fixture
def run(finished_run, tmp_path):
    """A copy of a run of 4 steps, with checkpoints of steps 2 and 4."""
    return shutil.copytree(finished_run, tmp_path / "run")


def flip_a_bit(item):
    """Flips a bit in the largest file of an item of a checkpoint."""
    path = max(
        (x for x in item.rglob("*") if x.is_file()), key=lambda x: x.stat().st_size
    )
    contents = bytearray(path.read_bytes())
    contents[random.Random(0).randrange(len(contents))] ^= 16
    path.write_bytes(contents)


def stop_at(step):
    def on_step(number):
        if number == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return on_step


def steps_of(run):
    names = (x.name for x in (run / "checkpoints").iterdir())
    return sorted(int(name) for name in names if name.isdecimal())


def scores_of(run):
    return json.loads((run / "results.json").read_text())["summary"]


@pytest.mark.parametrize("item", ["variables", "optimizer"])
def test_a_run_with_a_damaged_checkpoint_resumes_from_the_one_before(
    tiny_config, run, finished_run, item
):
    assert steps_of(run) == [2, 4]
    flip_a_bit(run / "checkpoints" / "4" / item)
    steps = []
    message = r"checkpoints/4 is damaged \(.* has changed\); checkpoint 2 is used"
    with pytest.warns(UserWarning, match=message):
        results = train(tiny_config, run, on_step=steps.append)
    assert steps == [3, 4]
    assert steps_of(run) == [2, 4]
    assert len(list((run / "checkpoints").glob("4.damaged.*"))) == 1
    assert curve(run) == curve(finished_run)
    a, b = (newest_state(tiny_config, x) for x in (finished_run, run))
    chex.assert_trees_all_equal(a.state, b.state)
    assert results["summary"] == scores_of(finished_run)


def test_evaluation_passes_over_a_damaged_checkpoint(tiny_config, run):
    flip_a_bit(run / "checkpoints" / "4" / "variables")
    with pytest.warns(UserWarning, match="4 is damaged .* checkpoint 2 is used"):
        assert evaluate_run(tiny_config, run)["step"] == 2
    assert steps_of(run) == [2, 4]
    flip_a_bit(run / "checkpoints" / "2" / "variables")
    message = (
        r"4 is damaged .*2 is damaged .* none is left; restore one from a copy, or "
        "choose another --workdir"
    )
    with pytest.raises(ValueError, match=rf"{message}\.$"):
        evaluate_run(tiny_config, run)
    weights = "--config.model.pretrained=RUN there starts from the weights of this run"
    with pytest.raises(ValueError, match=rf"{message}; {weights} if they are sound\.$"):
        train(tiny_config, run)


def test_a_run_whose_directory_is_moved_stops_in_a_line_and_resumes_there(
    tiny_config, tmp_path, finished_run
):
    run, moved = tmp_path / "run", tmp_path / "moved"

    def move(step):
        if step == 3:
            while not (run / "checkpoints" / "2").is_dir():  # saved in the background
                time.sleep(0.01)
            run.rename(moved)

    message = (
        "/run(/metrics.jsonl)? was moved, deleted or replaced while the run was "
        "writing to it; move it back, or give its new directory as --workdir, and give "
        "the same command again to resume from the newest checkpoint.$"
    )
    with pytest.raises(ValueError, match=message):
        train(tiny_config, run, on_step=move)
    assert not run.exists()
    train(tiny_config, moved)
    assert curve(moved) == curve(finished_run)


def test_using_a_model_needs_no_optimizer(tiny_config, run, finished_run, tmp_path):
    for step in steps_of(run):
        shutil.rmtree(run / "checkpoints" / str(step) / "optimizer")
    with tiny_config.ignore_type():
        tiny_config.optimizer = dict(name="sgd", momentum=0.5)
    assert evaluate_run(tiny_config, run)["summary"] == scores_of(finished_run)
    image = np.random.default_rng(0).integers(0, 256, (32, 40, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    predict(tiny_config, run, tmp_path / "a.png")
    (path,) = (run / "predictions").rglob("indices/*.png")
    expected = load_trained(tiny_config, finished_run).predict(image)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), expected)
    assert (export(tiny_config, run) / "model.bin").stat().st_size > 1000
    message = r"4 is damaged \(optimizer/digests.json is missing\)"
    with pytest.raises(ValueError, match=message):
        train(read_config(run), run)


def test_a_raised_total_trains_on_as_if_it_had_been_so_from_the_start(
    tiny_config, tmp_path, finished_run, capsys
):
    tiny_config.schedule = dict(name="constant", learning_rate=3e-3)
    whole = tiny_config.copy_and_resolve_references()
    tiny_config.total_steps = 2
    first = train(tiny_config, tmp_path / "parts")
    tiny_config.total_steps = 4
    capsys.readouterr()
    steps = []
    results = train(tiny_config, tmp_path / "parts", on_step=steps.append)
    said = capsys.readouterr().out
    assert steps == [3, 4]
    assert "total_steps was 2, is 4; the schedule follows from step 2 on\n" in said
    assert read_config(tmp_path / "parts").total_steps == 4
    assert (first["step"], results["step"]) == (2, 4)
    assert scores_of(tmp_path / "parts") == results["summary"]
    train(whole, tmp_path / "whole")
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")
    a, b = (newest_state(whole, tmp_path / x) for x in ("parts", "whole"))
    chex.assert_trees_all_equal(a.state, b.state)


def test_a_schedule_follows_a_raised_total(tiny_config, run, finished_run):
    tiny_config.schedule.warmup_steps = 0
    write_config(tiny_config, run)
    tiny_config.total_steps = 8
    with pytest.raises(Stopped):
        train(tiny_config, run, on_step=stop_at(6))
    rates = {x["step"]: x["learning_rate"] for x in curve(run) if "learning_rate" in x}
    for step in (5, 6):  # after `step - 1` steps of half a cosine over 8
        expected = 0.003 * (1 + math.cos(math.pi * (step - 1) / 8)) / 2
        assert rates[step] == pytest.approx(expected, rel=1e-5)
    # Until the longer run is finished, the results are those of the shorter one.
    assert scores_of(run) == scores_of(finished_run)
    tiny_config.total_steps = 5
    message = r"total_steps must be >= 6, the number of steps .* has taken, got 5;"
    with pytest.raises(ValueError, match=message):
        train(tiny_config, run)


@pytest.mark.parametrize("left", [[], ["results.json"]], ids=["begun", "finished"])
def test_another_config_is_refused_also_without_a_checkpoint(tiny_config, run, left):
    for path in run.iterdir():
        if path.name not in ("config.json", *left):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    tiny_config.seed = 1
    with pytest.raises(ValueError, match="holds a run with another config: seed was 0"):
        train(tiny_config, run)
    assert sorted(x.name for x in run.iterdir()) == ["config.json", *left]


@pytest.mark.filterwarnings("ignore:.*pixel")  # no label holds the class `car`
def test_a_run_is_told_which_classes_were_added_and_removed(
    finished_folder_run, tmp_path
):
    root = shutil.copytree(finished_folder_run.parent / "shapes", tmp_path / "shapes")
    run = shutil.copytree(finished_folder_run, tmp_path / "run")
    config = read_config(run)
    config.data.root, config.data.data_dir = str(root), str(tmp_path / "datasets")
    (root / "classes.txt").write_text("0 ground\n1 bar\n2 box\n3 car\n")
    message = r"trained on 3 classes, .* has 4: added car\. .*pretrained=.*/run starts"
    for use in (train, evaluate_run):
        with pytest.raises(ValueError, match=message):
            use(config, run)
    (root / "classes.txt").write_text("0 ground\n1 bar\n2 box\n")
    with pytest.raises(ValueError, match="has 3: the order changed"):
        train(config, run)
    (root / "classes.txt").write_text("0 ground\n1 box\n2 pole\n")
    with pytest.raises(ValueError, match="has 3: added pole; removed bar"):
        train(config, run)


def test_a_run_holds_its_workdir_and_a_second_one_changes_nothing(
    tiny_config, run, tmp_path
):
    def second(step):
        before = {x: x.stat().st_mtime_ns for x in run.rglob("*")}
        with ThreadPoolExecutor(1) as other:
            started = other.submit(train, tiny_config, run)
            refusals.append(str(started.exception()))
        assert {x: x.stat().st_mtime_ns for x in run.rglob("*")} == before
        os.kill(os.getpid(), signal.SIGTERM)

    refusals = []
    tiny_config.total_steps = 5
    with pytest.raises(Stopped):
        train(tiny_config, run, on_step=second)
    (refusal,) = refusals
    assert f"/run is in use by process {os.getpid()} on " in refusal
    assert not (run / ".lock").exists()


def test_unfinished_files_of_a_killed_run_are_removed_and_no_others(run):
    unfinished = [
        run / f"{name}.{'0123456789abcdef' * 2}"
        for name in (
            *(".metrics.jsonl", ".config.json", "figures/.examples.png"),
            "checkpoints/4/score/.metadata",
        )
    ]
    others = [
        run / name
        for name in (
            *(".metrics.jsonl.swp", ".notes.txt.0123456789abcdef0123456789abcdef"),
            *("metrics.jsonl.0123456789abcdef0123456789abcdef", "notes.txt"),
        )
    ]
    for path in unfinished + others:
        path.touch()
    with claimed(run):
        pass
    assert [path for path in unfinished if path.exists()] == []
    assert [path for path in others if not path.exists()] == []

"""Checkpoints that real processes write and read together."""

import contextlib
import json
import signal

import chex
import numpy as np
import pytest
from processes import commands_of, run_together, running

from segloss.config import write_config
from segloss.train import train
from segloss.trained.checkpoints import Checkpoints

pytestmark = pytest.mark.shared_out(by="module")

STATE = """
import contextlib, json, pathlib, sys, warnings
import numpy as np
from segloss import hosts
from segloss.train.step import TrainState
from segloss.trained.checkpoints import Checkpoints

directory = pathlib.Path(sys.argv[1])

def say(*values):
    print("says", json.dumps(values), flush=True)

def state_at(step):
    draw = np.random.default_rng(step).normal
    return TrainState(
        step=np.int32(step),
        params={"kernel": draw(size=40)},
        batch_stats={},
        opt_state=(draw(size=40),),
        key=np.arange(2, dtype=np.uint32),
    )

def save(scores):
    with contextlib.closing(Checkpoints(directory)) as checkpoints:
        for step, score in scores.items():
            checkpoints.save(state_at(step), mean_iou=score, meta={"at": step})

def read(which="newest"):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with contextlib.closing(Checkpoints(directory, read_only=True)) as checkpoints:
            restored = checkpoints.restore(state_at(1), which=which)
    expected = state_at(restored.step)
    assert (restored.state.params["kernel"] == expected.params["kernel"]).all()
    assert (restored.state.opt_state[0] == expected.opt_state[0]).all()
    assert restored.meta == {"at": restored.step}
    return restored.step, [str(x.message) for x in caught]
"""

TOGETHER = """
save({1: 0.7, 2: 0.5, 3: None, 4: 0.1})
save({4: 0.3, 5: None})
say(read(), read("best"))
hosts.exchange(None)
if hosts.is_first():
    path = directory / "5" / "meta" / "metadata"
    path.write_bytes(path.read_bytes()[:-3])
hosts.exchange(None)
say(read())
with contextlib.closing(Checkpoints(directory)) as checkpoints:
    checkpoints.set_aside_after(4)
    checkpoints.save(state_at(5), mean_iou=0.9, meta={"at": 5})
save({6: None, 7: None})
say(read(), read("best"))
"""

# Each process has a folder of its own, as on hosts that share none.
NOT_SHARED = """
from segloss.errors import MissingFileError
directory = directory / str(hosts.process_index())
save({1: 0.2, 2: 0.1})
say(read(), read("best"), directory.exists())
try:
    Checkpoints(directory / "other", read_only=True)
except MissingFileError as error:
    say(str(error))
"""

# The first process is killed while it writes its second checkpoint.
KILLED = """
import os, signal
from segloss.trained import orbax_parts
write_digests = orbax_parts.write_digests
def killed(item):
    if "/2.orbax" in str(item) and "optimizer" in item.name:
        os.kill(os.getpid(), signal.SIGKILL)
    write_digests(item)
orbax_parts.write_digests = killed
with hosts.watched():
    save({1: 0.7, 2: 0.5})
    hosts.exchange(None)
"""


def said(output):
    lines = [x.removeprefix("says ") for x in output.splitlines() if x[:5] == "says "]
    return [json.loads(line) for line in lines]


def steps_in(directory):
    return sorted(x.name for x in directory.iterdir())


def test_two_processes_save_and_read_the_same_checkpoints(tmp_path):
    first, second = map(said, run_together(STATE + TOGETHER, 2, tmp_path / "made"))
    # Step 1 was the best, until step 5 was evaluated.
    assert first[0] == second[0] == [[5, []], [1, []]]
    assert second[1] == [[4, []]]
    ((step, (warning,)),) = first[1]
    assert step == 4
    message = "/5 is damaged (meta/metadata has changed); checkpoint 4 is used instead."
    assert warning.endswith(message)
    assert first[2] == second[2] == [[7, []], [5, []]]
    *kept, aside = sorted(steps_in(tmp_path / "made"), key=len)
    assert kept == ["5", "6", "7"]
    assert aside.startswith("5.damaged.")


def test_only_the_first_process_needs_the_directory(tmp_path):
    outputs = run_together(STATE + NOT_SHARED, 2, tmp_path, devices=2)
    for index, (found, (missing,)) in enumerate(map(said, outputs)):
        assert found == [[2, []], [1, []], index == 0]
        assert missing == (
            f"{tmp_path}/{index}/other has no checkpoint; train with this --workdir "
            "first."
        )


def test_a_process_killed_while_it_saves_costs_that_checkpoint(tmp_path):
    commands = commands_of(STATE + KILLED, 2, tmp_path)
    with running(commands, devices=1) as processes:
        outputs = [x.communicate(timeout=100)[0] for x in processes]
    assert processes[0].returncode == -signal.SIGKILL
    assert processes[1].returncode != 0
    assert "process 0 no longer answers at 127.0.0.1" in outputs[1]
    left = steps_in(tmp_path)
    assert len(left) == 2
    assert left[1].startswith("2.orbax-checkpoint-tmp")
    again = "say(read())\nsave({2: 0.5})\nsay(read())\n"
    for output in run_together(STATE + again, 2, tmp_path):
        assert said(output) == [[[1, []]], [[2, []]]]
    assert steps_in(tmp_path) == ["1", "2"]


# Trains the run whose config is in its folder, with another number of steps.
TRAIN = """
import sys
from pathlib import Path
from segloss.config import read_config
from segloss.train import train

run = Path(sys.argv[1])
with (config := read_config(run).copy_and_resolve_references()).unlocked():
    config.total_steps = int(sys.argv[2])
train(config, run)
"""


@pytest.mark.slow
def test_a_run_resumes_on_2_processes_then_1_then_4(tiny_config, tmp_path):
    # A schedule that does not depend on the number of steps.
    tiny_config.schedule = dict(name="constant", learning_rate=3e-3)
    run = tmp_path / "run"
    write_config(tiny_config, run)
    for total_steps, processes in ((2, 2), (3, 1), (4, 4)):
        outputs = run_together(TRAIN, processes, run, str(total_steps), timeout=300)
        assert all("Warning" not in output for output in outputs)
    train(tiny_config, tmp_path / "whole")
    resumed, whole = map(newest, (run, tmp_path / "whole"))
    assert resumed.step == whole.step == 4
    assert resumed.meta["images_seen"] == whole.meta["images_seen"]
    chex.assert_trees_all_close(resumed.arrays, whole.arrays, rtol=1e-3, atol=1e-5)
    lines = [losses(x) for x in (run, tmp_path / "whole")]
    np.testing.assert_allclose(*lines, rtol=1e-5)


def newest(run):
    directory = run / "checkpoints"
    with contextlib.closing(Checkpoints(directory, read_only=True)) as checkpoints:
        return checkpoints.read(items=("variables", "optimizer"))


def losses(run):
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]

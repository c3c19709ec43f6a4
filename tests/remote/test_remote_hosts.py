"""Runs of several real processes in a folder of another file system."""

import json
import signal
import sys
from pathlib import Path

import pytest

from segloss.config import read_config
from segloss.train import train

sys.path.append(str(Path(__file__).parents[1] / "hosts"))
from processes import free_port, running
from trainings import assert_same_run, wait_for

pytestmark = pytest.mark.shared_out(by="module")

# Trains in a remote folder as one process of a run, and evaluates. Process 0 kills
# itself at a step once its checkpoint of step 2 is there, or gets another signal.
RUN = """
import os, sys, time
from pathlib import Path
from segloss import hosts
from segloss.config import read_config
from segloss.remote import mirror
from segloss.train import train
from segloss.trained import evaluate_run

config, url, (port, count, step, number, upload_s, me) = (
    *sys.argv[1:3],
    map(int, sys.argv[3:]),
)
saved = Path(url.removeprefix("file://"), "checkpoints/2/_CHECKPOINT_METADATA")

def on_step(at):
    if at == step and me == 0:
        while number == 9 and not saved.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), number)

def close(self):
    time.sleep(upload_s)
    original(self)

original, mirror._Mirror.close = mirror._Mirror.close, close
hosts.start(f"127.0.0.1:{port}", count, me)
config = read_config(Path(config))
train(config, url, on_step=on_step)
scores = evaluate_run(read_config(url), url)
print("evaluated step", scores["step"])
"""


@pytest.fixture
def run(tmp_path, tiny_config, monkeypatch):
    """Runs `RUN` in processes; returns their exit codes and what they printed."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "config.json").write_text(tiny_config.to_json_best_effort())
    url = f"file://{tmp_path}/bucket/run"

    def run(count, *, step=0, number=0, upload_s=0):
        given = [tmp_path, url, free_port(), count, step, int(number), upload_s]
        commands = [["-c", RUN, *given, i] for i in range(count)]
        with running(commands, devices=2 // count) as processes:
            return wait_for(processes)

    return run


@pytest.mark.parametrize(
    "resumed_by",
    [2, pytest.param(1, marks=pytest.mark.slow)],
    ids="resumed_by_{}".format,
)
def test_run_of_two_processes_is_killed_resumed_and_evaluated(
    run, tmp_path, finished_run, resumed_by
):
    bucket, temporary = tmp_path / "bucket/run", tmp_path / "temporary"
    codes, outputs = run(2, step=3, number=signal.SIGKILL)
    # JAX may abort a process whose coordinator is gone.
    assert codes in ([-signal.SIGKILL, 1], [-signal.SIGKILL, -signal.SIGABRT]), outputs
    assert "process 0 no longer answers" in outputs[1]
    assert not (bucket / "results.json").exists()

    codes, outputs = run(resumed_by)
    assert codes == [0] * resumed_by, "\n".join(outputs)
    assert "resumes from step 2 of 4 steps in file://" in " ".join(outputs[0].split())
    assert all("evaluated step 4" in output for output in outputs)
    assert_same_run(bucket, finished_run)
    scores = [
        json.loads((folder / "results.json").read_text())
        for folder in (bucket / "evaluations/val_4", finished_run)
    ]
    assert scores[0]["confusion"] == scores[1]["confusion"]
    assert not (bucket / ".lock").exists()
    assert not list(temporary.glob("segloss-*"))


@pytest.mark.slow
def test_processes_wait_for_a_long_upload_after_a_signal(
    run, tmp_path, finished_run, tiny_config
):
    # JAX waits for 30 s at the exit of a process, for the others.
    codes, outputs = run(2, step=1, number=signal.SIGTERM, upload_s=40)
    assert codes == [128 + signal.SIGTERM] * 2, "\n".join(outputs)
    url = f"file://{tmp_path}/bucket/run"
    train(tiny_config, url)
    assert_same_run(tmp_path / "bucket/run", finished_run)
    assert read_config(url).total_steps == 4

"""A sweep in processes of its own: killed, stopped, resumed, and never mixed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.sweep import expand, load_study

ROOT = Path(__file__).parents[2]
# Two arms that are one: what happens to the first must not be seen in its results.
STUDY = """
from configs import demo

QUESTION = "Does a run that was killed and stopped equal one that was not?"
COMPARISONS = (("disturbed", "whole"),)

def get_config(size="full"):
    config = demo.get_config("smoke").unlock()
    config.data.data_dir = {data_dir!r}
    config.total_steps = 60
    config.checkpoint_every_steps = 2
    config.evaluate_every_steps = 60
    return config.lock()

def sweep():
    for arm in ("disturbed", "whole"):
        yield {{"arm": arm, "seed": 3, "loss": dict(name="soft_dice")}}
"""
# One device, which compiles and steps faster.
ENVIRONMENT = {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}


class Sweep:
    """The command on a study of its own."""

    def __init__(self, directory, datasets_dir):
        self.study = directory / "study.py"
        self.study.write_text(STUDY.format(data_dir=str(datasets_dir)))
        self.workdir = directory / "runs"
        self.output = directory / "output.txt"

    def start(self, *args):
        command = [
            sys.executable,
            "-mexperiments.run",
            f"--config={self.study}",
            f"--workdir={self.workdir}",
            *args,
        ]
        with self.output.open("w") as file:
            return subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | ENVIRONMENT,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def until(self, process, condition):
        for _ in range(6000):
            if condition():
                return
            assert process.poll() is None, self.output.read_text()
            time.sleep(0.02)
        raise AssertionError(self.output.read_text())

    def newest(self):
        """Newest checkpoint of the run that is disturbed."""
        checkpoints = (self.folder / "checkpoints").glob("*")
        return max((int(p.name) for p in checkpoints if p.name.isdigit()), default=0)

    @property
    def folder(self):
        return self.workdir / "disturbed" / "seed=3"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory, datasets_dir):
    """A sweep whose first run was killed, then stopped with its runner, then done."""
    sweep = Sweep(tmp_path_factory.mktemp("sweep"), datasets_dir)
    first = sweep.start("--launcher=local")
    try:
        sweep.until(first, lambda: sweep.newest() >= 4)
        os.kill(int((sweep.folder / ".lock").read_text().split()[0]), signal.SIGKILL)
        sweep.until(first, lambda: "retry 1 after" in sweep.output.read_text())
        at_kill = sweep.newest()
        sweep.until(first, lambda: sweep.newest() >= at_kill + 4)
        # As Ctrl-C does, which signals everything that the terminal started.
        os.killpg(first.pid, signal.SIGINT)
        assert first.wait(timeout=300) == 128 + signal.SIGINT
    finally:
        first.kill()
    stopped = sweep.output.read_text()
    at_stop = sweep.newest()
    second = sweep.start("--launcher=local")
    assert second.wait(timeout=300) == 0, sweep.output.read_text()
    sweep.outputs = (stopped, sweep.output.read_text())
    sweep.steps = (at_kill, at_stop)
    return sweep


def results(sweep, arm):
    return json.loads((sweep.workdir / arm / "seed=3" / "results.json").read_text())


def test_a_run_killed_retried_stopped_and_resumed_gives_the_results_of_a_whole_one(
    sweep,
):
    stopped, resumed = sweep.outputs
    assert "disturbed/seed=3: retry 1 after it was killed" in stopped
    assert "disturbed/seed=3: stopped at step" in stopped
    assert "SIGINT: the same command goes on from here." in stopped
    assert "whole" not in stopped
    at_kill, at_stop = sweep.steps
    assert 4 <= at_kill < at_stop < 60
    assert "disturbed/seed=3: done, mean IoU 0." in resumed
    disturbed, whole = (results(sweep, arm) for arm in ("disturbed", "whole"))
    for name in ("summary", "confusion", "per_class", "step"):
        assert disturbed[name] == whole[name]
    logs = sorted((sweep.workdir / ".jobs/disturbed/seed=3").iterdir())
    assert [log.name for log in logs] == ["1", "2", "3"]

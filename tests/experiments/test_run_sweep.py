"""A sweep in processes of its own: killed, stopped, resumed, and never mixed."""

import contextlib
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.running.board import DONE, Row
from experiments.running.fingerprint import (
    check_unmixed,
    code_fingerprint,
    config_fingerprint,
)
from experiments.running.sweep import expand, load_study
from experiments.running.worker import check_free

pytestmark = pytest.mark.shared_out(by="module")

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
# One device, which compiles and steps faster than eight.
ENVIRONMENT = {"XLA_FLAGS": os.environ["XLA_FLAGS"].replace("count=8", "count=1")}


class Sweep:
    """The command on a study of its own."""

    def __init__(self, directory, datasets_dir):
        self.study = directory / "study.py"
        self.study.write_text(STUDY.format(data_dir=str(datasets_dir)))
        self.workdir = directory / "runs"
        self.output = directory / "output.txt"
        self.flags = []

    @property
    def command(self):
        return [
            sys.executable,
            "-mexperiments.run",
            f"--config={self.study}",
            f"--workdir={self.workdir}",
            "--launcher=local",
            *self.flags,
        ]

    def start(self):
        # What runs in the background of a shell ignores it, and its children do.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with self.output.open("w") as file:
                return subprocess.Popen(
                    self.command,
                    cwd=ROOT,
                    env=os.environ | ENVIRONMENT,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        finally:
            signal.signal(signal.SIGINT, before)

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


# What becomes the shell of a terminal, whose loss it hears of even under nohup.
SHELL = """
import fcntl, os, signal, termios
signal.signal(signal.SIGHUP, signal.SIG_DFL)
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp("bash", ["bash", "--norc", "-i"])
"""


class Terminal:
    """A shell on a terminal of its own, in which a command is typed."""

    def __init__(self, command):
        self._end, terminal = os.openpty()
        self.shell = subprocess.Popen(
            [sys.executable, "-c", SHELL],
            cwd=ROOT,
            env=os.environ | ENVIRONMENT,
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
        )
        os.close(terminal)
        os.set_blocking(self._end, False)
        os.write(self._end, shlex.join(command).encode() + b"\n")

    def read(self):
        """What is not read holds up whoever writes it."""
        with contextlib.suppress(BlockingIOError):
            return os.read(self._end, 1 << 16).decode(errors="replace")
        return ""

    def lose(self):
        os.close(self._end)
        self.shell.wait(timeout=60)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory, datasets_dir):
    """A sweep whose first run was killed, stopped twice with its runner, then done."""
    sweep = Sweep(tmp_path_factory.mktemp("sweep"), datasets_dir)
    first = sweep.start()
    try:
        sweep.until(first, lambda: sweep.newest() >= 4)
        os.kill(holder_of(sweep.folder), signal.SIGKILL)
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
    lose_the_terminal_of(sweep, at_stop + 4)
    at_loss = sweep.newest()
    last = sweep.start()
    assert last.wait(timeout=300) == 0, sweep.output.read_text()
    sweep.outputs = (stopped, sweep.output.read_text())
    sweep.steps = (at_kill, at_stop, at_loss)
    return sweep


def holder_of(folder):
    """The process that has a run."""
    return int((folder / ".lock").read_text().split()[0])


def lose_the_terminal_of(sweep, step):
    """Goes on with a sweep to a step, and returns when nothing of it runs any more."""
    terminal = Terminal(sweep.command)
    sweep.output.write_text("")

    def is_there():
        with sweep.output.open("a") as file:
            file.write(terminal.read())
        return sweep.newest() >= step

    sweep.until(terminal.shell, is_there)
    terminal.lose()
    for _ in range(6000):
        with contextlib.suppress(ValueError):
            check_free([sweep.workdir, sweep.folder])
            return
        time.sleep(0.02)
    raise AssertionError("it runs on without its terminal")


def results(sweep, arm):
    return json.loads((sweep.workdir / arm / "seed=3" / "results.json").read_text())


def test_a_run_killed_retried_stopped_and_resumed_gives_the_results_of_a_whole_one(
    sweep,
):
    stopped, resumed = sweep.outputs
    assert "disturbed/seed=3: retry 1 after it was killed" in stopped
    assert "disturbed/seed=3: stopped at step" in stopped
    assert "SIGINT: the same command resumes from here." in stopped
    assert "whole" not in stopped
    at_kill, at_stop, at_loss = sweep.steps
    assert 4 <= at_kill < at_stop < at_loss < 60
    assert "disturbed/seed=3: done, mean IoU 0." in resumed
    disturbed, whole = (results(sweep, arm) for arm in ("disturbed", "whole"))
    for name in ("summary", "confusion", "per_class", "step"):
        assert disturbed[name] == whole[name]
    logs = sorted((sweep.workdir / ".jobs/disturbed/seed=3").iterdir())
    assert [log.name for log in logs] == ["1", "2", "3", "4"]


def test_a_job_whose_terminal_was_lost_saved_its_state_and_ended(sweep):
    job = sweep.workdir / ".jobs" / "disturbed" / "seed=3" / "3"
    outcome = json.loads((job / "outcome.json").read_text())
    assert outcome == {"state": "stopped", "error": ""}


def test_a_job_stopped_in_its_final_evaluation_did_not_crash(
    sweep, tmp_path, datasets_dir
):
    again = Sweep(tmp_path, datasets_dir)
    shutil.copytree(sweep.workdir, again.workdir)
    shutil.rmtree(again.workdir / ".jobs")
    (again.folder / "results.json").unlink()
    again.flags = ["--retries=0"]
    command = again.start()
    logs = again.workdir / ".jobs" / "disturbed" / "seed=3"

    def is_trained(number):
        texts = [p.read_text() for p in (logs / number).glob("*.out")]
        return any("resumes from step 60 of 60" in text for text in texts)

    try:
        for number in ("1", "2"):
            again.until(command, lambda number=number: is_trained(number))
            os.kill(holder_of(again.folder), signal.SIGTERM)
        assert command.wait(timeout=300) == 0, again.output.read_text()
    finally:
        command.kill()
    said = again.output.read_text()
    assert said.count("waiting, its job was stopped at step 60") == 2
    assert results(again, "disturbed")["summary"] == results(sweep, "whole")["summary"]


@pytest.fixture
def runs(sweep):
    study = load_study(sweep.study)
    return expand(study.get_config(), study.sweep())


def copied(sweep, runs, tmp_path):
    """The same runs elsewhere, without what is large."""
    for run in runs:
        folder = run.folder(tmp_path)
        folder.mkdir(parents=True)
        for name in ("run.json", "config.json", "results.json", "metrics.jsonl"):
            shutil.copy(run.folder(sweep.workdir) / name, folder)
    return tmp_path


def test_record_of_a_run_says_what_it_was_made_of(sweep, runs):
    record = json.loads((sweep.folder / "run.json").read_text())
    assert (record["arm"], record["seed"]) == ("disturbed", 3)
    assert record["overrides"] == {"loss": {"name": "soft_dice"}}
    assert record["code"] == code_fingerprint()
    assert record["config"] == config_fingerprint(runs[0].config)
    assert record["devices"] == results(sweep, "disturbed")["devices"]
    assert (sweep.workdir / ".jobs" / "devices.txt").read_text() == record["devices"]


def test_runs_of_other_code_are_refused_all_at_once(sweep, runs, tmp_path):
    workdir = copied(sweep, runs, tmp_path)
    code = code_fingerprint()
    check_unmixed(runs, workdir, code=code)
    record = json.loads((runs[1].folder(workdir) / "run.json").read_text())
    record["versions"]["jax"] = "0.4.2"
    (runs[1].folder(workdir) / "run.json").write_text(json.dumps(record))
    (runs[0].folder(workdir) / "run.json").unlink()
    with pytest.raises(ValueError, match="are never mixed") as refused:
        check_unmixed(runs, workdir, code="other")
    first, second = str(refused.value).splitlines()[1:3]
    assert first.endswith("disturbed/seed=3: has no run.json, so no sweep made it.")
    assert "whole/seed=3: the code or what it runs on changed since, at " in second
    assert "; jax was 0.4.2, is " in second


def test_runs_of_another_config_are_refused_by_the_fields_that_differ(
    sweep, runs, tmp_path
):
    workdir = copied(sweep, runs, tmp_path)
    for run in runs:
        run.config.data.num_threads = 2
        run.config.log_every_steps = 7
    check_unmixed(runs, workdir, code=code_fingerprint())
    runs[0].config.evaluate.flip = True
    runs[0].config.total_steps = 61
    with pytest.raises(ValueError, match="are never mixed") as refused:
        check_unmixed(runs, workdir, code=code_fingerprint())
    _, fault, advice = str(refused.value).splitlines()
    assert fault.endswith(
        "disturbed/seed=3: the config changed: evaluate.flip was False, is True; "
        "total_steps was 60, is 61."
    )
    assert advice.startswith("Choose another --workdir, or delete these folders")


def test_runs_go_on_after_the_file_of_their_weights_was_moved(sweep, runs, tmp_path):
    workdir = copied(sweep, runs, tmp_path)
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(b"weights")
    (tmp_path / "other.safetensors").write_bytes(b"others")
    began_with = {
        "file": "before.safetensors",
        "sha256": hashlib.sha256(b"weights").hexdigest(),
    }
    for run in runs:
        folder = run.folder(workdir)
        run.config.model.pretrained = began_with["file"]
        (folder / "config.json").write_text(run.config.to_json_best_effort())
        record = json.loads((folder / "run.json").read_text())
        record["config"] = config_fingerprint(run.config)
        (folder / "run.json").write_text(json.dumps(record))
        of_run = json.loads((folder / "results.json").read_text())
        of_run["pretrained"] = began_with
        (folder / "results.json").write_text(json.dumps(of_run))
        run.config.model.pretrained = str(moved)
    check_unmixed(runs, workdir, code=code_fingerprint())
    runs[0].config.model.pretrained = str(tmp_path / "other.safetensors")
    runs[1].config.model.pretrained = str(tmp_path / "nowhere.safetensors")
    with pytest.raises(ValueError, match="are never mixed") as refused:
        check_unmixed(runs, workdir, code=code_fingerprint())
    _, fault, advice = str(refused.value).splitlines()
    assert "disturbed/seed=3: the config changed: config.model.pretrained: " in fault
    assert "other.safetensors differs from before.safetensors" in fault
    assert advice.startswith("Choose another --workdir, or delete these folders")


def test_a_run_that_left_nothing_to_mix_with_starts_anew(sweep, runs, tmp_path):
    workdir = copied(sweep, runs, tmp_path)
    for run in runs:
        (run.folder(workdir) / "results.json").unlink()
    check_unmixed(runs, workdir, code="other")


def test_rows_know_what_is_done(sweep, runs):
    rows = [Row(run, run.folder(sweep.workdir)) for run in runs]
    assert [row.state for row in rows] == [DONE, DONE]
    assert rows[0].curve.step == 60
    assert rows[0].curve.mean_iou == rows[0].summary["mean_iou"]


def test_arms_wait_for_a_baseline_that_has_not_learned(sweep, datasets_dir, tmp_path):
    higher = Sweep(tmp_path, datasets_dir)
    higher.workdir = sweep.workdir
    study = higher.study.read_text() + 'BARS = {"whole": 0.99}\n'
    higher.study.write_text(study.replace('"disturbed", "whole")', '"new", "whole")'))
    assert higher.start().wait(timeout=300) == 1
    output = higher.output.read_text()
    assert "Other arms wait until these have learned: whole (mean IoU 0.99)" in output
    assert "error: 1 of 2 runs wait for the baselines. whole must reach a" in output
    assert "For differences" not in output
    assert not (sweep.workdir / "new").exists()
    higher.flags = ["--below_bars", "--dry_run"]
    assert higher.start().wait(timeout=300) == 0
    assert "Other arms wait" not in higher.output.read_text()

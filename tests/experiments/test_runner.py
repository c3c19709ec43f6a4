"""The runner's decisions, with jobs that are played."""

import contextlib
import errno
import functools
import io
import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
from ml_collections import ConfigDict
from rich.console import Console
from studies import make_run

from experiments.running import worker
from experiments.running.baselines import Baselines
from experiments.running.board import (
    DONE,
    FAILED,
    STOPPED,
    WAITING,
    Board,
    Row,
)
from experiments.running.fingerprint import code_fingerprint, read_results
from experiments.running.runner import Runner, summary
from experiments.running.sweep import expand
from experiments.running.worker import Job, Outcome, check_free, run_job
from segloss.locking import locked

CRASH = Outcome("crashed", error="it was killed")
STOPPED_WHILE_TRAINING = Outcome("stopped")
STOPPED_BEFORE = Outcome("stopped", error="its job was stopped before its first step")


class Played:
    """A launcher whose runs end as a list per arm says; a number trains so far.

    A run that plays a signal sends it to the runner. The signal `then` comes once the
    runs were asked to stop, while the first of them has not yet done so.
    """

    def __init__(self, plays, jobs=2, then=None):
        self.plays = plays
        self.jobs = jobs
        self.then = then
        self.asked = []
        self.started = []
        self.killed = []
        self.at_once = 0
        self.most = 0

    def start(self, job, directory):
        self.started.append(job.record["arm"])
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        directory.mkdir(parents=True)
        (directory / "log.txt").write_text(f"log of {directory.name}\n")
        job.folder.mkdir(parents=True, exist_ok=True)
        play = self.plays[job.record["arm"]].pop(0)
        return PlayedAttempt(self, job, directory / "log.txt", play)


class PlayedAttempt:
    def __init__(self, launcher, job, log, play):
        self.launcher, self.job, self.log, self.play = launcher, job, log, play
        self.stopping = False
        self.polls = 0

    def poll(self):
        self.polls += 1
        if self.polls == 1:
            return None
        step, outcome = self.play
        if outcome == "goes on" or isinstance(outcome, signal.Signals):
            if not self.stopping:
                if outcome != "goes on":
                    os.kill(os.getpid(), outcome)
                return None
            if self.launcher.then:
                os.kill(os.getpid(), self.launcher.then)
                self.launcher.then = None
                return None
            outcome = Outcome("stopped")
        if step:
            line = json.dumps({"step": step, "loss": 0.5, "val_mean_iou": 0.25})
            with (self.job.folder / "metrics.jsonl").open("a") as file:
                file.write(line + "\n")
        if step and outcome.state == "stopped":
            (self.job.folder / "checkpoints" / str(step)).mkdir(parents=True)
        if outcome.state == "done":
            summary = dict.fromkeys(
                ["frequency_weighted_iou", "mean_accuracy", "pixel_accuracy"], None
            )
            summary["mean_iou"] = step / 10
            results = json.dumps({"summary": summary})
            (self.job.folder / "results.json").write_text(results)
        self.launcher.at_once -= 1
        return outcome

    def stop(self):
        self.stopping = True
        self.launcher.asked.append(self.job.record["arm"])

    def kill(self):
        self.launcher.killed.append(self.job.record["arm"])


def config():
    return ConfigDict({"seed": 0, "total_steps": 9, "evaluate": {"split": "val"}})


def play(tmp_path, plays, file=None, baselines=None, launch=Played, **kwargs):
    runs = expand(config(), [{"arm": arm, "seed": 0} for arm in plays])
    rows = [Row(run, run.folder(tmp_path)) for run in runs]
    file = file or io.StringIO()
    console = Console(file=file, width=200, markup=False, highlight=False)
    launcher = launch(plays, **kwargs)
    runner = Runner(Board(rows, console), launcher, tmp_path, "code")
    runner.baselines = baselines or Baselines()
    code = runner.run()
    return code, rows, file.getvalue(), launcher


@pytest.fixture(autouse=True)
def signals_arrive():
    """A runner leaves ignored what it was started to ignore, as by nohup or `&`."""
    numbers = (signal.SIGINT, signal.SIGHUP)
    before = {n: signal.signal(n, lambda number, frame: None) for n in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr("experiments.running.runner._POLL_SECONDS", 0.001)


def test_crashes_are_retried_faults_are_not_and_the_others_go_on(tmp_path):
    done = (9, Outcome("done"))
    code, rows, output, launcher = play(
        tmp_path,
        {
            "good": [done],
            "shaky": [(2, CRASH), (4, CRASH), done],
            "broken": [(0, CRASH)] * 3,
            "faulty": [(0, Outcome("faulty", error="config.x must be 1."))],
            "last": [done],
        },
    )
    assert code == 1
    assert [row.state for row in rows] == [DONE, DONE, FAILED, FAILED, DONE]
    assert launcher.most == 2
    assert "shaky/seed=0: retry 2 after it was killed" in output
    assert "good/seed=0: done, mean IoU 0.900" in output
    assert "log of 3" in output.split("broken/seed=0 failed; the end of")[1]
    assert summary(code, rows, Baselines()).splitlines() == [
        "error: these runs failed:",
        "  broken/seed=0: it was killed",
        "  faulty/seed=0: config.x must be 1.",
    ]
    again = play(tmp_path, {"good": [], "shaky": []})
    assert again[0] == 0
    assert [row.state for row in again[1]] == [DONE, DONE]


def test_a_job_that_its_cluster_stops_goes_on_while_it_gets_somewhere(tmp_path):
    stopped = STOPPED_WHILE_TRAINING
    code, rows, output, _ = play(
        tmp_path,
        {
            "long": [(n, stopped) for n in (2, 4, 6, 8)] + [(9, Outcome("done"))],
            "stuck": [(0, STOPPED_BEFORE)] * 3,
            # In an evaluation, during which nothing is saved.
            "evaluates": [(8, stopped)] + [(0, stopped)] * 4 + [(9, Outcome("done"))],
            # By a second signal, after it had saved.
            "hurried": [(n, STOPPED_BEFORE) for n in (2, 4, 6, 8)]
            + [(9, Outcome("done"))],
        },
    )
    assert code == 1
    assert [(row.state, row.retries) for row in rows] == [
        (DONE, 0),
        (FAILED, 2),
        (DONE, 0),
        (DONE, 0),
    ]
    assert "long/seed=0: waiting, its job was stopped at step 8" in output
    assert "its job was stopped before its first step" in summary(
        code, rows, Baselines()
    )


def test_progress_is_what_was_saved_and_not_what_a_killed_job_had_logged(tmp_path):
    done = (9, Outcome("done"))
    _, rows, output, _ = play(
        tmp_path,
        {
            # It begins again, and gets less far than it had been.
            "late": [(8, CRASH), (4, STOPPED_BEFORE), done],
            # It goes on from 4, and the job after it not at all.
            "early": [(4, STOPPED_BEFORE), (8, CRASH), (0, STOPPED_BEFORE), done],
        },
    )
    assert [(row.state, row.retries) for row in rows] == [(DONE, 1), (DONE, 2)]
    assert "late/seed=0: retry 1, its job was stopped at step 4" in output
    assert "early/seed=0: retry 2 after its job was stopped before its" in output


def test_baselines_come_first_and_hold_the_others_back_if_they_learn_too_little(
    tmp_path,
):
    done = (8, Outcome("done"))  # a mean IoU of 0.8
    plays = {"other": [done], "base": [(3, CRASH), done], "third": [done]}
    reached = Baselines({"base": 0.8})
    code, rows, _, launcher = play(tmp_path / "1", plays, baselines=reached)
    assert (code, summary(code, rows, reached)) == (0, "")
    # Nothing is started while the baseline is tried again.
    assert launcher.started == ["base", "base", "other", "third"]
    assert launcher.most == 2

    below = Baselines({"base": 0.81, "fine": 0.5})
    plays = {"other": [], "base": [done], "fine": [done]}
    code, rows, _, _ = play(tmp_path / "2", plays, baselines=below)
    assert code == 1
    assert [row.state for row in rows] == [WAITING, DONE, DONE]
    assert summary(code, rows, below).startswith(
        "error: 1 of 3 runs wait for the baselines. base must reach a mean IoU of "
        "0.81, got 0.8000: let all arms learn more, in the study's file, and"
    )

    broken = [(0, Outcome("faulty", error="no data."))]
    code, rows, _, _ = play(
        tmp_path / "3", {"other": [], "base": broken}, baselines=reached
    )
    assert summary(code, rows, reached).splitlines()[1:] == [
        "  base/seed=0: no data.",
        "error: 1 of 2 runs wait for the baselines. The same command tries those that "
        "failed again. --below_bars trains the others in any case.",
    ]


def test_what_baselines_reached_is_not_asked_again(tmp_path):
    class Deleting(Played):
        def start(self, job, directory):
            if job.record["arm"] == "other":
                (tmp_path / "base" / "seed=0" / "results.json").unlink()
            return super().start(job, directory)

    plays = {arm: [(9, Outcome("done"))] for arm in ("base", "other", "third")}
    code, rows, _, _ = play(
        tmp_path, plays, baselines=Baselines({"base": 0.5}), launch=Deleting, jobs=1
    )
    assert (code, [row.state for row in rows]) == (0, [DONE] * 3)


def test_stored_runs_of_a_baseline_count_and_one_without_a_score_does_not(tmp_path):
    for stored, code in ((1.0, 0), (None, 1), (0.1, 1)):
        run = make_run(arm="base", seed=1, summary={"mean_iou": stored})
        plays = {"base": [(4, Outcome("done"))], "other": [(9, Outcome("done"))]}
        baselines = Baselines({"base": 0.6}, [run])
        assert play(tmp_path / str(stored), plays, baselines=baselines)[0] == code
    run = make_run(arm="base", seed=1, summary={"mean_iou": None})
    plays = {"base": [(4, Outcome("done"))], "other": [(9, Outcome("done"))]}
    baselines = Baselines({"base": 0.4}, [run])
    assert play(tmp_path / "mean of one", plays, baselines=baselines)[0] == 0
    assert Baselines({"base": 0.6}).missed([]) == (
        "base must reach a mean IoU of 0.6, got 0.0000"
    )


def test_a_signal_stops_what_runs_and_starts_no_more(tmp_path):
    code, rows, output, launcher = play(
        tmp_path, {"a": [(3, "goes on")], "b": [(5, signal.SIGTERM)], "c": []}
    )
    assert code == 128 + signal.SIGTERM
    assert [row.state for row in rows] == [STOPPED, STOPPED, WAITING]
    assert "saves the state of 2 run(s)" in output
    assert "b/seed=0: stopped at step 5" in output
    assert launcher.asked == ["a", "b"]
    assert launcher.killed == []


@pytest.mark.parametrize(
    ("first", "then", "killed"),
    [
        (signal.SIGINT, signal.SIGINT, ["a"]),
        (signal.SIGHUP, signal.SIGTERM, ["a"]),
        # A terminal that is lost sends it twice, or after a Ctrl-C, in no hurry.
        (signal.SIGHUP, signal.SIGHUP, []),
        (signal.SIGINT, signal.SIGHUP, []),
    ],
)
def test_a_second_signal_kills_what_has_not_saved_but_a_lost_terminal_does_not(
    tmp_path, first, then, killed
):
    code, rows, _, launcher = play(
        tmp_path, {"a": [(3, "goes on")], "b": [(5, first)]}, then=then
    )
    assert code == 128 + first
    assert launcher.killed == killed
    assert [row.state for row in rows] == [STOPPED, STOPPED]


class LostTerminal(io.StringIO):
    """As the system has it, once it is gone."""

    gone = True

    def write(self, text):
        if self.gone:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().write(text)

    flush = functools.partialmethod(write, "")


def test_a_lost_terminal_neither_stops_runs_nor_keeps_them_from_being_stopped(tmp_path):
    code, rows, _, _ = play(
        tmp_path / "1", {"a": [(2, CRASH), (9, Outcome("done"))]}, file=LostTerminal()
    )
    assert (code, rows[0].state) == (0, DONE)
    code, rows, _, launcher = play(
        tmp_path / "2",
        {"a": [(3, "goes on")], "b": [(5, signal.SIGHUP)]},
        file=LostTerminal(),
    )
    assert code == 128 + signal.SIGHUP
    assert launcher.asked == ["a", "b"]
    assert [row.state for row in rows] == [STOPPED, STOPPED]


def test_the_table_may_lose_its_terminal(tmp_path):
    file = LostTerminal()
    file.gone = False
    board = Board([], Console(file=file, force_terminal=True))
    with board.shown():
        file.gone = True
        board.say("to nobody")
    assert "nobody" not in file.getvalue()


def test_table_shows_where_each_run_is(tmp_path):
    _, rows, _, _ = play(
        tmp_path,
        {"a": [(9, Outcome("done"))], "b": [(3, CRASH)] * 3, "c": [(1, CRASH)] * 3},
    )
    terminal = Console(
        file=io.StringIO(), width=120, force_terminal=True, color_system=None
    )
    board = Board(rows, terminal)
    with board.shown():
        pass
    lines = terminal.file.getvalue().splitlines()
    (line,) = (line for line in lines if " a " in line)
    for cell in ("done", "9 / 9", "0.500", "0.250"):
        assert cell in line
    assert "2 failed, 1 done" in terminal.file.getvalue()
    assert list(map(str, board.table(2).columns[0].cells)) == ["b", "c"]


def job(tmp_path, code="c"):
    return Job(
        config(),
        tmp_path / "run",
        {"code": code},
        stop_file=tmp_path / "stop",
        devices_file=tmp_path / "devices",
    )


def test_a_run_that_another_process_has_is_left_alone(tmp_path):
    # The thread that has a lock may take it again, so that `train` can.
    with ThreadPoolExecutor(1) as other, contextlib.ExitStack() as stack:
        other.submit(stack.enter_context, locked(tmp_path / "run")).result()
        with pytest.raises(ValueError, match=f"in use by process {os.getpid()} on "):
            check_free([tmp_path / "run", tmp_path / "none"])
        outcome = run_job(job(tmp_path))
        assert outcome.state == "crashed"
        assert "wait for it, or end it with `kill" in outcome.error
        other.submit(stack.close).result()
    check_free([tmp_path / "run"])


def test_a_job_does_not_begin_what_is_done_stopped_or_of_other_code(tmp_path):
    outcome = run_job(job(tmp_path))
    assert outcome.state == "faulty"
    assert "the code changed since the sweep was started" in outcome.error
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "results.json").write_text('{"summary": {}}')
    assert run_job(job(tmp_path)) == Outcome("done")
    (tmp_path / "stop").touch()
    assert run_job(job(tmp_path)).state == "stopped"


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", "null", '{"summary": {"mean', '{"summary": [1]}']
)
def test_a_run_with_damaged_results_is_unfinished(tmp_path, content):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "results.json").write_text(content)
    message = (
        r"run/results\.json is damaged \(.*\); the run counts as unfinished, and is "
        r"evaluated again when it resumes\.$"
    )
    with pytest.warns(UserWarning, match=message):
        assert run_job(job(tmp_path)).state == "faulty"  # its code is "other"
    with pytest.warns(UserWarning, match=message):
        assert read_results(tmp_path / "run") is None


def test_a_job_on_other_devices_than_the_first_does_not_begin(tmp_path):
    (tmp_path / "devices").write_text("4 x NVIDIA H200")
    outcome = run_job(job(tmp_path, code=code_fingerprint()))
    assert outcome.state == "faulty"
    assert " x cpu, the sweep began on 4 x NVIDIA H200; results of" in outcome.error
    assert not (tmp_path / "run" / "run.json").exists()
    assert list(tmp_path.glob("devices-*")) == []


def test_the_first_job_says_which_devices_a_sweep_has(tmp_path):
    path = tmp_path / "new" / "devices"
    worker.claim_devices(path, "2 x cpu")
    worker.claim_devices(path, "2 x cpu")
    assert path.read_text() == "2 x cpu"
    with pytest.raises(ValueError, match="this job has 1 x cpu, the sweep began on"):
        worker.claim_devices(path, "1 x cpu")

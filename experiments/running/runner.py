"""Starts, retries and stops the runs of a sweep until all are done or have failed."""

import contextlib
import dataclasses
import pathlib
import signal
import time
from collections.abc import Sequence

from experiments.running.baselines import Baselines
from experiments.running.board import (
    DONE,
    FAILED,
    RUNNING,
    STOPPED,
    WAITING,
    Board,
    Row,
)
from experiments.running.fingerprint import (
    check_devices,
    make_record,
    newest_checkpoint,
)
from experiments.running.launch import Attempt, Launcher
from experiments.running.worker import Job, Outcome, check_free, handling
from segloss.locking import locked
from segloss.writing import write_text

_LOGS = ".jobs"
_DEVICES = "devices.txt"
_POLL_SECONDS = 0.2
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LAST_LINES = 15
_WAIT_FOR_KILLED_SECONDS = 20
_IN_ANY_CASE = "--below_bars trains the others in any case."


@dataclasses.dataclass
class Runner:
    """Trains the runs of a board that are not done, and retries those that crash.

    If the baselines stay below their bars, or one of their runs fails, the runs of
    other arms are left waiting.

    Attributes:
        workdir: folder of the runs, and of `.jobs/` with the log of every attempt.
        code: the current `code_fingerprint`.
        accepted_code: fingerprints of other code that counts as the same.
        retries: how often a run that crashes is retried.
        baselines: the arms that are trained before the others.
    """

    board: Board
    launcher: Launcher
    workdir: pathlib.Path
    code: str
    accepted_code: Sequence[str] = ()
    retries: int = 2
    baselines: Baselines = dataclasses.field(default_factory=Baselines)
    _attempts: dict[int, tuple[Attempt, int]] = dataclasses.field(default_factory=dict)
    _signals: list[int] = dataclasses.field(default_factory=list)

    def run(self) -> int:
        """Trains all runs and returns an exit code.

        The code is 0 if all runs are done, 1 if a run failed or is left waiting, or 128
        plus the number of the signal that stopped the sweep.

        Raises:
            ValueError: if another process uses the sweep or one of its runs.
        """
        with locked(self.workdir):
            check_free([row.folder for row in self._rows])
            self._note_devices()
            # `nohup` ignores SIGHUP.
            heard = [n for n in _STOPPING if signal.getsignal(n) is not signal.SIG_IGN]
            with handling(dict.fromkeys(heard, self._note)), self.board.shown():
                try:
                    self._loop()
                finally:
                    self._end_attempts()
        if self._signals:
            return 128 + self._signals[0]
        return int(any(row.state != DONE for row in self._rows))

    @property
    def _rows(self) -> Sequence[Row]:
        return self.board.rows

    @property
    def _devices_file(self) -> pathlib.Path:
        return (self.workdir / _LOGS / _DEVICES).absolute()

    def _note_devices(self) -> None:
        """Writes the devices of runs that have begun to a file that jobs check."""
        self._devices_file.unlink(missing_ok=True)
        if devices := check_devices([row.run for row in self._rows], self.workdir):
            write_text(self._devices_file, devices)

    def _loop(self) -> None:
        while not self._signals:
            for index in self._due():
                if self._signals or len(self._attempts) >= self.launcher.jobs:
                    break
                self._start(index)
                self._settle()
            self._settle()
            if not self._attempts and not self._due():
                return
            time.sleep(_POLL_SECONDS)

    def _due(self) -> list[int]:
        """The runs that may start now."""
        bars = self.baselines.bars
        held = self.baselines.hold_back(self._rows)
        return [
            index
            for index, row in enumerate(self._rows)
            if row.state == WAITING and (row.run.arm in bars or not held)
        ]

    def _start(self, index: int) -> None:
        row = self._rows[index]
        directory = self._new_directory(row)
        job = Job(
            config=row.run.config,
            folder=row.folder.absolute(),
            record=make_record(
                row.run, code=self.code, accepted_code=self.accepted_code
            ),
            stop_file=directory / "stop",
            devices_file=self._devices_file,
        )
        row.curve.refresh()
        row.start_clock()
        self.board.change(row, RUNNING)
        # The curve of a job that was killed may end after its newest checkpoint.
        first_step = newest_checkpoint(row.folder) or 0
        self._attempts[index] = (self.launcher.start(job, directory), first_step)

    def _new_directory(self, row: Row) -> pathlib.Path:
        logs = (self.workdir / _LOGS / row.run.key).absolute()
        logs.mkdir(parents=True, exist_ok=True)
        taken = [int(p.name) for p in logs.iterdir() if p.name.isdecimal()]
        return logs / str(max(taken, default=0) + 1)

    def _settle(self) -> None:
        for index, (attempt, first_step) in list(self._attempts.items()):
            if (outcome := attempt.poll()) is not None:
                del self._attempts[index]
                self._end(self._rows[index], attempt, outcome, first_step)

    def _end(
        self, row: Row, attempt: Attempt, outcome: Outcome, first_step: int
    ) -> None:
        row.curve.refresh()
        # A finished run is done, even if its process was killed afterwards.
        if outcome.state == "done" or row.is_finished:
            score = row.summary["mean_iou"]
            self.board.change(row, DONE, f", mean IoU {_or_none(score)}")
            return
        if self._signals:
            self.board.change(row, STOPPED, f" at step {row.curve.step}")
            return
        step = newest_checkpoint(row.folder) or 0
        # A stop during training or evaluation is no fault, however often it comes. A
        # job that never gets that far must not be restarted without end.
        got_to_train = not outcome.error or step > first_step
        if outcome.state == "stopped" and got_to_train:
            self.board.change(row, WAITING, f", its job was stopped at step {step}")
            return
        row.error = outcome.error
        if outcome.state == "faulty" or row.retries >= self.retries:
            self.board.change(row, FAILED, f", {row.error}", always=True)
            self._show_log(row, attempt)
            return
        row.retries += 1
        self.board.change(row, WAITING, f" after {row.error}", always=True)

    def _show_log(self, row: Row, attempt: Attempt) -> None:
        lines = []
        with contextlib.suppress(OSError):
            lines = attempt.log.read_text(errors="replace").splitlines()
        where = f"{row.run.key} failed; the end of {attempt.log}:"
        self.board.say("\n  ".join([where, *lines[-_LAST_LINES:]]))

    def _end_attempts(self) -> None:
        """Stops the running jobs after a signal or an error, so that they save.

        Another signal kills them.
        """
        if not self._attempts:
            return
        if not self._signals:
            self._signals.append(signal.SIGTERM)
        before = len(self._signals)
        for attempt, _ in self._attempts.values():
            attempt.stop()
        # Print only after asking the jobs, as printing may fail.
        self.board.say(f"saves the state of {len(self._attempts)} run(s) ...")
        killed_at = None
        while self._attempts:
            if killed_at is None and len(self._signals) > before:
                killed_at = time.monotonic()
                for attempt, _ in self._attempts.values():
                    attempt.kill()
            self._settle()
            if killed_at and time.monotonic() - killed_at > _WAIT_FOR_KILLED_SECONDS:
                # Their machine does not answer; their locks keep other jobs out.
                return
            time.sleep(_POLL_SECONDS)

    def _note(self, number, frame):
        # Shell and kernel may both signal a lost terminal; that is one request.
        if number != signal.SIGHUP or not self._signals:
            self._signals.append(number)


def _or_none(score: float | None) -> str:
    return "none" if score is None else f"{score:.3f}"


def summary(code: int, rows: Sequence[Row], baselines: Baselines) -> str:
    """Returns a message for the exit `code` of `Runner.run`; "" if all runs are done.

    After a signal it says how to resume, else it has a line per run that failed, and
    one that says why runs are left waiting, if so.
    """
    if code > 128:
        return f"{signal.Signals(code - 128).name}: the same command resumes from here."
    failed = [row for row in rows if row.state == FAILED]
    lines = [f"  {row.run.key}: {row.error}" for row in failed]
    if failed:
        lines.insert(0, "error: these runs failed:")
    if waiting := sum(row.state == WAITING for row in rows):
        lines.append(f"error: {waiting} of {len(rows)} runs wait for the baselines.")
        if missed := baselines.missed(rows):
            lines[-1] += (
                f" {missed}: let all arms learn more, in the study's file, and choose "
                "another --workdir."
            )
        else:
            lines[-1] += " The same command tries those that failed again."
        lines[-1] += f" {_IN_ANY_CASE}"
    return "\n".join(lines)

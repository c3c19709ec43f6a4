"""What a job of a sweep does: one run, from its lock to its results.

Nothing here imports jax before the job has said which devices are its own.
"""

import contextlib
import dataclasses
import fcntl
import os
import pathlib
import signal
import socket
import traceback
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from experiments.running.fingerprint import RECORD, code_fingerprint
from segloss.writing import write_json

_LOCK = ".lock"


@dataclasses.dataclass(frozen=True)
class Job:
    """What a job needs to know, wherever it runs.

    Attributes:
        folder: where the run lies.
        record: what `run.json` will hold.
        stop_file: exists once the job should not begin.
        environment: variables to set, or with None to remove, before jax starts.
        own_group: whether to leave the terminal's group of processes, so that Ctrl-C
            comes as the runner passes it on and not twice.
    """

    config: ConfigDict
    folder: pathlib.Path
    record: dict[str, Any]
    stop_file: pathlib.Path
    environment: dict[str, str | None] = dataclasses.field(default_factory=dict)
    own_group: bool = False


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        state: "done"; "stopped" by a signal; "faulty", which would be so again;
            "crashed", which may not.
        error: what went wrong; of a stopped job, that training had not begun.
        signal: the one that stopped it.
    """

    state: str
    error: str = ""
    signal: int | None = None


class _Asked(BaseException):
    """A signal came outside of training and evaluation."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


def run_job(job: Job) -> Outcome:
    """Trains, or goes on, and says how it ended.

    Raises:
        Exception: what training raised, if another try may go well.
    """
    for name, value in job.environment.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    if job.own_group:
        os.setpgrp()
    with _asked_by_signals():
        try:
            if job.stop_file.exists():
                return Outcome("stopped", signal=signal.SIGTERM)
            with locked(job.folder):
                return _train(job)
        except _Asked as asked:
            error = "its job was stopped before its first step"
            return Outcome("stopped", error=error, signal=asked.number)


def _train(job: Job) -> Outcome:
    from segloss import train

    if (job.folder / "results.json").exists():
        return Outcome("done")
    try:
        if code_fingerprint() != job.record["code"]:
            raise ValueError(
                f"{job.folder}: the code changed since the sweep was started; start it "
                "again."
            )
        write_json(job.folder / RECORD, job.record)
        train.train(job.config, job.folder)
    except (ValueError, train.NonFiniteError) as error:
        traceback.print_exc()
        return Outcome("faulty", error=str(error))
    except train.Stopped as stopped:
        return Outcome("stopped", signal=stopped.code - 128)
    return Outcome("done")


@contextlib.contextmanager
def _asked_by_signals() -> Iterator[None]:
    """SIGINT and SIGTERM as `_Asked`; SIGUSR2, of Slurm's time limit, as SIGTERM.

    Training answers them instead while it trains or evaluates, and keeps its state.
    """

    def ask(number, frame):
        raise _Asked(number)

    def pass_on(number, frame):
        os.kill(os.getpid(), signal.SIGTERM)

    handlers = {
        signal.SIGINT: ask,
        signal.SIGTERM: ask,
        signal.SIGUSR2: pass_on,
    }
    before = {number: signal.signal(number, h) for number, h in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
    """Keeps others out of a folder, until this process ends however it ends.

    Raises:
        ValueError: if another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(_taken(folder)) from None
        file.truncate(0)
        file.write(f"{os.getpid()} {socket.gethostname()}\n")
        file.flush()
        yield


def _taken(folder: pathlib.Path) -> str:
    pid, host = read_lock(folder) or ("?", "?")
    return (
        f"{folder} is in use by process {pid} on {host}; wait for it, or end it with "
        f"`kill {pid}`, which saves its state."
    )


def read_lock(folder: pathlib.Path) -> tuple[int, str] | None:
    """Process and host that hold, or held last, the lock of a run."""
    with contextlib.suppress(OSError, ValueError):
        pid, host = (folder / _LOCK).read_text().split()
        return int(pid), host
    return None


def holder_here(folder: pathlib.Path) -> int | None:
    """The process of this machine that has a run now; None where none has."""
    path = folder / _LOCK
    if not path.exists() or not _is_held(path):
        return None
    pid, host = read_lock(folder) or (None, None)
    return pid if host == socket.gethostname() else None


def _is_held(lock: pathlib.Path) -> bool:
    # To write, as NFS asks for.
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def check_free(folders: list[pathlib.Path]) -> None:
    """Checks that no job, such as one whose runner was killed, still has a run.

    Raises:
        ValueError: listing each run that is in use.
    """
    locks = [folder / _LOCK for folder in folders if (folder / _LOCK).exists()]
    faults = [_taken(lock.parent) for lock in locks if _is_held(lock)]
    if faults:
        raise ValueError("\n  ".join(["runs are in use:", *faults]))

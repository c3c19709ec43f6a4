"""What a job of a sweep does: one run, from its lock to its results.

python -m experiments.running.worker DIRECTORY    # how `Local` starts a job
"""

import contextlib
import dataclasses
import fcntl
import os
import pathlib
import pickle
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from experiments.running.fingerprint import RECORD, code_fingerprint
from segloss.writing import write_json

# The files through which `Local` gives a job and takes its outcome.
JOB, OUTCOME = "job.pkl", "outcome.json"
_LOCK = ".lock"


@dataclasses.dataclass(frozen=True)
class Job:
    """What a job needs to know, wherever it runs."""

    config: ConfigDict
    folder: pathlib.Path  # of the run
    record: dict[str, Any]  # for `run.json`
    stop_file: pathlib.Path  # exists once the job should not begin
    devices_file: pathlib.Path  # says which devices all runs of the sweep use


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        state: "done"; "stopped" by a signal; "faulty", which would be so again;
            "crashed", which may not.
        error: what went wrong; of a stopped job, that training had not begun.
    """

    state: str
    error: str = ""


class _Asked(BaseException):
    """A signal came outside of training and evaluation."""


def run_job(job: Job) -> Outcome:
    """Trains a run, or resumes it, and says how that ended."""
    # SIGUSR2, of Slurm's time limit, as SIGTERM. While training trains or evaluates, it
    # answers the signals instead, and keeps its state.
    handlers = {signal.SIGINT: _ask, signal.SIGTERM: _ask, signal.SIGUSR2: _pass_on}
    with handling(handlers):
        try:
            if job.stop_file.exists():
                return Outcome("stopped")
            with locked(job.folder):
                return _train(job)
        except _Asked:
            return Outcome("stopped", "its job was stopped before its first step")
        except Exception as error:
            traceback.print_exc()
            return Outcome("crashed", f"{type(error).__name__}: {error}")


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
        devices = claim_devices(job.devices_file)
        write_json(job.folder / RECORD, job.record | {"devices": devices})
        train.train(job.config, job.folder)
    except (ValueError, train.NonFiniteError) as error:
        traceback.print_exc()
        return Outcome("faulty", str(error))
    except train.Stopped:
        return Outcome("stopped")
    return Outcome("done")


def claim_devices(path: pathlib.Path) -> str:
    """The devices of this process, written down by the first job of a sweep.

    Raises:
        ValueError: if the first job had others; `collect` would refuse the results.
    """
    import jax

    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    own = path.with_name(f"{path.name}-{socket.gethostname()}-{os.getpid()}")
    own.parent.mkdir(parents=True, exist_ok=True)
    own.write_text(devices)
    try:
        # A link appears with its content, and to one process only.
        with contextlib.suppress(FileExistsError):
            os.link(own, path)
    finally:
        own.unlink()
    if (first := path.read_text()) != devices:
        raise ValueError(
            f"this job has {devices}, the sweep began on {first}; results of different "
            "devices are never mixed. Run it where there is the same, or choose "
            "another --workdir."
        )
    return devices


def _ask(number, frame):
    raise _Asked


def _pass_on(number, frame):
    os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def handling(handlers: Mapping[int, Callable]) -> Iterator[None]:
    """Handles signals, by number, until the block ends."""
    before = {number: signal.signal(number, h) for number, h in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
    """Keeps other processes out of a folder, even if this one is killed, until its end.

    Raises:
        ValueError: if another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # NFS locks only files that are open for writing.
    with (folder / _LOCK).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            pid, host = [*file.read().split(), "?", "?"][:2]
            raise ValueError(
                f"{folder} is in use by process {pid} on {host}; wait for it, or end "
                f"it with `kill {pid}`, which saves its state."
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()} {socket.gethostname()}\n")
        file.flush()
        yield


def check_free(folders: list[pathlib.Path]) -> None:
    """Checks that no job has a run, such as a job that outlived its runner.

    Raises:
        ValueError: listing each run that is in use.
    """
    faults = []
    for folder in folders:
        if (folder / _LOCK).exists():
            try:
                with locked(folder):
                    pass
            except ValueError as error:
                faults.append(str(error))
    if faults:
        raise ValueError("\n  ".join(["runs are in use:", *faults]))


def main(directory: pathlib.Path) -> None:
    """Runs the job in a folder, and writes its outcome there."""
    outcome = run_job(pickle.loads((directory / JOB).read_bytes()))
    write_json(directory / OUTCOME, dataclasses.asdict(outcome))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))

"""Trains one run of a sweep, as a process or a Slurm job.

python -m experiments.running.worker DIRECTORY    # how `launch.Local` starts a job
"""

import contextlib
import dataclasses
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

from experiments.running.fingerprint import RECORD, code_fingerprint, read_results
from segloss.errors import SeglossError
from segloss.locking import LOCK, locked
from segloss.writing import write_json

# Files in which `launch.Local` passes a job to its process, and gets its outcome.
JOB, OUTCOME = "job.pkl", "outcome.json"


@dataclasses.dataclass(frozen=True)
class Job:
    """One run to train, and the files through which its job and the runner agree.

    Attributes:
        folder: the run's folder.
        record: what `run.json` is to contain; see `make_record`.
        stop_file: if this file exists, the job ends before it begins to train.
        devices_file: file with the devices that all runs of the sweep must use.
    """

    config: ConfigDict
    folder: pathlib.Path
    record: dict[str, Any]
    stop_file: pathlib.Path
    devices_file: pathlib.Path


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        state: "done"; "stopped" by a signal; "faulty" if a retry would fail in the same
            way; "crashed" if a retry may succeed.
        error: the error message; empty if there was none. For "stopped" it is only set
            if a signal came before training had begun.
    """

    state: str
    error: str = ""


class _Asked(BaseException):
    """Raised by a signal that comes outside of training and evaluation."""


def run_job(job: Job, *, in_cluster: bool = True) -> Outcome:
    """Trains a run, or resumes it, and returns how that ended.

    Writes `run.json` and all that `segloss.train.train` writes to `job.folder`. If the
    job has several processes, all of them call this and train together; the first one
    holds the folder and writes. `in_cluster` says whether to look for the others.
    """
    # Slurm sends SIGUSR2 at a job's time limit. During training and evaluation,
    # `segloss.train` handles SIGINT and SIGTERM instead, and saves its state.
    handlers = {signal.SIGINT: _ask, signal.SIGTERM: _ask, signal.SIGUSR2: _pass_on}
    with handling(handlers):
        try:
            return _run_together(job, in_cluster)
        except _Asked:
            return Outcome("stopped", "its job was stopped before its first step")
        except Exception as error:
            traceback.print_exc()
            return Outcome("crashed", f"{type(error).__name__}: {error}")


def _run_together(job: Job, in_cluster: bool) -> Outcome:
    from segloss import hosts

    hosts.start(detect=in_cluster)
    with hosts.watched():
        if hosts.of_first(job.stop_file.exists):
            return Outcome("stopped")
        with locked(job.folder) if hosts.is_first() else contextlib.nullcontext():
            return _train(job)


def _train(job: Job) -> Outcome:
    from segloss import hosts, train

    if hosts.of_first(lambda: read_results(job.folder) is not None):
        return Outcome("done")
    try:
        if code_fingerprint() != job.record["code"]:
            raise SeglossError(
                f"{job.folder}: the code changed since the sweep was started; start it "
                "again."
            )
        devices = _describe_devices()
        if hosts.is_first():
            claim_devices(job.devices_file, devices)
            write_json(job.folder / RECORD, job.record | {"devices": devices})
        train.train(job.config, job.folder)
    except SeglossError as error:
        traceback.print_exc()
        return Outcome("faulty", str(error))
    except train.Stopped:
        return Outcome("stopped")
    return Outcome("done")


def _describe_devices() -> str:
    """Returns the devices of this job, such as "2 x NVIDIA A100".

    All processes of the job must call this, since JAX starts their devices together.
    """
    import jax

    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


def claim_devices(path: pathlib.Path, devices: str) -> None:
    """Checks that all jobs of a sweep have the same devices.

    The first job of a sweep writes its devices to `path`; later jobs must have the
    same.

    Raises:
        ValueError: if `path` names other devices.
    """
    own = path.with_name(f"{path.name}-{socket.gethostname()}-{os.getpid()}")
    own.parent.mkdir(parents=True, exist_ok=True)
    own.write_text(devices)
    try:
        # Only one process can create the link, and its content is complete.
        with contextlib.suppress(FileExistsError):
            os.link(own, path)
    finally:
        own.unlink()
    if (first := path.read_text()) != devices:
        raise SeglossError(
            f"this job has {devices}, the sweep began on {first}; results of different "
            "devices are never mixed. Run it where there is the same, or choose "
            "another --workdir."
        )


def _ask(number, frame):
    raise _Asked("a signal stopped the job before its first step")


def _pass_on(number, frame):
    os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def handling(handlers: Mapping[int, Callable]) -> Iterator[None]:
    """Handles signals within the block; `handlers` maps a number to a handler."""
    before = {number: signal.signal(number, h) for number, h in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def check_free(folders: list[pathlib.Path]) -> None:
    """Checks that no process holds the lock of a run's folder.

    A job that outlived its runner may still hold it.

    Raises:
        ValueError: if a folder is locked; it lists each of them.
    """
    faults = []
    for folder in folders:
        if (folder / LOCK).exists():
            try:
                with locked(folder):
                    pass
            except SeglossError as error:
                faults.append(str(error))
    if faults:
        raise SeglossError("\n  ".join(["runs are in use:", *faults]))


def main(directory: pathlib.Path) -> None:
    """Runs the `Job` in `job.pkl` and writes its `Outcome` to `outcome.json`.

    Both files are in `directory`.
    """
    # Trusted: SECURITY.md says why.
    job = pickle.loads((directory / JOB).read_bytes())  # nosec B301
    # A process of its own, even where the sweep itself runs as a task of Slurm.
    outcome = run_job(job, in_cluster=False)
    write_json(directory / OUTCOME, dataclasses.asdict(outcome))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))

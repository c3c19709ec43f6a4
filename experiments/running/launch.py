"""Starts the runs of a sweep as processes of this machine or as jobs of Slurm.

submitit serves Slurm only. Its local executor kills a job one second after Ctrl-C,
which is too early to save a checkpoint.
"""

import json
import os
import pathlib
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import submitit

from experiments.running.worker import JOB, OUTCOME, Job, Outcome, run_job
from segloss.errors import SeglossError

_WORKER = ["-m", "experiments.running.worker"]
_KILLED = Outcome("crashed", error="it was killed")
# Files that a job wrote on another machine may appear late.
_FILES_WITHIN_SECONDS = 20
_ASK_SLURM_EVERY_SECONDS = 5


class Attempt(Protocol):
    """One attempt to train a run, by a job; its output is in `log`."""

    log: pathlib.Path

    def poll(self) -> Outcome | None:
        """Returns how the job ended, or None while it waits or runs."""

    def stop(self) -> None:
        """Asks the job to save its state and end."""

    def kill(self) -> None:
        """Kills the job without saving."""


class Launcher(Protocol):
    """Starts jobs; `jobs` is the largest number that may run at once."""

    jobs: int

    def start(self, job: Job, directory: pathlib.Path) -> Attempt:
        """Starts a job; `directory` is new and holds the job's files and log."""


class Local:
    """Starts jobs as processes on this machine.

    Args:
        jobs: number of jobs at once; None means one per accelerator, or 1 on CPU.

    Raises:
        ValueError: if the jobs would get different kinds or numbers of devices.
    """

    def __init__(self, jobs: int | None = None):
        devices = accelerators()
        self.jobs = jobs or max(1, len(devices))
        self._environments = [
            _environment(devices, slot, self.jobs) for slot in range(self.jobs)
        ][::-1]

    def start(self, job: Job, directory: pathlib.Path) -> Attempt:
        return _LocalAttempt(job, directory, self._environments)


class _LocalAttempt:
    def __init__(self, job: Job, directory: pathlib.Path, environments: list[dict]):
        self.log = directory / "log.out"
        self._outcome_file = directory / OUTCOME
        self._stop_file = job.stop_file
        self._free = environments
        self._environment = environments.pop()
        directory.mkdir(parents=True)
        (directory / JOB).write_bytes(pickle.dumps(job))
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, *_WORKER, str(directory)],
                env=os.environ | self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C must not reach the job; the runner stops it instead.
                start_new_session=True,
            )

    def poll(self) -> Outcome | None:
        if self._process.poll() is None:
            return None
        self._free.append(self._environment)
        if not self._outcome_file.exists():
            return _KILLED
        return Outcome(**json.loads(self._outcome_file.read_text()))

    def stop(self) -> None:
        self._stop_file.touch()
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()


def accelerators() -> list[str]:
    """Returns the ids of the GPUs that may be used, found without starting jax.

    The ids are those of `CUDA_VISIBLE_DEVICES`. Empty without a GPU, or if
    `JAX_PLATFORMS` is "cpu".

    Raises:
        ValueError: if the GPUs are of several kinds.
    """
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return []
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [device for device in visible.split(",") if device]
    if shutil.which("nvidia-smi") is None:
        return []
    ask = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    done = subprocess.run(ask, capture_output=True, text=True)
    names = done.stdout.splitlines() if done.returncode == 0 else []
    if len(set(names)) > 1:
        raise SeglossError(
            f"this machine has GPUs of several kinds, {', '.join(names)}; results of "
            "different devices are never mixed. Choose some by CUDA_VISIBLE_DEVICES."
        )
    return [str(index) for index in range(len(names))]


def _environment(devices: Sequence[str], slot: int, jobs: int) -> dict[str, str]:
    """Returns the environment variables that give a job its devices.

    The job is number `slot` of `jobs`. If there are more jobs than devices, several
    jobs share a device and its memory.
    """
    if not devices:
        return {}
    if jobs <= len(devices):
        if len(devices) % jobs:
            raise SeglossError(
                f"--jobs={jobs}: {len(devices)} GPUs cannot be shared out equally, and "
                "results of different devices are never mixed. Choose a divisor of "
                f"{len(devices)}, or fewer GPUs by CUDA_VISIBLE_DEVICES."
            )
        return {"CUDA_VISIBLE_DEVICES": ",".join(devices[slot::jobs])}
    sharing = -(-jobs // len(devices))
    fraction = os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{0.9 / sharing:.3f}")
    return {
        "CUDA_VISIBLE_DEVICES": devices[slot % len(devices)],
        "XLA_PYTHON_CLIENT_MEM_FRACTION": fraction,
    }


class Slurm:
    """Starts jobs in Slurm, through submitit.

    Args:
        settings: keyword arguments of submitit's `update_parameters`.
        jobs: number of jobs that may be in the queue at once; None means no limit.

    Raises:
        ValueError: if this machine has no `sbatch`.
    """

    def __init__(self, settings: Mapping[str, Any], jobs: int | None = None):
        if shutil.which("sbatch") is None:
            raise SeglossError("--launcher=slurm: there is no sbatch on this machine.")
        self.jobs = jobs or sys.maxsize
        self._settings = settings
        self._alive: set[str] = set()
        self._asked = 0.0

    def start(self, job: Job, directory: pathlib.Path) -> Attempt:
        executor = submitit.AutoExecutor(directory, cluster="slurm")
        try:
            executor.update_parameters(stderr_to_stdout=True, **self._settings)
            submitted = executor.submit(run_job, job)
        except submitit.core.utils.FailedJobError as error:
            reason = str(error).strip().splitlines()[-1]
            raise SeglossError(f"--launcher=slurm: {reason}") from error
        self._alive.add(submitted.job_id)
        return _SlurmAttempt(submitted, job, self)

    def is_alive(self, job_id: str) -> bool:
        """Whether a job waits or runs, according to the last answer of `squeue`."""
        if time.monotonic() - self._asked > _ASK_SLURM_EVERY_SECONDS:
            # Not `sacct`, which needs a database that small clusters do not have.
            ask = ["squeue", "--me", "--noheader", "--format=%i"]
            done = subprocess.run(ask, capture_output=True, text=True)
            if done.returncode == 0:
                self._alive = set(done.stdout.split())
            self._asked = time.monotonic()
        return job_id in self._alive


class _SlurmAttempt:
    def __init__(self, submitted: submitit.Job, job: Job, slurm: Slurm):
        self.log = submitted.paths.stdout
        self._submitted = submitted
        self._stop_file = job.stop_file
        self._slurm = slurm
        self._over_since: float | None = None

    def poll(self) -> Outcome | None:
        if self._slurm.is_alive(self._submitted.job_id):
            self._over_since = None
            return None
        tasks = range(self._submitted.num_tasks)
        outcomes = [_outcome_of(self._submitted.task(i)) for i in tasks]
        self._over_since = self._over_since or time.monotonic()
        waited = time.monotonic() - self._over_since
        # A job that was cancelled in the queue leaves no file.
        late = waited > _FILES_WITHIN_SECONDS or self._stop_file.exists()
        return None if None in outcomes and not late else _combine(outcomes)

    def stop(self) -> None:
        self._stop_file.touch()
        self._cancel("--state=PENDING")
        # A plain `scancel` kills half a minute later, whatever is not yet saved.
        self._cancel("--signal=TERM")

    def kill(self) -> None:
        self._cancel("--signal=KILL")

    def _cancel(self, how: str) -> None:
        subprocess.run(["scancel", how, self._submitted.job_id], capture_output=True)


def _outcome_of(task: submitit.Job) -> Outcome | None:
    """Returns how one process of a job ended; None if it has left no file."""
    if not task.paths.result_pickle.exists():
        return None
    if task.exception() is None:
        return task.result()
    return Outcome("crashed", error="it failed before it began")


def _combine(outcomes: Sequence[Outcome | None]) -> Outcome:
    """Returns the outcome that says why the processes of a job ended together.

    The others of a process that failed leave none, as they end at once.
    """
    for state in ("faulty", "crashed", "stopped", "done"):
        for outcome in outcomes:
            if outcome is not None and outcome.state == state:
                return outcome
    return _KILLED

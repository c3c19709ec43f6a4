"""Runs as jobs of Slurm."""

import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

import submitit

from experiments.running.launch import Attempt, outcome_of
from experiments.running.worker import Job, Outcome, run_job

# Files of another machine may be seen late.
_FILES_WITHIN_SECONDS = 20
_ASK_SLURM_EVERY_SECONDS = 5
# The others, such as COMPLETED, FAILED, PREEMPTED or TIMEOUT, are over.
_ALIVE_IN_SLURM = {
    "COMPLETING",
    "CONFIGURING",
    "PENDING",
    "REQUEUED",
    "REQUEUE_FED",
    "REQUEUE_HOLD",
    "RESIZING",
    "RUNNING",
    "SIGNALING",
    "STAGE_OUT",
    "STOPPED",
    "SUSPENDED",
}


class Slurm:
    """Jobs of Slurm, through submitit; a run that meets its time limit goes on.

    Args:
        jobs: how many may be in the queue at once; None is all.
        settings: of submitit's `update_parameters`.

    Raises:
        ValueError: if there is no Slurm here.
    """

    in_process = False

    def __init__(self, settings: Mapping[str, Any], jobs: int | None = None):
        if shutil.which("sbatch") is None:
            raise ValueError("--launcher=slurm: there is no sbatch on this machine.")
        self.jobs = jobs or sys.maxsize
        self._settings = settings
        self._states: dict[str, str] = {}
        self._asked = 0.0

    def start(self, job: Job, directory: pathlib.Path) -> Attempt:
        executor = submitit.AutoExecutor(directory, cluster="slurm")
        try:
            executor.update_parameters(stderr_to_stdout=True, **self._settings)
            submitted = executor.submit(run_job, job)
        except submitit.core.utils.FailedJobError as error:
            raise ValueError(
                f"--launcher=slurm: {str(error).strip().splitlines()[-1]}"
            ) from error
        self._states[submitted.job_id] = "PENDING"
        return _SlurmAttempt(submitted, job, self)

    def is_over(self, job_id: str) -> bool:
        """Whether Slurm has ended a job, or has forgotten it."""
        if time.monotonic() - self._asked > _ASK_SLURM_EVERY_SECONDS:
            # Not `sacct`, which needs a database that small clusters do not have.
            done = subprocess.run(
                ["squeue", "--me", "--states=all", "--noheader", "--format=%i %T"],
                capture_output=True,
                text=True,
            )
            if done.returncode == 0:
                lines = map(str.split, done.stdout.splitlines())
                self._states = {line[0]: line[-1] for line in lines if line}
            self._asked = time.monotonic()
        return self._states.get(job_id) not in _ALIVE_IN_SLURM


class _SlurmAttempt:
    def __init__(self, submitted: submitit.Job, job: Job, slurm: Slurm):
        self.log = submitted.paths.stdout
        self._submitted = submitted
        self._job = job
        self._slurm = slurm
        self._over_since: float | None = None

    def poll(self) -> Outcome | None:
        if not self._slurm.is_over(self._submitted.job_id):
            self._over_since = None
            return None
        if self._over_since is None:
            self._over_since = time.monotonic()
        waited = time.monotonic() - self._over_since
        if self._job.stop_file.exists():
            waited = float("inf")
        if (
            not self._submitted.paths.result_pickle.exists()
            and waited < _FILES_WITHIN_SECONDS
        ):
            return None
        return outcome_of(self._submitted)

    def stop(self) -> None:
        self._job.stop_file.touch()
        self._cancel("--state=PENDING")
        # The steps of the job alone, without Slurm's kill half a minute later.
        self._cancel("--signal=TERM")

    def kill(self) -> None:
        self._cancel("--signal=KILL")

    def _cancel(self, how: str) -> None:
        subprocess.run(["scancel", how, self._submitted.job_id], capture_output=True)

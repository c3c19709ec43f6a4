"""Where the runs of a sweep are trained: this process, or others of this machine."""

import contextlib
import dataclasses
import os
import pathlib
import shutil
import signal
import subprocess
import traceback
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import submitit

from experiments.running.worker import Job, Outcome, holder_here, run_job

# submitit ends a local job after this; a run takes what it takes.
_NO_LIMIT_MINUTES = 60 * 24 * 365


class Attempt(Protocol):
    """One try of a run."""

    log: pathlib.Path

    def poll(self) -> Outcome | None:
        """How it ended; None while it has not."""

    def stop(self) -> None:
        """Asks it to save its state and end."""

    def kill(self) -> None:
        """Ends it at once."""


class Launcher(Protocol):
    """A place for runs."""

    jobs: int
    # Whether a signal for a run is one for the sweep.
    in_process: bool

    def start(self, job: Job, directory: pathlib.Path) -> Attempt:
        """Starts a job; `directory` is new, and takes its log."""


class Inline:
    """One run after the other in this process: no start-up, one compilation cache."""

    jobs = 1
    in_process = True

    def __init__(self, cache: pathlib.Path):
        self._cache = cache

    def start(self, job: Job, directory: pathlib.Path) -> Attempt:
        """Returns once the job is over."""
        import jax

        if not jax.config.jax_compilation_cache_dir:
            jax.config.update("jax_compilation_cache_dir", str(self._cache))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        directory.mkdir(parents=True)
        log = directory / "log.txt"
        with (
            log.open("w") as file,
            contextlib.redirect_stdout(file),
            contextlib.redirect_stderr(file),
        ):
            try:
                outcome = run_job(job)
            except Exception as error:
                traceback.print_exc()
                outcome = Outcome("crashed", error=str(error))
        return _Over(log, outcome)


class _Over:
    def __init__(self, log: pathlib.Path, outcome: Outcome):
        self.log = log
        self._outcome = outcome

    def poll(self) -> Outcome | None:
        return self._outcome

    def stop(self) -> None:
        pass

    def kill(self) -> None:
        pass


class Local:
    """Processes on this machine, through submitit.

    Args:
        jobs: how many at once; None is one per accelerator, and one without any.
    """

    in_process = False

    def __init__(self, jobs: int | None = None):
        devices = accelerators()
        self.jobs = jobs or max(1, len(devices))
        self._free = list(range(self.jobs))[::-1]
        self._environments = [
            _environment(devices, slot, self.jobs) for slot in range(self.jobs)
        ]

    def start(self, job: Job, directory: pathlib.Path) -> Attempt:
        slot = self._free.pop()
        job = dataclasses.replace(
            job, environment=self._environments[slot], own_group=True
        )
        executor = submitit.AutoExecutor(directory, cluster="local")
        executor.update_parameters(timeout_min=_NO_LIMIT_MINUTES, stderr_to_stdout=True)
        # Inherited, so that neither Ctrl-C nor a lost terminal ends what submitit puts
        # around the job, and through which the job is stopped.
        with _ignored(signal.SIGINT), _ignored(signal.SIGHUP):
            submitted = executor.submit(run_job, job)
        return _LocalAttempt(submitted, job, lambda: self._free.append(slot))


@contextlib.contextmanager
def _ignored(number: signal.Signals) -> Iterator[None]:
    before = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, before)


class _LocalAttempt:
    def __init__(self, submitted: submitit.Job, job: Job, release: Any):
        self.log = submitted.paths.stdout
        self._submitted = submitted
        self._job = job
        self._release = release
        self._outcome: Outcome | None = None

    def poll(self) -> Outcome | None:
        if self._outcome is None and self._submitted.done() and not self._orphan():
            self._outcome = outcome_of(self._submitted)
            self._release()
        return self._outcome

    def stop(self) -> None:
        self._job.stop_file.touch()
        # Not `cancel`, which kills after a second; this is passed on to the job.
        if not self._submitted.done():
            _send(signal.SIGTERM, int(self._submitted.job_id))
        elif orphan := self._orphan():
            _send(signal.SIGTERM, orphan)

    def kill(self) -> None:
        if pid := holder_here(self._job.folder):
            _send(signal.SIGKILL, pid)

    def _orphan(self) -> int | None:
        """The job, if it outlives what submitit had put around it, which is gone."""
        if self._submitted.paths.result_pickle.exists():
            return None
        return holder_here(self._job.folder)


def _send(number: signal.Signals, pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def outcome_of(submitted: submitit.Job) -> Outcome:
    """What a job that is over returned."""
    if not submitted.paths.result_pickle.exists():
        return Outcome("crashed", error="it was killed")
    if submitted.exception() is not None:
        lines = str(submitted.exception()).strip().splitlines()
        # Of submitit's frame around the traceback, the line with the exception.
        rules = [i for i, line in enumerate(lines) if line.startswith("-----")]
        return Outcome("crashed", error=lines[rules[-1] - 1] if rules else lines[-1])
    return submitted.result()


def accelerators() -> list[str]:
    """The GPUs of this machine that may be used, without starting jax on them."""
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return []
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [device for device in visible.split(",") if device]
    if shutil.which("nvidia-smi") is None:
        return []
    done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    return [
        str(index)
        for index, _ in enumerate(
            line for line in done.stdout.splitlines() if line.startswith("GPU ")
        )
    ]


def _environment(devices: Sequence[str], slot: int, jobs: int) -> dict[str, str | None]:
    """The devices of one of so many jobs: its share, or one that it shares."""
    # submitit sets it to nothing.
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not devices:
        return {"CUDA_VISIBLE_DEVICES": visible}
    if jobs <= len(devices):
        return {"CUDA_VISIBLE_DEVICES": ",".join(devices[slot::jobs])}
    sharing = -(-jobs // len(devices))
    return {
        "CUDA_VISIBLE_DEVICES": devices[slot % len(devices)],
        "XLA_PYTHON_CLIENT_MEM_FRACTION": os.environ.get(
            "XLA_PYTHON_CLIENT_MEM_FRACTION", f"{0.9 / sharing:.3f}"
        ),
    }

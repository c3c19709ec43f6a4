"""Where runs are trained: which devices they get, and what is asked of Slurm."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import submitit
from absl import flags
from absl.testing import flagsaver
from ml_collections import ConfigDict

from experiments.run import make_launcher
from experiments.running import launch, slurm
from experiments.running.worker import Job, Outcome, run_job

# Slurm as far as it is asked: one job, which runs at once. `slurm.sh` in
# `tests/integration` has the real one.
COMMANDS = {
    "sbatch": """
grep "^#SBATCH --partition" "$1" >> {directory}/asked
grep "^#SBATCH --mem" "$1" >> {directory}/asked
export SLURM_JOB_ID=7
(bash "$1"; touch {directory}/over) > {directory}/output 2>&1 &
echo "Submitted batch job 7"
""",
    # Without `--unbuffered --output FILE`.
    "srun": 'shift 3\nexec "$@"\n',
    "squeue": """
test -f {directory}/down && exit 1
if [ -f {directory}/over ]; then echo "7 COMPLETED"; else echo "7 RUNNING"; fi
""",
    "scancel": 'echo "scancel $*" >> {directory}/asked\n',
    "nvidia-smi": "echo 'GPU 0: H (UUID: a)'\necho '  MIG 0'\necho 'GPU 1: H (b)'\n",
}


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with the commands of Slurm and of two GPUs."""
    directory = tmp_path / "bin"
    directory.mkdir()
    for name, script in COMMANDS.items():
        script = "#!/bin/bash\n" + script.format(directory=directory)
        (directory / name).write_text(script)
        (directory / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    monkeypatch.setattr(slurm, "_ASK_SLURM_EVERY_SECONDS", -1)
    return directory


def test_a_job_of_slurm_is_watched_and_stopped(machine, tmp_path):
    cluster = slurm.Slurm(
        {
            "slurm_partition": "gpu",
            "timeout_min": 60,
            "slurm_additional_parameters": {"mem": "8G"},
        }
    )
    # It ends before it begins, which needs no training.
    job = Job(ConfigDict(), tmp_path / "run", {}, tmp_path / "stop")
    job.stop_file.touch()
    (machine / "down").touch()
    attempt = cluster.start(job, tmp_path / "job")
    attempt.stop()
    while not (machine / "over").exists():
        assert attempt.poll() is None
        time.sleep(0.05)
    # As long as Slurm does not answer, nothing is taken to be over.
    assert attempt.poll() is None
    (machine / "down").unlink()
    assert attempt.poll().state == "stopped"
    assert (machine / "asked").read_text().splitlines() == [
        "#SBATCH --partition=gpu",
        "#SBATCH --mem=8G",
        "scancel --state=PENDING 7",
        "scancel --signal=TERM 7",
    ]


def test_a_job_that_leaves_nothing_was_killed(machine, tmp_path, monkeypatch):
    (machine / "srun").write_text("#!/bin/bash\nkill -KILL $$\n")
    monkeypatch.setattr(slurm, "_FILES_WITHIN_SECONDS", 0.2)
    job = Job(ConfigDict(), tmp_path / "run", {}, tmp_path / "stop")
    attempt = slurm.Slurm({}).start(job, tmp_path / "job")
    while (outcome := attempt.poll()) is None:
        time.sleep(0.05)
    assert (outcome.state, outcome.error) == ("crashed", "it was killed")


def test_what_slurm_refuses_is_one_line(machine, tmp_path, monkeypatch):
    (machine / "sbatch").write_text("#!/bin/bash\necho no such queue >&2\nexit 1\n")
    job = Job(ConfigDict(), tmp_path / "run", {}, tmp_path / "stop")
    with pytest.raises(ValueError, match=r"--launcher=slurm: .*no such queue"):
        slurm.Slurm({}).start(job, tmp_path / "job")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="there is no sbatch on this machine"):
        slurm.Slurm({})


def test_devices_are_shared_out(machine, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert launch.accelerators() == []
    assert launch.Local().jobs == 1
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert launch.accelerators() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6,7")
    assert launch.accelerators() == ["4", "6", "7"]
    assert launch.Local().jobs == 3
    of = {
        jobs: [
            launch._environment(["4", "6", "7"], slot, jobs)["CUDA_VISIBLE_DEVICES"]
            for slot in range(jobs)
        ]
        for jobs in (1, 2, 3, 4)
    }
    assert of == {
        1: ["4,6,7"],
        2: ["4,7", "6"],
        3: ["4", "6", "7"],
        4: ["4", "6", "7", "4"],
    }
    shared = launch._environment(["4"], 0, 3)
    assert shared["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.300"


class Executor:
    """In submitit's place: it notes what it is given, and runs nothing."""

    def __init__(self):
        self.parameters = {}
        self.jobs = []
        self.handlers = []

    def __call__(self, directory, cluster):
        return self

    def update_parameters(self, **parameters):
        self.parameters |= parameters

    def submit(self, function, job):
        assert function is run_job
        self.jobs.append(job)
        self.handlers.append(list(map(signal.getsignal, INHERITED)))
        return Submitted(job.folder)


INHERITED = (signal.SIGINT, signal.SIGHUP)


class Submitted:
    """A job of submitit, whose process ends when it is told so."""

    job_id = "7"

    def __init__(self, folder):
        pickle = folder / "result.pkl"
        self.paths = SimpleNamespace(stdout=folder / "log", result_pickle=pickle)
        self.is_over = False

    def done(self):
        return self.is_over

    def end(self):
        self.is_over = True
        self.paths.result_pickle.parent.mkdir(parents=True, exist_ok=True)
        self.paths.result_pickle.touch()

    def exception(self):
        return None

    def result(self):
        return Outcome("done")


@pytest.fixture
def executor(monkeypatch):
    monkeypatch.setattr(submitit, "AutoExecutor", executor := Executor())
    return executor


def start(local, tmp_path, name):
    job = Job(ConfigDict(), tmp_path / name, {"arm": name}, tmp_path / "stop")
    return local.start(job, tmp_path / f"{name}-1")


def given(executor, what):
    return {job.record["arm"]: getattr(job, what) for job in executor.jobs}


def test_local_jobs_take_turns_without_accelerators(tmp_path, monkeypatch, executor):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    local = launch.Local(2)
    first, second = (start(local, tmp_path, name) for name in "ab")
    assert first.poll() is None
    first._submitted.end()
    assert first.poll() == Outcome("done")
    start(local, tmp_path, "c")
    second._submitted.end()
    second.poll()
    start(local, tmp_path, "d")
    # What submitit sets to nothing is unset again.
    nothing = {"CUDA_VISIBLE_DEVICES": None}
    assert given(executor, "environment") == dict.fromkeys("abcd", nothing)
    assert given(executor, "folder")["d"] == tmp_path / "d"


def test_local_jobs_take_turns_on_the_accelerators(tmp_path, monkeypatch, executor):
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    local = launch.Local()
    attempts = [start(local, tmp_path, name) for name in "ab"]
    attempts[1]._submitted.end()
    attempts[1].poll()
    start(local, tmp_path, "c")
    visible = {
        arm: e["CUDA_VISIBLE_DEVICES"]
        for arm, e in given(executor, "environment").items()
    }
    assert visible == {"a": "4", "b": "6", "c": "6"}


def test_a_terminal_reaches_neither_a_local_job_nor_what_is_around_it(
    tmp_path, executor
):
    before = list(map(signal.getsignal, INHERITED))
    start(launch.Local(1), tmp_path, "a")
    assert executor.handlers == [[signal.SIG_IGN] * 2]
    assert list(map(signal.getsignal, INHERITED)) == before
    assert given(executor, "own_group") == {"a": True}


HOLDER = """
import pathlib, signal, sys
from experiments.running.worker import locked

with locked(pathlib.Path(sys.argv[1])):
    print("has it", flush=True)
    signal.pause()
"""


@contextlib.contextmanager
def holder_of(folder):
    """A job as far as it can be found, which answers signals as Python does."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout.readline() == "has it\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("way", "number"), [("stop", signal.SIGTERM), ("kill", signal.SIGKILL)]
)
def test_a_job_that_outlives_what_is_around_it_is_ended_all_the_same(
    tmp_path, executor, way, number
):
    attempt = start(launch.Local(1), tmp_path, "a")
    attempt._submitted.is_over = True
    with holder_of(tmp_path / "a") as process:
        assert attempt.poll() is None
        getattr(attempt, way)()
        assert process.wait(timeout=30) == -number
    assert attempt.poll() == Outcome("crashed", error="it was killed")
    assert (tmp_path / "stop").exists() == (way == "stop")


def test_a_job_that_is_over_leaves_the_next_one_of_its_folder_alone(tmp_path, executor):
    attempt = start(launch.Local(1), tmp_path, "a")
    attempt._submitted.end()
    with holder_of(tmp_path / "a") as process:
        attempt.stop()
        assert attempt.poll() == Outcome("done")
        time.sleep(0.1)
        assert process.poll() is None


@pytest.fixture
def launcher_of(tmp_path):
    """The launcher that a command line asks for."""

    def launcher_of(name, *args):
        flags.FLAGS(["run", f"--workdir={tmp_path}", *args])
        return make_launcher(name, tmp_path / "study")

    with flagsaver.flagsaver():
        yield launcher_of


def test_launchers_are_as_the_flags_have_them(launcher_of, machine, executor, tmp_path):
    assert isinstance(launcher_of("inline"), launch.Inline)
    local = launcher_of("local", "--jobs=3")
    assert isinstance(local, launch.Local)
    assert local.jobs == 3
    cluster = launcher_of(
        "slurm",
        "--jobs=5",
        "--slurm_partition=gpu",
        "--slurm_time=90",
        "--slurm_gpus=2",
        "--slurm_set=mem=32G",
        "--slurm_set=comment=a=b",
    )
    assert cluster.jobs == 5
    start(cluster, tmp_path, "a")
    assert executor.parameters == {
        "name": "study",
        "timeout_min": 90,
        "slurm_partition": "gpu",
        "gpus_per_node": 2,
        "slurm_additional_parameters": {"mem": "32G", "comment": "a=b"},
        "stderr_to_stdout": True,
    }


def test_what_is_not_said_is_not_asked_of_slurm(
    launcher_of, machine, executor, tmp_path
):
    cluster = launcher_of("slurm")
    assert cluster.jobs == sys.maxsize
    start(cluster, tmp_path, "a")
    assert executor.parameters.keys() == {"name", "timeout_min", "stderr_to_stdout"}


@pytest.mark.parametrize("setting", ["mem", "mem=", "=32G"])
def test_a_flag_of_sbatch_without_name_or_value_is_refused(
    launcher_of, machine, setting
):
    with pytest.raises(ValueError, match=r"--slurm_set must be KEY=VALUE, got \['"):
        launcher_of("slurm", "--slurm_set=nice=1", f"--slurm_set={setting}")

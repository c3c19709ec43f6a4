"""Where runs are trained: which devices they get, and what is asked of Slurm."""

import os
import sys
import time
from types import SimpleNamespace

import pytest
import submitit
from absl import flags
from absl.testing import flagsaver
from ml_collections import ConfigDict

from experiments.run import make_launcher
from experiments.running import launch
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
if [ ! -f {directory}/over ]; then echo 7; fi
""",
    "scancel": 'echo "scancel $*" >> {directory}/asked\n',
    "nvidia-smi": "echo NVIDIA H200\necho NVIDIA H200\n",
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
    monkeypatch.setattr(launch, "_ASK_SLURM_EVERY_SECONDS", -1)
    return directory


def make_job(tmp_path, name="run"):
    return Job(
        ConfigDict(),
        tmp_path / name,
        {"arm": name},
        stop_file=tmp_path / "stop",
        devices_file=tmp_path / "devices",
    )


def test_a_job_of_slurm_is_watched_and_stopped(machine, tmp_path):
    cluster = launch.Slurm(
        {
            "slurm_partition": "gpu",
            "timeout_min": 60,
            "slurm_additional_parameters": {"mem": "8G"},
        }
    )
    # It ends before it begins, which needs no training.
    job = make_job(tmp_path, "run")
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
    monkeypatch.setattr(launch, "_FILES_WITHIN_SECONDS", 0.2)
    job = make_job(tmp_path, "run")
    attempt = launch.Slurm({}).start(job, tmp_path / "job")
    while (outcome := attempt.poll()) is None:
        time.sleep(0.05)
    assert (outcome.state, outcome.error) == ("crashed", "it was killed")


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ([None, None], ("crashed", "it was killed")),
        ([None, "faulty"], ("faulty", "of 1")),
        (["stopped", "crashed"], ("crashed", "of 1")),
        (["stopped", None], ("stopped", "of 0")),
        (["done", "done"], ("done", "of 0")),
    ],
)
def test_the_processes_of_a_job_end_for_one_reason(states, expected):
    outcomes = [
        None if state is None else Outcome(state, f"of {process}")
        for process, state in enumerate(states)
    ]
    assert launch._combine(outcomes) == Outcome(*expected)


def test_what_slurm_refuses_is_one_line(machine, tmp_path, monkeypatch):
    (machine / "sbatch").write_text("#!/bin/bash\necho no such queue >&2\nexit 1\n")
    job = make_job(tmp_path, "run")
    with pytest.raises(ValueError, match=r"--launcher=slurm: .*no such queue"):
        launch.Slurm({}).start(job, tmp_path / "job")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="there is no sbatch on this machine"):
        launch.Slurm({})


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
        for jobs in (1, 3, 4)
    }
    assert of == {1: ["4,6,7"], 3: ["4", "6", "7"], 4: ["4", "6", "7", "4"]}
    shared = launch._environment(["4"], 0, 3)
    assert shared["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.300"


def test_shares_that_collect_would_refuse_are_refused(machine, monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6,7")
    with pytest.raises(ValueError, match="--jobs=2: 3 GPUs cannot be shared out equ"):
        launch.Local(2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    (machine / "nvidia-smi").write_text("#!/bin/bash\necho NVIDIA H200\necho T4\n")
    with pytest.raises(ValueError, match=r"of several kinds, NVIDIA H200, T4; results"):
        launch.Local()


# In the worker's place: it says what it was given, and ends when it is told so.
WORKER = """
import json, os, pathlib, pickle, signal, sys, time
directory = pathlib.Path(sys.argv[1])
job = pickle.loads((directory / "job.pkl").read_bytes())
print(job.record["arm"], os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
while not (job.folder / "end").exists():
    time.sleep(0.01)
outcome = {"state": "done", "error": ""}
(directory / "outcome.json").write_text(json.dumps(outcome))
"""


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setattr(launch, "_WORKER", ["-c", WORKER])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def start(local, tmp_path, name):
    return local.start(make_job(tmp_path, name), tmp_path / f"{name}-1")


def outcome_of(attempt):
    while (outcome := attempt.poll()) is None:
        time.sleep(0.01)
    return outcome


def end(attempt, tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "end").touch()
    assert outcome_of(attempt) == Outcome("done")
    return attempt.log.read_text().strip()


def test_local_jobs_take_turns_without_accelerators(tmp_path, stand_in):
    local = launch.Local(2)
    first, second = (start(local, tmp_path, name) for name in "ab")
    assert first.poll() is None
    assert end(first, tmp_path, "a") == "a None"
    third = start(local, tmp_path, "c")
    assert end(second, tmp_path, "b") == "b None"
    assert end(third, tmp_path, "c") == "c None"


def test_local_jobs_take_turns_on_the_accelerators(tmp_path, stand_in, monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    local = launch.Local()
    first, second = (start(local, tmp_path, name) for name in "ab")
    assert end(second, tmp_path, "b") == "b 6"
    third = start(local, tmp_path, "c")
    assert end(third, tmp_path, "c") == "c 6"
    assert end(first, tmp_path, "a") == "a 4"


@pytest.mark.parametrize("way", ["stop", "kill"])
def test_a_local_job_is_out_of_the_terminals_reach_and_ends_when_asked(
    tmp_path, stand_in, way
):
    attempt = start(launch.Local(1), tmp_path, "a")
    assert os.getsid(attempt._process.pid) != os.getsid(0)
    getattr(attempt, way)()
    assert outcome_of(attempt) == Outcome("crashed", error="it was killed")
    assert (tmp_path / "stop").exists() == (way == "stop")


@pytest.fixture
def launcher_of(tmp_path):
    """The launcher that a command line asks for."""

    def launcher_of(name, *args):
        asked = [f"--workdir={tmp_path}", f"--launcher={name}", *args]
        flags.FLAGS(["run", *asked])
        return make_launcher(tmp_path / "study")

    with flagsaver.flagsaver():
        yield launcher_of


class Executor:
    """In submitit's place: it notes what it is given, and runs nothing."""

    def __init__(self):
        self.parameters = {}

    def __call__(self, directory, cluster):
        return self

    def update_parameters(self, **parameters):
        self.parameters |= parameters

    def submit(self, function, job):
        assert function is run_job
        return SimpleNamespace(job_id="7", paths=SimpleNamespace(stdout=None))


@pytest.fixture
def executor(monkeypatch):
    monkeypatch.setattr(submitit, "AutoExecutor", executor := Executor())
    return executor


def test_launchers_are_as_the_flags_have_them(launcher_of, machine, executor, tmp_path):
    assert launcher_of("local", "--smoke").jobs == 1
    local = launcher_of("local", "--jobs=3")
    assert isinstance(local, launch.Local)
    assert local.jobs == 3
    cluster = launcher_of(
        "slurm",
        "--jobs=5",
        "--slurm_partition=gpu",
        "--slurm_time=90",
        "--slurm_gpus=2",
        "--slurm_nodes=3",
        "--slurm_tasks_per_node=4",
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
        "nodes": 3,
        "tasks_per_node": 4,
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

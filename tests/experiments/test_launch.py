"""Where runs are trained: which devices they get, and what is asked of Slurm."""

import os
import time

import pytest
from ml_collections import ConfigDict

from experiments.running import launch, slurm
from experiments.running.worker import Job, run_job

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


def test_cores_are_shared_out(monkeypatch):
    cores = {5, 0, 1, 3}
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: cores, raising=False)
    shares = {
        jobs: [launch._share_of_cores(slot, jobs) for slot in range(jobs)]
        for jobs in (1, 3, 5)
    }
    assert shares[1] == [(0, 1, 3, 5)]
    assert shares[3] == [(0, 5), (1,), (3,)]
    assert shares[5] == [(0,), (1,), (3,), (5,), None]


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="this system confines no process"
)
def test_a_job_keeps_to_its_cores(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda *given: kept.append(given))
    job = Job(ConfigDict(), tmp_path / "run", {}, tmp_path / "stop", cores=(2, 3))
    job.stop_file.touch()
    run_job(job)
    assert kept == [(0, (2, 3))]

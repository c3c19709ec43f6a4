"""How the processes of a run find each other, and what is said if they do not."""

import os
import re
import socket
import subprocess
import sys

import pytest
from jax._src.clusters import cloud_tpu_cluster
from processes import ROOT, environment, free_port
from test_ending import last_line

from segloss import hosts
from segloss.errors import SeglossError
from segloss.hosts import starting

pytestmark = pytest.mark.shared_out(by="module")

MISSING = (
    "--coordinator_address, --num_processes, --process_id are given together or not at "
    "all; {} is missing."
)
SLURM = {
    "SLURM_JOB_ID": "4096",
    "SLURM_STEP_NODELIST": "node[3-4]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
}
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
TPU_POD = {
    "TPU_WORKER_HOSTNAMES": "127.0.0.1,127.0.0.2",
    "TPU_WORKER_ID": "1",
    "MEGASCALE_NUM_SLICES": "1",
    "MEGASCALE_SLICE_ID": "0",
    "MEGASCALE_COORDINATOR_ADDRESS": "127.0.0.1",
}


@pytest.fixture
def connected(monkeypatch):
    """What `hosts.start` would connect to, instead of waiting for other processes."""
    calls = []
    monkeypatch.setattr(starting, "_connect", lambda *args: calls.append(args))
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "CUDA_VISIBLE", "TPU_")):
            monkeypatch.delenv(name)
    # JAX sets it where the machine has chips.
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    return calls


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("10.0.0.1:99", 2, None), MISSING.format("--process_id")),
        ((None, 2, 0), MISSING.format("--coordinator_address")),
        (
            ("10.0.0.1", 2, 0),
            "--coordinator_address must be HOST:PORT, such as 10.0.0.1:1234, got "
            "'10.0.0.1'.",
        ),
        (("a:65536", 2, 0), "--coordinator_address must be HOST:PORT"),
        (("a:1", 0, 0), "--num_processes must be >= 1, got 0."),
        (("a:1", 2, 2), "--process_id must be >= 0 and < --num_processes=2, got 2."),
    ],
)
def test_wrong_flags_are_one_line(given, message):
    with pytest.raises(SeglossError, match=re.escape(message)):
        hosts.start(*given)


def test_off_contradicts_the_flags_of_several_processes():
    with pytest.raises(SeglossError, match="--distributed=off is for a run of one"):
        hosts.start("a:1", 2, 0, detect=False)


def test_machine_without_cluster_and_run_of_one_process_start_nothing(connected):
    hosts.start()
    hosts.start("127.0.0.1:1", 1, 0)
    assert connected == []


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        (SLURM, ("node3:61440", 2, 1, None)),
        (SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None),
        # Two processes on a host take one GPU each; Slurm may show each only its own.
        (
            SLURM | {"SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_LOCALID": "1"},
            ("node3:61440", 2, 1, [1]),
        ),
        (
            SLURM
            | {"SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_LOCALID": "1"}
            | {"CUDA_VISIBLE_DEVICES": "0"},
            ("node3:61440", 2, 1, None),
        ),
        (OPEN_MPI, ("10.96.0.1:62624", 4, 3, [1])),
        (TPU_POD, ("127.0.0.1:8482", 2, 1, None)),
        # A pod outside of an indexed job is alone.
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),
    ],
)
def test_cluster_says_who_takes_part(connected, monkeypatch, variables, expected):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if variables is not TPU_POD:
        hosts.start(detect=False)
        assert connected == []
    hosts.start()
    assert [call[:4] for call in connected] == ([expected] if expected else [])


def test_off_on_one_host_of_a_tpu_pod_is_refused(connected, monkeypatch):
    for name, value in TPU_POD.items():
        monkeypatch.setenv(name, value)
    message = (
        "--distributed=off: this host is one of 2 of a TPU pod, and its chips start "
        "only with those of the others; leave it out and start the same command on all "
        "hosts, or set TPU_PROCESS_BOUNDS=1,1,1 to use the chips of this host alone."
    )
    with pytest.raises(SeglossError, match=re.escape(message)):
        hosts.start(detect=False)
    monkeypatch.setenv("TPU_PROCESS_BOUNDS", "1,1,1")
    hosts.start(detect=False)
    assert connected == []


def run(*flags):
    return subprocess.run(
        [sys.executable, "run.py", *flags],
        cwd=ROOT,
        env=environment(1, 1),
        capture_output=True,
        text=True,
        timeout=120,
    )


def start_alone(address, process):
    """Starts one of two processes by the command line; the other never comes."""
    code = (
        "from segloss import cli, hosts\n"
        f"start = lambda _: hosts.start('{address}', 2, {process}, "
        "connect_timeout_s=2)\n"
        "cli.run(start)"
    )
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment(2, 1),
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_absent_coordinator_is_one_line_that_names_the_address():
    address = f"127.0.0.1:{free_port()}"
    done = start_alone(address, 1)
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines() == [
        f"error: process 1 of 2 did not meet the others at {address} within 2 s; start "
        "all 2 processes, and check that process 0 runs on that host and that its port "
        "can be reached."
    ]


def test_port_in_use_is_one_line():
    with socket.socket() as server:
        server.bind(("", 0))
        server.listen()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        done = start_alone(address, 0)
    assert done.returncode == 1
    assert last_line(done.stderr) == (
        f"error: process 0 cannot serve at {address}: Address already in use; choose "
        "another port."
    )


def test_mode_of_one_process_refuses_the_flags_of_several(tmp_path):
    several = ("--coordinator_address=a:1", "--num_processes=2", "--process_id=0")
    done = run(f"--workdir={tmp_path}", "--mode=predict", "--input=.", *several)
    assert done.returncode == 1
    assert last_line(done.stderr) == (
        "error: --mode=predict runs in one process; leave out --coordinator_address, "
        "--num_processes and --process_id."
    )

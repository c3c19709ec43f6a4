"""Starts JAX's distributed runtime, by flags or where a cluster says how."""

import os
import re
import socket
import threading

import jax
from jax._src import clusters
from jax._src.clusters.cloud_tpu_cluster import BaseTpuCluster

from segloss.errors import SeglossError
from segloss.hosts.watch import exit_at_once, start_watching

# JAX's own limits, for what `segloss.hosts.watch` misses: it notices a silent process
# after 30 s and names it. JAX sends a heartbeat each half of this time, so it notices
# after 45 to 90 s, and aborts the others with a stack trace.
_HEARTBEAT_TIMEOUT_S = 90
_SHUTDOWN_TIMEOUT_S = 30
# Hosts of a cluster may start minutes apart.
_CONNECT_TIMEOUT_S = 300


def start(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    detect: bool = True,
    connect_timeout_s: int = _CONNECT_TIMEOUT_S,
) -> None:
    """Joins this process to the other processes of its run; does nothing if alone.

    Must be called before JAX's devices are used. Without the first three arguments, the
    run has several processes only where JAX detects a cluster with several: Slurm, Open
    MPI, a TPU pod, or an indexed job of Kubernetes.

    Args:
        coordinator_address: "HOST:PORT" that process 0 serves and all others can reach.
        num_processes: number of processes in the run, at least 1.
        process_id: number of this process, from 0.
        detect: False does not look for a cluster.
        connect_timeout_s: seconds to wait until all processes have started.

    Raises:
        SeglossError: if only some of the first three arguments are given, one of them
            is out of range, or the port is in use; or if `detect` is False on one host
            of a TPU pod. If not all processes connect in time, this process prints a
            line and exits with 1.
    """
    given = {
        "coordinator_address": coordinator_address,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    devices = None
    if any(x is not None for x in given.values()):
        _check(given, detect)
    elif not detect:
        _check_no_pod()
    elif cluster := _find_cluster():
        coordinator_address, num_processes, process_id = _ask(
            cluster, connect_timeout_s
        )
        devices = _find_devices(cluster)
    if (num_processes or 1) > 1:
        _connect(
            coordinator_address, num_processes, process_id, devices, connect_timeout_s
        )


def _check(given: dict[str, str | int | None], detect: bool) -> None:
    flags = ", ".join(f"--{name}" for name in given)
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if missing:
        raise SeglossError(
            f"{flags} are given together or not at all; {missing[0]} is missing."
        )
    if not detect:
        raise SeglossError(
            f"--distributed=off is for a run of one process; leave it out, or {flags}."
        )
    address, count, index = given.values()
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 2**16):
        raise SeglossError(
            "--coordinator_address must be HOST:PORT, such as 10.0.0.1:1234, "
            f"got {address!r}."
        )
    if count < 1:
        raise SeglossError(f"--num_processes must be >= 1, got {count}.")
    if not 0 <= index < count:
        raise SeglossError(
            f"--process_id must be >= 0 and < --num_processes={count}, got {index}."
        )


def _check_no_pod() -> None:
    """Raises SeglossError where JAX would wait for the other hosts of a TPU pod."""
    if {"TPU_PROCESS_BOUNDS", "TPU_HOST_BOUNDS"} & os.environ.keys():
        return
    pod = _find_cluster(BaseTpuCluster)
    if pod is not None:
        raise SeglossError(
            f"--distributed=off: this host is one of {pod.get_process_count()} of a "
            "TPU pod, and its chips start only with those of the others; leave it out "
            "and start the same command on all hosts, or set TPU_PROCESS_BOUNDS=1,1,1 "
            "to use the chips of this host alone."
        )


def _find_cluster(
    kind: type[clusters.ClusterEnv] = clusters.ClusterEnv,
) -> type[clusters.ClusterEnv] | None:
    """Returns the cluster of several processes that JAX detects; None without one."""
    for cluster in clusters.ClusterEnv._cluster_types:
        if not issubclass(cluster, kind):
            continue
        # A pod that is no part of an indexed job runs alone, and JAX would ask the
        # server of Kubernetes about it.
        in_pod = cluster.__name__ == "K8sCluster"
        if cluster.opt_in_only_method or (
            in_pod and "JOB_COMPLETION_INDEX" not in os.environ
        ):
            continue
        if cluster.is_env_present():
            return cluster if cluster.get_process_count() > 1 else None
    return None


def _ask(cluster: type[clusters.ClusterEnv], timeout_s: int) -> tuple[str, int, int]:
    """Returns the coordinator's address, the number of processes, and of this one."""
    port = os.environ.get("JAX_COORDINATOR_PORT")
    return (
        cluster.get_coordinator_address(timeout_s, port),
        cluster.get_process_count(),
        cluster.get_process_id(),
    )


def _find_devices(cluster: type[clusters.ClusterEnv]) -> list[int] | None:
    """Returns the numbers of the GPUs of this process; None means all that it sees.

    JAX would always choose the one with the number that the process has on its host,
    even if it is the only process there, or if Slurm shows each process only one GPU.
    """
    on_host = os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") or os.environ.get(
        "SLURM_STEP_TASKS_PER_NODE", ""
    )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    alone = re.fullmatch(r"1(\(x\d+\))?", on_host)
    if alone or (visible and "," not in visible):
        return None
    local = cluster.get_local_process_id()
    return None if local is None else [local]


def _connect(
    address: str, count: int, index: int, devices: list[int] | None, timeout_s: int
) -> None:
    # Its handler of SIGTERM would compete with the one that saves the run's state.
    jax.config.update("jax_enable_preemption_service", False)
    late = (
        f"process {index} of {count} did not meet the others at {address} within "
        f"{timeout_s} s; start all {count} processes, and check that process 0 runs on "
        "that host and that its port can be reached."
    )
    if index == 0:
        _check_port(address)
    # JAX would abort the process, with a stack trace.
    timer = threading.Timer(timeout_s, exit_at_once, [f"error: {late}"])
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            address,
            count,
            index,
            local_device_ids=devices,
            cluster_detection_method="deactivate",
            initialization_timeout=timeout_s + 30,
            heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT_S,
            shutdown_timeout_seconds=_SHUTDOWN_TIMEOUT_S,
        )
    finally:
        timer.cancel()
    start_watching()
    # The first use of the devices waits for that of the others, for two minutes.
    jax.devices()


def _check_port(address: str) -> None:
    """Raises SeglossError if process 0 cannot serve there, where JAX would crash."""
    port = int(address.rsplit(":", 1)[1])
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        raise SeglossError(
            f"process 0 cannot serve at {address}: {os.strerror(error.errno)}; choose "
            "another port."
        ) from error

"""Starts real JAX processes on 127.0.0.1, which a test then waits for."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def environment(num_processes, devices):
    """The variables of one of `num_processes` processes, each with `devices` devices.

    jaxlib 0.10 can deadlock on CPU devices with fewer than twice as many threads.
    """
    count = "--xla_force_host_platform_device_count"
    given = os.environ.get("XLA_FLAGS", "").split()
    kept = [flag for flag in given if not flag.startswith(count)]
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": " ".join([*kept, f"{count}={devices}"]),
        "NPROC": str(max(4, 2 * num_processes * devices)),
    }


@contextlib.contextmanager
def running(commands, *, devices, cwd=ROOT):
    """Starts one process per command; kills those that are left after the block.

    A process that waits for a dead one might never end by itself.
    """
    processes = [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            env=environment(len(commands), devices),
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        for command in commands
    ]
    try:
        yield processes
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            # Whatever else holds its output must not hold the test.
            process.communicate(timeout=60)


def commands_of(script, num_processes, *arguments):
    """Arguments of Python that run a script after `jax.distributed` has started."""
    port = free_port()
    start = "import jax\njax.distributed.initialize('127.0.0.1:{}', {}, {})\n"
    return [
        ["-c", start.format(port, num_processes, i) + script, *arguments]
        for i in range(num_processes)
    ]


def run_together(script, num_processes, *arguments, devices=1, timeout=120, code=0):
    """Runs Python code in `num_processes` processes, after `jax.distributed` started.

    The code finds its arguments in `sys.argv[1:]`, and must exit with `code`. Returns
    what each one printed.
    """
    commands = commands_of(script, num_processes, *arguments)
    with running(commands, devices=devices) as processes:
        outputs = [process.communicate(timeout=timeout)[0] for process in processes]
        codes = [process.returncode for process in processes]
    assert codes == [code] * num_processes, "\n".join(outputs)
    return outputs

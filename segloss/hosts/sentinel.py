"""Program that outlives a process, to say in one line that it ended without notice.

JAX ends a process from C++ if process 0 is gone, and a killed process cannot say a
word. So each process of a run on several hosts starts this program, and holds the other
end of its standard input, where it writes a byte before it ends in order.

python -I -S sentinel.py PROCESS HOST COORDINATOR_ADDRESS
"""

import os
import signal
import socket
import sys

_ANSWER_S = 5


def _explain(process: str, host: str, address: str) -> str:
    line = f"error: process {process} on {host} ended without notice"
    if process != "0" and not _answers(address):
        return (
            f"{line}, because process 0 no longer answers at {address}: it has ended, "
            "and its output says why; the same command resumes."
        )
    return (
        f"{line}: it was killed, such as for lack of memory, or crashed; the other "
        "processes end too; the same command resumes."
    )


def _answers(address: str) -> bool:
    host, port = address.rsplit(":", 1)
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _ANSWER_S):
            return True
    except OSError:
        return False


if __name__ == "__main__":
    # A scheduler signals every process of a job.
    for name in ("SIGHUP", "SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    if not os.read(sys.stdin.fileno(), 1):
        print(_explain(*sys.argv[1:]), file=sys.stderr)

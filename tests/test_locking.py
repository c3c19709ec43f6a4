"""One process at a time works in a folder, and a killed one leaves it free."""

import contextlib
import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from segloss.locking import locked

ROOT = Path(__file__).parents[1]
HOLDER = """
import sys
from pathlib import Path
from segloss.locking import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def holder_of(folder):
    """A process that holds the lock of a folder until its input ends."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout.readline() == b"locked\n"
        yield process


def test_a_second_process_is_refused_and_told_who_has_the_folder(tmp_path):
    with holder_of(tmp_path / "run") as process:
        message = f"/run is in use by process {process.pid} on {socket.gethostname()};"
        with pytest.raises(ValueError, match=message), locked(tmp_path / "run"):
            pass
    assert process.returncode == 0
    with locked(tmp_path / "run"):
        pass


def test_a_lock_may_be_waited_for(tmp_path):
    said = []

    def wait():
        with locked(tmp_path, on_wait=said.append):
            return list(said)

    with ThreadPoolExecutor(1) as other:
        with holder_of(tmp_path) as process:
            waited = other.submit(wait)
            while not said:
                assert not waited.done()
        here = f"process {process.pid} on {socket.gethostname()}"
        line = f"waits for {here}, which writes to {tmp_path}"
        assert waited.result() == [line]


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    with holder_of(tmp_path / "run") as process:
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert (tmp_path / "run" / ".lock").read_text().split()[0] == str(process.pid)
    with locked(tmp_path / "run"):
        here = (tmp_path / "run" / ".lock").read_text()
        assert here == f"{os.getpid()} {socket.gethostname()}\n"


def test_a_lock_leaves_nothing_behind(tmp_path):
    for _ in range(2):
        with locked(tmp_path / "sweep" / "run"):
            assert (tmp_path / "sweep" / "run" / ".lock").is_file()
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyError), locked(tmp_path / "run"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "sweep" / "run"):
        (tmp_path / "sweep" / "run" / "config.json").touch()
    (left,) = (tmp_path / "sweep" / "run").iterdir()
    assert left.name == "config.json"
    # A folder that was there before stays.
    (tmp_path / "own").mkdir()
    with locked(tmp_path / "own"):
        pass
    assert (tmp_path / "own").is_dir()


def test_only_the_thread_that_has_a_lock_may_take_it_again(tmp_path):
    with locked(tmp_path), locked(tmp_path):
        pass
    with locked(tmp_path):
        with locked(tmp_path):
            pass
        # The inner block has not freed it.
        with ThreadPoolExecutor(1) as other:
            second = other.submit(locked(tmp_path).__enter__)
            assert f"in use by process {os.getpid()} on" in str(second.exception())


def test_a_file_system_without_locks_is_said_to_have_none(tmp_path, monkeypatch):
    def flock(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    message = r"the file system of .*/run has no locks"
    with pytest.warns(UserWarning, match=message), locked(tmp_path / "run"):
        assert (tmp_path / "run" / ".lock").exists()

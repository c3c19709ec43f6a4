"""What must hold whatever a file says: nothing runs, nothing is written, one line."""

import contextlib
import os
import resource
import signal
import sys
import warnings
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from segloss.errors import explain

# Examples of each test; unset, few and always the same ones. Many, drawn anew, in
# minutes: FUZZ_EXAMPLES=20000 python -m pytest -n0 tests/fuzz
_EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES") or 0)
_SECONDS = 60
_MEMORY = 1 << 30
_RUNS = {
    *("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "os.spawn"),
    *("os.fork", "subprocess.Popen", "socket.connect"),
}
_CHANGES = {
    *("os.chmod", "os.chown", "os.link", "os.mkdir", "os.remove", "os.rename"),
    *("os.rmdir", "os.symlink", "os.truncate", "os.utime"),
}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_guards: list["_Guard"] = []
NUMBERS = (0, 1, 2, 3, 7, 8, 16, 255, 256, 32767, 65535, 2**16, 2**24, 2**31 - 1)


def fuzzed(examples):
    """Settings of a test of `examples` inputs, or of $FUZZ_EXAMPLES other ones."""
    return settings(
        max_examples=_EXAMPLES or examples,
        derandomize=not _EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


class _Guard:
    def __init__(self, writable):
        self.writable = tuple(os.path.realpath(folder) + os.sep for folder in writable)
        self.seen = []

    def see(self, event, arguments):
        if event in _RUNS:
            self.seen.append((event, arguments))
        paths = ()
        if event == "open" and arguments[2] & _WRITING:
            paths = arguments[:1]
        elif event in _CHANGES:
            paths = arguments[:2]
        # Of those below an open folder, the last argument is its number.
        folder = arguments[-1] if event in _CHANGES - {"os.truncate"} else -1
        for path in paths:
            is_path = isinstance(path, str | bytes | os.PathLike)
            if is_path and not self._may(path, folder):
                self.seen.append((event, path))

    def _may(self, path, folder):
        path = os.fsdecode(path)
        if folder != -1:
            path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
        path = os.path.realpath(path)
        return path == os.devnull or path.startswith(self.writable)


def _hook(event, arguments):
    for guard in _guards:
        guard.see(event, arguments)


sys.addaudithook(_hook)


@contextlib.contextmanager
def unharmed(*writable, memory=_MEMORY):
    """Fails if the block runs, writes or connects to anything, or does not end.

    Files may be written below `writable`. The block gets `memory` bytes more than the
    process has now, and warnings do not stop it.
    """
    guard = _Guard(writable)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + memory
    before = signal.signal(signal.SIGALRM, _give_up)
    signal.alarm(_SECONDS)
    _guards.append(guard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        _guards.remove(guard)
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert not guard.seen, guard.seen


class _HungError(BaseException):
    """Not an `Exception`, which readers of damaged files catch."""


def _give_up(*_):
    raise _HungError(f"no end after {_SECONDS} s")


def line_of(error, lines=1):
    """Returns what a command prints for an error; at most `lines` printable lines."""
    line = explain(error)
    assert line, repr(error)
    check_line(line, lines)
    return line


def check_line(text, lines=1):
    parts = text.split("\n")
    assert len(parts) <= lines, text
    assert all(part.isprintable() for part in parts), repr(text)
    for sign in ("MemoryError", "Unable to allocate", "Traceback"):
        assert sign not in text, text


@st.composite
def mutated(draw, sound):
    """Draws one of the sound files with a few changes, most of them in its header."""
    data = bytearray(draw(st.sampled_from(sound)))
    for _ in range(draw(st.integers(1, 5))):
        last = max(len(data) - 1, 0)
        place = draw(st.integers(0, min(last, 95)) | st.integers(0, last))
        how = draw(st.sampled_from(["flip", "number", "insert", "cut", "mix"]))
        if how == "flip" and data:
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif how == "number":
            size = draw(st.sampled_from([1, 2, 4, 8]))
            number = draw(st.sampled_from(NUMBERS) | st.integers(0, 2**64 - 1))
            order = draw(st.sampled_from(["little", "big"]))
            number %= 256**size
            data[place : place + size] = number.to_bytes(size, order)
        elif how == "insert":
            data[place:place] = draw(st.binary(max_size=12))
        elif how == "cut":
            del data[place : draw(st.integers(place, last + 1))]
        elif how == "mix":
            other = draw(st.sampled_from(sound))
            data[place:] = other[draw(st.integers(0, len(other))) :]
    return bytes(data)

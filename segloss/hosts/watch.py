"""Ends the processes of a run together: none waits for one that has failed.

Each process writes a sign of life to JAX's coordinator every second, and reads those of
the others. If one fails, is killed or hangs, the others print one line and exit.
"""

import atexit
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import jax
from jax._src import distributed

from segloss.errors import explain
from segloss.hosts.exchange import process_count, process_index

# A process without a sign of life for this time is taken for dead.
SILENCE_S = 30
_BEAT_S = 1
# How long process 0, whose end is the end of the coordinator, waits for the others.
_FAREWELL_S = 8
# How long a failed process may take to clean up and to print its error.
_CLEAN_UP_S = 12
_KEYS = "segloss/watch/"
_watcher: "_Watcher | None" = None


@contextlib.contextmanager
def watched(*, agreed: tuple[type[BaseException], ...] = ()) -> Iterator[None]:
    """Tells the other processes at once if the block raises, so that they end as well.

    The error then takes its usual way; the process exits with 1 after 12 s at the
    latest. Blocks may be nested: the inner one tells before the clean-up of the outer,
    which may wait for other processes. With one process this does nothing.

    Args:
        agreed: exceptions that all processes raise together, which are no failure.
    """
    if process_count() == 1:
        yield
        return
    start_watching()
    try:
        yield
    except agreed:
        raise
    except BaseException as error:
        _watcher.report(error)
        raise


def start_watching() -> None:
    """Starts to watch the other processes, and to be watched; idempotent."""
    global _watcher
    if _watcher is None and process_count() > 1:
        _watcher = _Watcher()


def exit_at_once(line: str = "") -> NoReturn:
    """Prints a line and ends the process with 1, without any clean-up."""
    if line:
        print(line, file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(1)


class _Watcher:
    """Threads that exchange signs of life until the process ends."""

    def __init__(self):
        self._client = distributed.global_state.client
        self._address = distributed.global_state.coordinator_address
        self._host = socket.gethostname()
        self._me = process_index()
        self._sentinel = _start_sentinel(self._me, self._host, self._address)
        self._ending = threading.Event()
        self._leaving = threading.Lock()
        self._failed = False
        self._answered = time.monotonic()
        # Per process: its host, its last sign of life, and when that was first seen.
        self._seen: dict[int, tuple[str, str, float]] = {}
        # JAX's own function, which is registered earlier, is called later.
        atexit.register(self._end)
        # At once, since a process that has given no sign yet is not missed.
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._give_sign(0)
        for loop in (self._poll, self._judge):
            threading.Thread(target=loop, daemon=True).start()

    def report(self, error: BaseException) -> None:
        """Tells the other processes of an error, and limits the time until the exit."""
        if self._failed:
            return
        if _may_be_an_echo(error):
            # A collective fails at once if another process dies. Who that was is known
            # later, and then `_leave` ends this process.
            time.sleep(SILENCE_S + 5 * _BEAT_S)
        self._failed = True
        known = explain(error)
        line = known or f"{type(error).__name__}: {' '.join(str(error).split())}"
        at_last = f"error: {known}" if known else _traceback(error)
        timer = threading.Timer(_CLEAN_UP_S, self._leave, [at_last])
        timer.daemon = True
        timer.start()
        value = json.dumps([self._me, self._host, line[:2000]])
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # another was earlier
            self._client.key_value_set(f"{_KEYS}failed", value)
        self._see_off({self._me})

    def _give_sign(self, count: int) -> None:
        beat = f"{_KEYS}beat/{self._me}"
        self._client.key_value_set(beat, f"{count} {self._host}", allow_overwrite=True)

    def _poll(self) -> None:
        count = 0
        while not self._ending.wait(_BEAT_S):
            count += 1
            try:
                self._give_sign(count)
                found = dict(self._client.key_value_dir_get(_KEYS))
            except jax.errors.JaxRuntimeError:
                if not self._failed and not self._ending.is_set():
                    self._leave(self._describe_lost())
                return
            self._answered = time.monotonic()
            found = {k.removeprefix(_KEYS): v for k, v in found.items()}
            self._look(found)

    def _look(self, found: dict[str, str]) -> None:
        """Ends this process if the signs of life say that another one has failed."""
        if "failed" in found and not self._failed:
            process, host, line = json.loads(found["failed"])
            self._leave(
                f"error: process {process} on {host}: {line.rstrip('.: ')}; process "
                f"{self._me} ends too; the same command resumes.",
                gone={process},
            )
        now = time.monotonic()
        for process in range(process_count()):
            beat = found.get(f"beat/{process}")
            if beat is None or f"ended/{process}" in found:
                self._seen.pop(process, None)
                continue
            _, host = beat.split(" ", 1)
            _, last, since = self._seen.get(process, (host, "", now))
            self._seen[process] = host, beat, since if beat == last else now
            silent = now - self._seen[process][2]
            if silent > SILENCE_S and not self._failed and process != self._me:
                self._leave(
                    f"error: process {process} on {host} gave no sign of life for "
                    f"{SILENCE_S} s: it was killed, or it hangs; process {self._me} "
                    "ends too; the same command resumes.",
                    gone={process},
                )

    def _judge(self) -> None:
        """Ends this process if the coordinator stops to answer, without an error."""
        while not self._ending.wait(_BEAT_S):
            if time.monotonic() - self._answered > SILENCE_S and not self._failed:
                self._leave(self._describe_lost())

    def _describe_lost(self) -> str:
        return (
            f"error: process 0 no longer answers at {self._address}: it has ended, or "
            f"it hangs; process {self._me} ends too; the same command resumes."
        )

    def _leave(self, line: str, *, gone: set[int] | None = None) -> None:
        """Prints a line and ends the process at once.

        Process 0 waits for the others before, except for those `gone`; None waits for
        nobody.
        """
        self._leaving.acquire()  # never released: the process ends
        self._ending.set()
        print(line, file=sys.stderr, flush=True)
        self._dismiss_sentinel()
        if gone is not None:
            self._see_off(gone | {self._me})
        exit_at_once()

    def _see_off(self, gone: set[int]) -> None:
        """Says that this process ends; process 0 waits until the others do."""
        deadline = time.monotonic() + _FAREWELL_S
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._client.key_value_set(
                f"{_KEYS}ended/{self._me}", "", allow_overwrite=True
            )
            while self._me == 0 and time.monotonic() < deadline:
                found = self._client.key_value_dir_get(f"{_KEYS}ended/")
                ended = {int(key.rsplit("/", 1)[1]) for key, _ in found}
                if len(ended | gone) == process_count():
                    break
                time.sleep(0.1)

    def _end(self) -> None:
        """At the exit of the interpreter."""
        self._ending.set()
        if self._failed:
            # JAX would wait here for processes that never come.
            self._dismiss_sentinel()
            exit_at_once()
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._client.key_value_set(f"{_KEYS}ended/{self._me}", "")
        self._dismiss_sentinel()

    def _dismiss_sentinel(self) -> None:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            self._sentinel.communicate(b".", timeout=2)


def _start_sentinel(process: int, host: str, address: str) -> subprocess.Popen:
    program = Path(__file__).with_name("sentinel.py")
    return subprocess.Popen(
        [sys.executable, "-I", "-S", program, str(process), host, address],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


def _may_be_an_echo(error: BaseException) -> bool:
    """Whether an error may only follow from the end of another process."""
    return isinstance(
        error, jax.errors.JaxRuntimeError
    ) and "RESOURCE_EXHAUSTED" not in str(error)


def _traceback(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)).rstrip()

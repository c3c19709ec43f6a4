"""Locks a folder on another file system for one process.

There are no locks there that end with their process. The lock is a file `.lock` that
its owner rewrites all the time. If it no longer changes, its owner is dead.
"""

import contextlib
import os
import socket
import threading
import time
import uuid
import warnings
from types import TracebackType
from typing import Any

from segloss.errors import SeglossError
from segloss.locking import LOCK
from segloss.remote.urls import explaining

_RENEW_S = 10.0
# After this time without a change, the owner counts as dead.
_STALE_S = 60.0
_POLL_S = 1.0


class RemoteLock:
    """Locks the folder `root` of a file system, as a context manager.

    Raises:
        SeglossError: on entry, if another process holds the lock.
    """

    def __init__(self, fs: Any, root: str, url: str):
        self._fs, self._root, self._url = fs, root, url
        self._path = f"{root}/{LOCK}"
        self._token, self._count = uuid.uuid4().hex, 0
        self._ended = threading.Event()
        self._taken_by: str | None = None
        self._thread = threading.Thread(
            target=self._renew, name="renew lock", daemon=True
        )

    def __enter__(self) -> "RemoteLock":
        with explaining(self._url):
            self._take()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        # The lock of a process that cannot remove it ends after a while.
        with contextlib.suppress(Exception):
            if self._is_mine(self._read()):
                self._fs.rm(self._path)

    def check(self) -> None:
        """Raises SeglossError if another process took the lock over."""
        if self._taken_by is not None:
            raise SeglossError(
                f"{self._url} was taken over by {_owner(self._taken_by)}, because this "
                f"process did not write there for {_STALE_S:.0f} s; this run stops."
            )

    def _take(self) -> None:
        while True:
            try:
                self._fs.pipe_file(self._path, self._text(), mode="create")
                break
            except FileNotFoundError:  # sftp, unlike buckets, has real folders
                self._fs.makedirs(self._root, exist_ok=True)
                continue
            except FileExistsError:
                pass
            found = self._read()
            if found is not None and self._is_dead(found):
                self._write()
                break
        # Few file systems create a file only if it is missing, in one step; of two
        # processes that did it at once, the last keeps the lock.
        time.sleep(_POLL_S)
        if not self._is_mine(found := self._read()):
            raise self._in_use(found or "")

    def _is_dead(self, found: str) -> bool:
        """Watches a lock until its owner proves to be dead; then returns True.

        Returns False if the lock was removed.

        Raises:
            SeglossError: if its owner is alive.
        """
        if _ended_here(found):
            return True
        warnings.warn(
            f"{self._url} was in use by {_owner(found)}; watches for {_STALE_S:.0f} s "
            "whether that still works.",
            stacklevel=5,
        )
        deadline = time.monotonic() + _STALE_S
        while time.monotonic() < deadline:
            time.sleep(_POLL_S)
            now = self._read()
            if now is None:
                return False
            if now != found:
                raise self._in_use(now)
        return True

    def _in_use(self, found: str) -> SeglossError:
        return SeglossError(
            f"{self._url} is in use by {_owner(found)}; wait for it, or end it with "
            "`kill` there, which saves its state, or choose another --workdir."
        )

    def _renew(self) -> None:
        while not self._ended.wait(_RENEW_S):
            # A file system that cannot be reached for a while is tried again.
            with contextlib.suppress(Exception):
                found = self._read()
                if not self._is_mine(found):
                    self._taken_by = found or ""
                    return
                self._write()

    def _read(self) -> str | None:
        try:
            return self._fs.cat_file(self._path).decode(errors="replace")
        except FileNotFoundError:
            return None

    def _write(self) -> None:
        self._count += 1
        self._fs.pipe_file(self._path, self._text())

    def _text(self) -> bytes:
        host = socket.gethostname()
        return f"{os.getpid()} {host} {self._token} {self._count}\n".encode()

    def _is_mine(self, text: str | None) -> bool:
        return text is not None and self._token in text.split()


def _owner(text: str) -> str:
    pid, host = [*text.split(), "?", "?"][:2]
    return f"process {pid} on {host}"


def _ended_here(text: str) -> bool:
    """Whether the owner of a lock was a process of this machine that has ended."""
    pid, host = [*text.split(), "", ""][:2]
    if host != socket.gethostname() or not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False

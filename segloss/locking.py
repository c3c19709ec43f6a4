"""Locks a folder, so that only one process at a time works in it."""

import contextlib
import errno
import fcntl
import os
import socket
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from segloss.errors import SeglossError

LOCK = ".lock"
# File systems without locks, such as Lustre mounted without `flock`, raise these.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
# Lock files that this process holds, each with the thread that locked it.
_held: set[tuple[Path, int]] = set()


@contextlib.contextmanager
def locked(
    folder: Path, *, on_wait: Callable[[str], object] | None = None
) -> Iterator[None]:
    """Locks a folder within the block, by its file `.lock`, which is then removed.

    Creates the folder if it is missing, and removes it if it is still empty after the
    block. The lock ends with the process, even if that is killed. A thread that holds
    the lock may lock the folder again, which has no effect.

    Args:
        folder: the folder to lock.
        on_wait: if another process or thread holds the lock, this is called with a line
            that names it, and the lock is waited for; None does not wait.

    Raises:
        SeglossError: if another process or thread holds the lock, and `on_wait` is
            None.
    """
    path = folder.resolve() / LOCK
    holder = (path, threading.get_ident())
    if holder in _held:
        yield
        return
    missing = [x for x in (path.parent, *path.parent.parents) if not x.exists()]
    file = _lock(path, folder, on_wait)
    _held.add(holder)
    try:
        yield
    finally:
        _held.remove(holder)
        path.unlink(missing_ok=True)
        file.close()
        with contextlib.suppress(OSError):  # not empty
            for created in missing:
                created.rmdir()


def _lock(path: Path, folder: Path, on_wait: Callable[[str], object] | None) -> IO[str]:
    """Opens and locks a file, and writes the process and the host into it."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        # NFS locks only files that are open for writing.
        file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            pid, host = [*file.read().split(), "?", "?"][:2]
            if on_wait is None:
                file.close()
                raise SeglossError(
                    f"{folder} is in use by process {pid} on {host}; wait for it, or "
                    f"end it with `kill {pid}`, which saves its state, or choose "
                    "another --workdir."
                ) from None
            on_wait(f"waits for process {pid} on {host}, which writes to {folder}")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            warnings.warn(
                f"the file system of {folder} has no locks; make sure that no other "
                "process uses it.",
                stacklevel=4,
            )
        # Another process may have removed the file before this one locked it.
        if is_at(path, file):
            break
        file.close()
    file.truncate(0)
    # On a full disk, the lock holds without the line. Nothing may stay in a buffer, as
    # closing the file would then fail.
    with contextlib.suppress(OSError):
        os.write(file.fileno(), f"{os.getpid()} {socket.gethostname()}\n".encode())
    return file


def is_at(path: Path, file: IO) -> bool:
    """Whether a path leads to an open file: it was not moved, deleted or replaced."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False

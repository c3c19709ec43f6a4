"""Locks a folder, so that only one process at a time works in it."""

import contextlib
import errno
import fcntl
import os
import socket
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from segloss.errors import SeglossError

LOCK = ".lock"
# File systems without locks, such as Lustre mounted without `flock`, raise these.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
# Lock files that this process holds, each with the thread that locked it.
_held: set[tuple[Path, int]] = set()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Locks a folder within the block, by its file `.lock`, which is then removed.

    Creates the folder if it is missing, and removes it if it is still empty after the
    block. The lock ends with the process, even if that is killed. A thread that holds
    the lock may lock the folder again, which has no effect.

    Raises:
        SeglossError: if another process or thread holds the lock.
    """
    path = folder.resolve() / LOCK
    holder = (path, threading.get_ident())
    if holder in _held:
        yield
        return
    missing = [x for x in (path.parent, *path.parent.parents) if not x.exists()]
    file = _lock(path, folder)
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


def _lock(path: Path, folder: Path) -> IO[str]:
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
            file.close()
            raise SeglossError(
                f"{folder} is in use by process {pid} on {host}; wait for it, or end "
                f"it with `kill {pid}`, which saves its state, or choose another "
                "--workdir."
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            warnings.warn(
                f"the file system of {folder} has no locks; make sure that no other "
                "process uses it.",
                stacklevel=4,
            )
        # Another process may have removed the file before this one locked it.
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            break
        file.close()
    file.truncate(0)
    file.write(f"{os.getpid()} {socket.gethostname()}\n")
    file.flush()
    return file

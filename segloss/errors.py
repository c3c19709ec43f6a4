"""The error class of segloss, and how commands print an error in one line."""

import errno
import os
import re
import shutil
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)
_ADVICE = {
    errno.EACCES: "change its permissions, or choose another place",
    errno.EDQUOT: "free some space, and give the same command again",
    errno.EEXIST: "a file is in the way; move or delete it",
    errno.EFBIG: "choose a place where files may be larger",
    errno.EISDIR: "it must be a file; give a file, or move the directory",
    errno.ELOOP: "choose a path without a loop of links",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOENT: "check the path",
    errno.ENOSPC: "free some space, and give the same command again",
    errno.ENOTDIR: "a part of the path is a file; choose another place",
    errno.EPERM: "choose another place",
    errno.EROFS: "choose a place that can be written to",
}


class SeglossError(ValueError):
    """Input that segloss cannot use: a value, a file, a folder or a command.

    The message says what is wrong, where, the rule, the value, and what to do. Commands
    print it as one line. Any other exception is a bug, or comes from another package,
    and keeps its traceback.
    """


class MissingFileError(SeglossError, FileNotFoundError):
    """A file or folder that segloss needs does not exist."""


class ExistingFileError(SeglossError, FileExistsError):
    """A file exists that segloss would have to overwrite."""


class OutOfMemoryError(SeglossError, MemoryError):
    """The memory of the host or of a device is too small for what was asked."""


def find_out_of_memory(error: BaseException) -> str | None:
    """Returns what an error of NumPy or JAX says of the memory that was asked for.

    Returns:
        A phrase such as "cannot allocate 40.23 GiB"; None for any other error.
    """
    text = " ".join(str(error).split())
    # JAX's class has another name in each version, and importing it takes a second.
    of_jax = isinstance(error, RuntimeError) and (
        "RESOURCE_EXHAUSTED" in text or "Out of memory" in text
    )
    if not isinstance(error, MemoryError) and not of_jax:
        return None
    if asked := re.search(r"[Oo]ut of memory.*? allocat\w+ ([\d.]+) bytes", text):
        return f"cannot allocate {float(asked[1]) / 2**30:.2f} GiB"
    if asked := re.search(r"[Uu]nable to allocate ([\d.]+ \w+)(.*)", text):
        return f"cannot allocate {asked[1]}{asked[2]}"
    return text[:200] or "cannot allocate more"


def explain(error: BaseException) -> str | None:
    """Returns the line that a command prints for an error that its user can mend.

    Returns:
        The message of a `SeglossError`. For an `OSError` of a named file, the path,
        what is wrong and what to do; if its disk is full, also which disk that is, how
        much is free, and what its attribute `wanted` says, if it has one. For a lack of
        memory, how much was asked for. None for any other exception, whose traceback is
        needed.
    """
    if isinstance(error, SeglossError):
        lines = str(error).split("\n")
        return "\n".join(map(printable, lines)) or type(error).__name__
    if (asked := find_out_of_memory(error)) is not None:
        return (
            f"out of memory: {printable(asked)}; give the process more, or less to do."
        )
    if isinstance(error, OSError) and error.errno and error.filename is not None:
        advice = _ADVICE.get(error.errno)
        full = f": {describe_disk(error)}" if error.errno in FULL else ""
        return f"{printable(_text(error.filename))}: {error.strerror}{full}" + (
            f"; {advice}." if advice else "."
        )
    return None


def describe_disk(error: OSError) -> str:
    """Says which disk holds the file of an error, what is free and what is wanted."""
    path = Path(os.path.abspath(_text(error.filename)))
    place = next(x for x in (path, *path.parents) if x.is_dir())
    mount = next(x for x in (place, *place.parents) if x.is_mount())
    free = describe_size(shutil.disk_usage(place).free)
    wanted = getattr(error, "wanted", "")
    return f"the disk at {mount} has {free} free" + (wanted and f", and {wanted}")


def describe_size(num_bytes: float) -> str:
    """Returns a size such as "1.5 GB", or "12 bytes"."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes:.0f} bytes"


def _text(path: object) -> str:
    return path.decode(errors="replace") if isinstance(path, bytes) else str(path)


def printable(text: str) -> str:
    r"""Escapes line breaks, terminal codes and bytes that are no text, as `\x1b`.

    >>> printable("red\x1b[31m.png")
    'red\\x1b[31m.png'
    """
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in text
    )

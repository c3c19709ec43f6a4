"""The error class of segloss, and how commands print an error in one line."""

import errno

_ADVICE = {
    errno.EACCES: "change its permissions, or choose another place",
    errno.EDQUOT: "free some space, or choose another place",
    errno.EFBIG: "choose a place where files may be larger",
    errno.EISDIR: "give a file",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOENT: "check the path",
    errno.ENOSPC: "free some space, or choose another place",
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


def explain(error: BaseException) -> str | None:
    """Returns the line that a command prints for an error that its user can mend.

    Returns:
        The message of a `SeglossError`. For an `OSError` of a named file, such as one
        on a full disk, the path, what is wrong and what to do. None for any other
        exception, whose traceback is needed.
    """
    if isinstance(error, SeglossError):
        return str(error) or type(error).__name__
    if isinstance(error, OSError) and error.errno and error.filename is not None:
        advice = _ADVICE.get(error.errno)
        return f"{_text(error.filename)}: {error.strerror}" + (
            f"; {advice}." if advice else "."
        )
    return None


def _text(path: object) -> str:
    return path.decode(errors="replace") if isinstance(path, bytes) else str(path)

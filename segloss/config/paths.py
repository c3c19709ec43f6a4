"""Paths that a user gives, with `~` expanded."""

import re
from pathlib import Path

from segloss.errors import SeglossError

# Orbax searches directories by patterns, in which these characters are special.
_SPECIAL = re.compile(r"[*?\[\\]")


def expand(where: str, path: str) -> str:
    """Returns a path in which a leading `~` or `~user` is replaced by the home folder.

    Shells do this at the beginning of a word, but not in `--workdir=~/runs`.

    Raises:
        SeglossError: if there is no such home folder; `where` names the field or flag.
    """
    if not path.startswith("~"):
        return path
    try:
        return str(Path(path).expanduser())
    except RuntimeError as error:
        raise SeglossError(
            f"{where}: {path} has no home folder; give the whole path."
        ) from error


def as_workdir(path: str | Path) -> Path:
    """Returns the directory of a run, with `~` expanded; it need not exist.

    Raises:
        SeglossError: if the path is empty or a file, or if checkpoints cannot be read
            in such a directory.
    """
    if not str(path):
        raise SeglossError("--workdir is empty; give the directory of the run.")
    workdir = Path(expand("--workdir", str(path)))
    if workdir.exists() and not workdir.is_dir():
        raise SeglossError(f"--workdir={workdir} is a file; choose a directory.")
    if special := _SPECIAL.search(str(workdir.absolute())):
        raise SeglossError(
            f"--workdir={workdir.absolute()}: checkpoints cannot be read from a path "
            f"with {special[0]!r} in it; choose a directory without any of * ? [ \\."
        )
    return workdir

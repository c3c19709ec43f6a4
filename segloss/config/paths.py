"""Paths that a user gives, with `~` expanded."""

import contextlib
import os
import re
from pathlib import Path

from segloss.errors import SeglossError, printable
from segloss.remote import check_local, check_url, is_remote

# Orbax searches directories by patterns, in which these characters are special.
_SPECIAL = re.compile(r"[*?\[\\]")


def expand(where: str, path: str) -> str:
    """Returns a path in which a leading `~` or `~user` is replaced by the home folder.

    Shells do this at the beginning of a word, but not in `--workdir=~/runs`.

    Raises:
        SeglossError: if there is no such home folder, or the path has a scheme such as
            `gs://`; `where` names the field or flag.
    """
    check_local(where, path)
    if not path.startswith("~"):
        return path
    try:
        return str(Path(path).expanduser())
    except RuntimeError as error:
        raise SeglossError(
            f"{where}: {path} has no home folder; give the whole path."
        ) from error


def as_workdir(path: str | Path) -> Path:
    """Returns a local directory of a run, with `~` expanded; it need not exist.

    Raises:
        SeglossError: if the path is empty, a file, or has a scheme such as `gs://`; or
            if checkpoints cannot be read in such a directory.
        OSError: if the path cannot be looked up, as one of links in a loop.
    """
    if not str(path):
        raise SeglossError("--workdir is empty; give the directory of the run.")
    workdir = Path(expand("--workdir", str(path)))
    # `Path.exists` is False for a loop, and `Path.resolve` differs between Pythons.
    with contextlib.suppress(FileNotFoundError):
        workdir.stat()
    if workdir.exists() and not workdir.is_dir():
        raise SeglossError(f"--workdir={workdir} is a file; choose a directory.")
    _check_characters(str(workdir.absolute()))
    return workdir


def as_run_folder(path: str | os.PathLike[str]) -> Path | str:
    """Returns the folder of a run: a local path as `as_workdir` does, or a URL.

    A URL, such as `gs://bucket/run`, is returned as text, for `segloss.remote.opened`.

    Raises:
        SeglossError: as `as_workdir` does; or if the file system of the URL is not
            known, or its package is missing.
    """
    if not is_remote(path):
        return as_workdir(path)
    url = check_url("--workdir", path)
    _check_characters(url)
    return url


def _check_characters(path: str) -> None:
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise SeglossError(
            f"--workdir={printable(path)}: the path must be UTF-8, which checkpoints "
            "need; choose another directory."
        ) from error
    if special := _SPECIAL.search(path):
        raise SeglossError(
            f"--workdir={path}: checkpoints cannot be read from a path "
            f"with {special[0]!r} in it; choose a directory without any of * ? [ \\."
        )

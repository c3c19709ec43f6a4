"""Atomic writes: a file or folder is replaced completely or not at all."""

import contextlib
import json
import math
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path to write to; its file then replaces `path`.

    After an error in the block, the temporary file is deleted instead. Readers see the
    complete old or the complete new file. If the process is killed or the disk is full,
    the old file stays intact. Yields `path` itself if it is a device or a pipe.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        # Write directly to /dev/stdout, /dev/null and pipes instead of replacing them.
        yield path
        return
    # Replace the target of a link, not the link.
    path = path.resolve()
    # A unique name, because several processes may write the same file.
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with naming(path):
            yield unfinished
            unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a new folder to write to; it then replaces the folder `path`.

    Files of the old folder that the new one does not have are moved to the new one.
    After an error in the block, the new folder is deleted instead. If the process is
    killed, the old folder stays as it is.
    """
    path = Path(path).resolve()
    unfinished = make_unfinished(path)
    try:
        yield unfinished
        old = put_in_place(unfinished, path)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    if old is not None:
        for kept in old.iterdir():
            if not os.path.lexists(path / kept.name):
                kept.rename(path / kept.name)
        shutil.rmtree(old)


def make_unfinished(path: Path) -> Path:
    """Makes a folder next to `path`, to be filled and given to `put_in_place`."""
    folder = _beside(path, "unfinished")
    folder.mkdir(parents=True)
    return folder


def put_in_place(folder: Path, path: Path) -> Path | None:
    """Renames `folder` to `path`.

    Returns the new place of the folder that was at `path`; None if there was none.
    """
    if not path.is_dir():
        folder.rename(path)
        return None
    old = path.rename(_beside(path, "replaced"))
    try:
        folder.rename(path)
    except BaseException:
        old.rename(path)
        raise
    return old


def _beside(path: Path, what: str) -> Path:
    # Names of files have at most 255 bytes.
    return path.with_name(f"{path.name[:50]}.{what}-{uuid.uuid4().hex[:8]}")


def remove_unfinished(path: str | os.PathLike[str]) -> None:
    """Removes the temporary files of killed processes that were replacing `path`.

    No other process may be writing `path` at the same time.
    """
    path = Path(path)
    ours = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{32}}")
    for file in path.parent.glob(".*"):
        if ours.fullmatch(file.name):
            file.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Adds `path` to an `OSError` of the block that names no file: of a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno and error.filename is None:
            error.filename = os.fspath(path)
        raise


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes `text` to a file atomically, creating its folder if needed."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as unfinished:
        unfinished.write_text(text)


def write_json(path: str | os.PathLike[str], tree: Any) -> None:
    """Writes `tree` to a file as JSON atomically, creating its folder if needed."""
    write_text(path, json.dumps(tree, indent=2, allow_nan=False) + "\n")


def without_nan(tree: Any) -> Any:
    """Copies a tree of dicts and lists with None for NaN, because JSON has no NaN."""
    if isinstance(tree, dict):
        return {key: without_nan(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [without_nan(value) for value in tree]
    return None if isinstance(tree, float) and math.isnan(tree) else tree

"""Atomic file writes: a file is replaced completely or not at all."""

import contextlib
import json
import math
import os
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

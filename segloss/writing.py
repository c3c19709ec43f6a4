"""Atomic file writes: a file is replaced completely or not at all."""

import contextlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path that replaces `path` if the block ends without an error.

    Readers see the complete old or the complete new file. If the process is killed or
    the disk is full, the old file stays intact.
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
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes `text` to a file atomically, creating its folder if needed."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as unfinished:
        unfinished.write_text(text)


def write_json(path: str | os.PathLike[str], tree: Any) -> None:
    """Writes `tree` to a file as JSON atomically, creating its folder if needed."""
    write_text(path, json.dumps(tree, indent=2, allow_nan=False) + "\n")

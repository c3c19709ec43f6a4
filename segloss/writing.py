"""Files written whole or not at all."""

import contextlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A place to write what becomes `path`, once the block ends without an error.

    A reader sees the old file or the new one, never a half, and neither a kill nor a
    full disk costs the old one.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        # /dev/stdout, /dev/null and pipes are written to, never replaced.
        yield path
        return
    # What a link leads to is replaced, not the link.
    path = path.resolve()
    # Several processes may write the same file.
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Replaces a file by this text, and makes its folder."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as unfinished:
        unfinished.write_text(text)


def write_json(path: str | os.PathLike[str], tree: Any) -> None:
    """Replaces a file by this tree as JSON, and makes its folder."""
    write_text(path, json.dumps(tree, indent=2, allow_nan=False) + "\n")

"""SHA-256 of the files of a checkpoint, to notice those that are damaged."""

import hashlib
import json
from pathlib import Path

from segloss.errors import printable
from segloss.writing import write_json

_DIGESTS = "digests.json"
_MOST_NAME = 100  # characters of a name in a message


class DamagedError(Exception):
    """A part of a checkpoint is missing, unreadable or changed."""


def write_digests(item: Path) -> None:
    """Writes the SHA-256 of each file of an item of a checkpoint to `digests.json`."""
    digests = {name: _digest_of_file(item / name) for name in _names_in(item)}
    write_json(item / _DIGESTS, digests)


def check_digests(item: Path) -> None:
    """Raises DamagedError if a file of an item is missing or has changed."""
    try:
        found = _names_in(item)
        if _DIGESTS not in found:
            raise DamagedError(f"{item.name}/{_DIGESTS} is missing")
        digests = json.loads((item / _DIGESTS).read_text())
        if not digests:
            raise DamagedError(f"{item.name}/{_DIGESTS} lists no files")
        for name, digest in digests.items():
            shown = f"{item.name}/{printable(name[:_MOST_NAME])}"
            # Other names are missing or pipes, which never end, or lead elsewhere.
            if name not in found:
                raise DamagedError(f"{shown} is missing")
            if _digest_of_file(item / name) != digest:
                raise DamagedError(f"{shown} has changed")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise DamagedError(describe_cause(error)) from error


def _names_in(item: Path) -> list[str]:
    """Returns the relative paths of the files in a folder, in order."""
    files = sorted(path for path in item.rglob("*") if path.is_file())
    return [path.relative_to(item).as_posix() for path in files]


def _digest_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe_cause(error: Exception) -> str:
    """Describes an error of another package in one short line."""
    first = printable(str(error).partition("\n")[0])
    return f"{type(error).__name__}: {first}"[:200]

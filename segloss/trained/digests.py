"""SHA-256 of the files of a checkpoint, to notice those that are damaged."""

import hashlib
import json
from pathlib import Path

from segloss.writing import write_json

_DIGESTS = "digests.json"


class DamagedError(Exception):
    """A part of a checkpoint is missing, unreadable or changed."""


def write_digests(item: Path) -> None:
    """Writes the SHA-256 of each file of an item of a checkpoint to `digests.json`."""
    files = sorted(path for path in item.rglob("*") if path.is_file())
    digests = {str(path.relative_to(item)): _digest_of_file(path) for path in files}
    write_json(item / _DIGESTS, digests)


def check_digests(item: Path) -> None:
    """Raises DamagedError if a file of an item is missing or has changed."""
    path = item / _DIGESTS
    try:
        digests = json.loads(path.read_text())
        if not digests:
            raise DamagedError(f"{path.relative_to(item.parent)} lists no files")
        for name, digest in digests.items():
            path = item / name
            if _digest_of_file(path) != digest:
                raise DamagedError(f"{path.relative_to(item.parent)} has changed")
    except FileNotFoundError as error:
        name = path.relative_to(item.parent)
        raise DamagedError(f"{name} is missing") from error
    except (OSError, ValueError, AttributeError) as error:
        raise DamagedError(describe_cause(error)) from error


def _digest_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe_cause(error: Exception) -> str:
    """Describes an error of another package in one short line."""
    first = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {first}"[:200]

"""Descriptions of a run, for its tables of results."""

import contextlib
import platform
import shlex
import sys
from collections.abc import Iterable
from importlib import metadata


def command(module: str) -> str:
    """Returns the command of the current run: `module` with its flags."""
    return f"`{shlex.join(['python', '-m', module, *sys.argv[1:]])}`"


def versions(packages: Iterable[str]) -> str:
    """Returns the versions of Python and of the installed packages among these."""
    found = [f"python {platform.python_version()}"]
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append(f"{package} {metadata.version(package)}")
    return ", ".join(found)

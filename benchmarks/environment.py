"""What a table of results says of the run that made it."""

import contextlib
import platform
import shlex
import sys
from collections.abc import Iterable
from importlib import metadata


def command(module: str) -> str:
    """The command that runs now, `module` with its flags."""
    return f"`{shlex.join(['python', '-m', module, *sys.argv[1:]])}`"


def versions(packages: Iterable[str]) -> str:
    """Of Python and of those of the packages that are installed."""
    found = [f"python {platform.python_version()}"]
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append(f"{package} {metadata.version(package)}")
    return ", ".join(found)

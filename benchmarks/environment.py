"""What all benchmarks report about a run: command, device, versions and tables."""

import contextlib
import os
import platform
import shlex
import sys
from collections.abc import Iterable, Sequence
from importlib import metadata

import jax
from rich.console import Console
from rich.table import Table

from segloss.report import markdown_table
from segloss.writing import write_text

_WIDTH = 220  # outside of a terminal


def command(module: str) -> str:
    """Returns the command of the current run: `module` with its flags."""
    return f"`{shlex.join(['python', '-m', module, *sys.argv[1:]])}`"


def versions(packages: Iterable[str]) -> str:
    """Returns the version of Python, and of those `packages` that are installed."""
    found = [f"python {platform.python_version()}"]
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append(f"{package} {metadata.version(package)}")
    return ", ".join(found)


def device() -> str:
    """Returns a text with the kind of JAX's first device and the number of CPUs."""
    first = jax.devices()[0]
    cpus = len(os.sched_getaffinity(0))
    return f"one {first.device_kind} ({first.platform}), {cpus} CPUs"


def publish(tables: Sequence[Table], notes: str, path: str | None) -> None:
    """Prints tables and notes; also writes them to `path` as markdown, unless None."""
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    console.print(*tables, notes, soft_wrap=True)
    if path is not None:
        write_text(path, "\n".join([*map(markdown_table, tables), f"{notes}\n"]))

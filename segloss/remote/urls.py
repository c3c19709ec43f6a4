"""Paths with a scheme, such as `gs://bucket/run`, and the file systems behind them."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from segloss.errors import SeglossError


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path has a scheme, such as `gs://bucket/run`."""
    return "://" in os.fspath(path)


def check_local(where: str, path: str | os.PathLike[str]) -> None:
    """Refuses a path with a scheme; `where` names the field or flag.

    Raises:
        SeglossError: if the path has a scheme, such as `gs://bucket/images`.
    """
    if is_remote(path):
        raise SeglossError(
            f"{where}: {os.fspath(path)} must be on this machine or a mounted disk; "
            "copy it, or mount the bucket, for example with gcsfuse."
        )


def check_url(where: str, path: str | os.PathLike[str]) -> str:
    """Returns a path with a scheme, without a slash at its end; contacts nobody.

    Raises:
        SeglossError: if fsspec does not know the scheme, if its package is missing, or
            if the path has no name behind the scheme; `where` names the flag.
    """
    # Imported here, because runs in a local folder do not need it.
    import fsspec
    from fsspec.registry import known_implementations

    scheme, _, name = os.fspath(path).partition("://")
    url = f"{scheme}://{name.rstrip('/')}"
    if scheme not in known_implementations and scheme not in fsspec.registry:
        raise SeglossError(
            f"{where}={url}: there is no file system {scheme}://; well-known ones are "
            "gs, s3, az, hf, sftp and file."
        )
    if not name.strip("/"):
        raise SeglossError(
            f"{where}={url} names no folder; give one, as in gs://b/run."
        )
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        package = known_implementations[scheme]["class"].partition(".")[0]
        if package == "fsspec":
            raise SeglossError(f"{where}={url}: {error}.") from error
        raise SeglossError(
            f"{where}={url} needs a package that is missing; run "
            f"`pip install {package}`."
        ) from error
    return url


def connect(url: str) -> tuple[Any, str]:
    """Returns fsspec's file system of a checked URL, and the path of its folder."""
    import fsspec

    local = url.partition("://")[0] in ("file", "local")
    with explaining(url):
        # The local file system alone does not make the folders of a file by itself.
        return fsspec.url_to_fs(url, **({"auto_mkdir": True} if local else {}))


@contextlib.contextmanager
def explaining(url: str) -> Iterator[None]:
    """Raises errors of a file system in the block as a `SeglossError` of one line."""
    try:
        yield
    except SeglossError:
        raise
    # Packages of file systems raise many kinds of errors.
    except Exception as error:
        first = " ".join(str(error).split())[:200]
        raise SeglossError(
            f"{url} cannot be used ({type(error).__name__}: {first}); check the path, "
            "the permissions and the network."
        ) from error

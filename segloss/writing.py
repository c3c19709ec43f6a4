"""Atomic writes: a file or folder is replaced completely or not at all.

Also reads the JSON that was written so, and says what is wrong with a damaged file.
"""

import contextlib
import fcntl
import functools
import json
import logging
import math
import os
import re
import shutil
import sys
import uuid
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from segloss.errors import FULL, ExistingFileError, SeglossError

# The removal of larger folders is reported.
_LARGE_BYTES = 100 << 20


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path to write to; its file then replaces `path`.

    After an error in the block, the temporary file is deleted instead. Readers see the
    complete old or the complete new file. If the process is killed or the disk is full,
    the old file stays intact, and the next call for `path` removes the temporary file.
    Yields `path` itself if it is a device or a pipe.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        # Write directly to /dev/stdout, /dev/null and pipes instead of replacing them.
        yield path
        return
    # Replace the target of a link, not the link.
    path = path.resolve()
    remove_unfinished(path)
    # A unique name, because several processes may write the same file.
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with naming(path, unfinished), _marked_alive(unfinished):
            yield unfinished
            unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a new folder to write to; it then replaces the folder `path`.

    Files of the old folder that the new one does not have are moved to the new one.
    After an error in the block, the new folder is deleted instead. If the process is
    killed, the old folder stays as it is.
    """
    path = Path(path).resolve()
    with making_folder(path, keeps_others=True) as unfinished:
        try:
            yield unfinished
            old = put_in_place(unfinished, path)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        if old is not None:
            _move_others(old, path)
            shutil.rmtree(old)


@contextlib.contextmanager
def making_folder(path: Path, *, keeps_others: bool = False) -> Iterator[Path]:
    """Yields a new folder next to `path`, to be filled and given to `put_in_place`.

    First removes what processes left that were killed while they replaced `path`. If
    one had moved the old folder away and not yet put the new one in its place, the old
    one returns.

    Args:
        path: the folder to replace.
        keeps_others: True moves files that only the old folder has to the new one, if a
            process was killed before it had done so.

    Raises:
        ExistingFileError: if `path` is a file.
    """
    if os.path.lexists(path) and not path.is_dir():
        raise ExistingFileError(
            f"{path} must be a folder, got a file; move or delete it."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    _settle(path, keeps_others=keeps_others)
    folder = _beside(path, "unfinished", uuid.uuid4().hex[:8])
    mark = _mark_of(folder)
    try:
        with on_disk(path), naming(path, mark, folder), _marked_alive(mark):
            folder.mkdir()
            yield folder
    finally:
        mark.unlink(missing_ok=True)


def put_in_place(folder: Path, path: Path) -> Path | None:
    """Renames `folder`, which `making_folder` made, to `path`.

    Returns the new place of the folder that was at `path`; None if there was none.
    """
    if not path.is_dir():
        folder.rename(path)
        return None
    old = path.rename(_beside(path, "replaced", folder.name[-8:]))
    try:
        folder.rename(path)
    except BaseException:
        old.rename(path)
        raise
    return old


def _beside(path: Path, what: str, number: str) -> Path:
    # Names of files have at most 255 bytes.
    return path.with_name(f"{path.name[:50]}.{what}-{number}")


def _mark_of(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lock")


def _settle(path: Path, *, keeps_others: bool) -> None:
    """Removes or restores what killed processes left that were replacing a folder."""
    ours = re.compile(
        rf"\.{re.escape(path.name[:50])}\.unfinished-([0-9a-f]{{8}})\.lock"
    )
    for mark in path.parent.glob(".*"):
        found = ours.fullmatch(mark.name)
        if not (found and _is_dead(mark)):
            continue
        old = _beside(path, "replaced", found[1])
        if old.is_dir():
            if not path.exists():
                old.rename(path)
            elif keeps_others:
                _move_others(old, path)
        for left in (_beside(path, "unfinished", found[1]), old):
            remove_folder(left)
        mark.unlink(missing_ok=True)


def _move_others(old: Path, new: Path) -> None:
    for kept in old.iterdir():
        if not os.path.lexists(new / kept.name):
            kept.rename(new / kept.name)


def remove_folder(folder: Path) -> None:
    """Removes a folder that a killed process left; warns with its size if it is large.

    Does nothing if there is no such folder.
    """
    files = (path.lstat() for path in folder.rglob("*"))
    size = sum(status.st_size for status in files)
    shutil.rmtree(folder, ignore_errors=True)
    if size > _LARGE_BYTES:
        warnings.warn(
            f"removed {folder}, {size / 1e9:.1f} GB that a killed process left.",
            stacklevel=2,
        )


def remove_unfinished(path: str | os.PathLike[str]) -> None:
    """Removes the temporary files of killed processes that were replacing `path`.

    Files of processes that still write them stay.
    """
    path = Path(path)
    ours = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{32}}")
    for file in path.parent.glob(".*"):
        if ours.fullmatch(file.name) and _is_dead(file):
            file.unlink(missing_ok=True)


@contextlib.contextmanager
def _marked_alive(path: Path) -> Iterator[None]:
    """Creates a file, which is locked within the block or until the process ends."""
    with path.open("a") as file:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_dead(path: Path) -> bool:
    """Whether the process that had marked a file alive has ended; False if unknown."""
    try:
        with path.open("r+") as file:  # NFS locks only files that are open for writing
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def naming(path: str | os.PathLike[str], *temporary: Path) -> Iterator[None]:
    """Names `path` in an `OSError` of the block that names no file: of a full disk.

    `path` also replaces the names of `temporary` files and folders.
    """
    try:
        yield
    except OSError as error:
        if error.errno and error.filename in (None, *map(str, temporary)):
            error.filename = os.fspath(path)
        raise


@contextlib.contextmanager
def on_disk(path: str | os.PathLike[str], wanted: str = "") -> Iterator[None]:
    """Makes any error of a full disk in the block an `OSError` that names a path.

    Other packages raise various errors, some of them caused by others. What they log
    about these is left out, and so are the tracebacks that orbax logs in the background
    and then raises: they have hundreds of lines.

    Args:
        path: what is written; a file that the error names itself has precedence.
        wanted: says about how much is needed, such as "a checkpoint needs 5 MB".
    """
    logger, quiet = logging.getLogger("absl"), _OnlyNews()
    logger.addFilter(quiet)
    hook = sys.unraisablehook
    sys.unraisablehook = functools.partial(_hide_closed_loops, hook)
    try:
        yield
    except SeglossError:
        raise
    except Exception as error:
        full = next(filter(None, map(_as_full, _causes(error))), None)
        if full is None:
            raise
        if full.filename is None:
            full.filename = os.fspath(path)
        if wanted and not hasattr(full, "wanted"):
            full.wanted = wanted
        if full is error:
            raise
        raise full from error
    finally:
        logger.removeFilter(quiet)
        sys.unraisablehook = hook


def _hide_closed_loops(hook: Callable[[Any], object], unraisable: Any) -> None:
    """Passes on an error that cannot be raised, unless it follows from one that is.

    Orbax closes its event loop at the first error. TensorStore, which still has to
    report the other arrays of the checkpoint, then fails once for each of them.
    """
    if str(unraisable.exc_value) != "Event loop is closed":
        hook(unraisable)


class _OnlyNews(logging.Filter):
    """Leaves out what is logged of errors of a full disk, or that orbax will raise."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and "orbax" in record.pathname:
            return False
        said = OSError(record.getMessage())
        return not any(map(_as_full, [said, *_causes(error)]))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an error, those in its group, and those that it was raised from."""
    waiting, seen = [error], set()
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting += [one.__context__, one.__cause__, *getattr(one, "exceptions", ())]


def _as_full(error: BaseException) -> OSError | None:
    """Returns an error of a full disk as an `OSError`; None for any other error."""
    if isinstance(error, OSError) and error.errno:
        return error if error.errno in FULL else None
    # Libraries in C++ pass on only the text of the error.
    for number in FULL:
        if os.strerror(number) in str(error):
            return OSError(number, os.strerror(number))
    return None


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes `text` to a file atomically, creating its folder if needed."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as unfinished:
        unfinished.write_text(text)


def write_json(path: str | os.PathLike[str], tree: Any) -> None:
    """Writes `tree` to a file as JSON atomically, creating its folder if needed."""
    write_text(path, json.dumps(tree, indent=2, allow_nan=False) + "\n")


def read_json(
    path: str | os.PathLike[str],
    *,
    remedy: str,
    needs: Collection[str] | Mapping[str, type] = (),
) -> dict[str, Any]:
    """Reads a JSON file that must hold an object.

    Args:
        path: the file.
        remedy: what the user should do if the file is damaged.
        needs: names that the object must have; a mapping also says their types.

    Raises:
        OSError: if the file cannot be read.
        SeglossError: if it is not UTF-8 or not JSON, holds something else than an
            object, lacks one of the names, or has a value of another type there.
    """
    try:
        tree = json.loads(Path(path).read_bytes().decode())
    except (ValueError, RecursionError) as error:
        raise SeglossError(f"{path} is damaged ({error}); {remedy}.") from error
    if not isinstance(tree, dict):
        kind = {list: "a list", str: "text", type(None): "null"}.get(type(tree))
        raise SeglossError(
            f"{path} is damaged (it must hold an object, got {kind or 'a number'}); "
            f"{remedy}."
        )
    if missing := [name for name in needs if name not in tree]:
        raise SeglossError(
            f"{path} is damaged (it lacks {', '.join(missing)}); {remedy}."
        )
    types = needs if isinstance(needs, Mapping) else {}
    if wrong := [name for name, x in types.items() if not isinstance(tree[name], x)]:
        raise SeglossError(
            f"{path} is damaged (values of another type: {', '.join(wrong)}); {remedy}."
        )
    return tree


def without_nan(tree: Any) -> Any:
    """Copies a tree of dicts and lists with None for NaN, because JSON has no NaN."""
    if isinstance(tree, dict):
        return {key: without_nan(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [without_nan(value) for value in tree]
    return None if isinstance(tree, float) and math.isnan(tree) else tree

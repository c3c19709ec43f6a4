"""A local copy of a run folder on another file system, and what keeps both the same."""

import concurrent.futures
import contextlib
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from segloss.errors import ExistingFileError, SeglossError
from segloss.hosts import exchange, is_first
from segloss.locking import LOCK, locked
from segloss.remote.lock import RemoteLock
from segloss.remote.urls import check_url, connect, explaining, is_remote

_PREFIX = "segloss-run-"
_CHECKPOINTS = "checkpoints"
# What a command needs of an earlier run, besides its checkpoints.
_NEEDED = ("config.json", "metrics.jsonl")
# Orbax's file in each checkpoint. It is uploaded last and deleted first, so that a
# checkpoint is complete where it exists.
_MARKER = "_CHECKPOINT_METADATA"
_UNFINISHED = ".orbax-checkpoint-tmp"
# Files that say what is beside them. Each is uploaded after that.
_LAST = (_MARKER, "results.json", "model.json", "predictions.jsonl")
# The open copies by their local folder.
_open: dict[Path, "_Mirror"] = {}


@contextlib.contextmanager
def opened(
    workdir: str | Path, *, exclusive: bool = False, only: Iterable[str] | None = None
) -> Iterator[Path]:
    """Yields the directory of a run as a folder on this machine.

    A local path is yielded as it is. For a path with a scheme, such as
    `gs://bucket/run`, this is a temporary folder with the run's config, metrics and
    complete checkpoints. After the block, also after an error, files that are new or
    have changed are uploaded, and the temporary folder is deleted. Messages of a
    `SeglossError` name the remote paths.

    Of several processes of a run, only the first one locks, uploads, and has the files
    that a run needs. The folders of the others have only the files `only`, and what is
    written there is lost. If `only` is None, all leave the block once the files are
    uploaded.

    Args:
        workdir: directory of the run; it need not exist.
        exclusive: True allows one run at a time; for training.
        only: names of files to download; None is all that a run needs.

    Raises:
        SeglossError: if the file system cannot be used, or another process trains there
            and `exclusive`. If an upload fails, the temporary folder is kept.
    """
    if not is_remote(workdir):
        yield Path(workdir)
        return
    url = check_url("--workdir", workdir)
    fs, root = connect(url)
    with contextlib.ExitStack() as stack:
        if only is None:
            stack.enter_context(_leaving_together())
        locks = exclusive and is_first()
        lock = stack.enter_context(RemoteLock(fs, root, url)) if locks else None
        place = stack.enter_context(_temporary_folder())
        mirror = _Mirror(url, fs, root, place, lock)
        if is_first() or only is not None:
            mirror.download(only)
        _open[mirror.local] = mirror
        try:
            yield mirror.local
        except SeglossError as error:
            error.args = (mirror.rename(str(error)),)
            raise
        finally:
            del _open[mirror.local]
            if is_first():
                mirror.close()


@contextlib.contextmanager
def _leaving_together() -> Iterator[None]:
    """Waits after the block for the other processes of a run, unless it failed.

    JAX would end processes that wait for another at their exit for some time.
    """
    try:
        yield
    except SystemExit:  # a signal has stopped all of them
        exchange(None)
        raise
    exchange(None)


def upload(workdir: Path, *, after: Callable[[], None]) -> None:
    """Starts to upload the changed files of a folder from `opened`, in the background.

    Waits for an earlier upload first. If that failed, warns, and uploads its files
    again. Does nothing for a local run, and in processes of a run except the first.

    Args:
        workdir: the folder.
        after: called in the background before checkpoints are uploaded; it returns once
            they are complete.

    Raises:
        SeglossError: if another process took the run over.
    """
    if (mirror := _open.get(workdir)) is not None and is_first():
        mirror.upload(after)


def shown(path: Path) -> Path | str:
    """Returns a path for people to read: in a folder from `opened`, the remote path."""
    for local, mirror in _open.items():
        if path.is_relative_to(local):
            return mirror.rename(str(path))
    return path


def check_absent(path: Path) -> None:
    """Refuses a path in a folder from `opened` that exists on the file system.

    Raises:
        ExistingFileError: if it exists; local runs are not checked.
    """
    for local, mirror in _open.items():
        if path.is_relative_to(local) and mirror.exists(path):
            raise ExistingFileError(
                f"{shown(path)} exists, and nothing replaces predictions there; delete "
                "it, or choose another --output."
            )


class _Mirror:
    """The local copy `local` of the folder `url`, `root` in its file system."""

    def __init__(
        self,
        url: str,
        fs: Any,
        root: str,
        place: Path,
        lock: RemoteLock | None,
    ):
        self.url, self._fs, self._root, self._lock = url, fs, root, lock
        # The same name as there, because tables show it.
        self.local, self._copies = place / url.rpartition("/")[2], place / ".copies"
        self.local.mkdir()
        # Size and time of change of each local file that the file system has.
        self._stamps: dict[str, tuple[int, int]] = {}
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        self._running: concurrent.futures.Future[None] | None = None

    def rename(self, text: str) -> str:
        """Replaces the local path in a text by the remote one."""
        return text.replace(str(self.local), self.url)

    def exists(self, path: Path) -> bool:
        """Whether the file system has a path of the local folder."""
        with explaining(self.url):
            self._fs.invalidate_cache()
            return self._fs.exists(self._remote(path.relative_to(self.local)))

    def download(self, only: Iterable[str] | None) -> None:
        """Downloads the files `only`; None is all that a run needs."""
        with explaining(self.url):
            self._fs.invalidate_cache()
            skipped = len(self._root) + 1
            names = {path[skipped:] for path in self._fs.find(self._root)}
            steps = {x for x in map(_step_folder, names) if x}
            whole = {x for x in steps if f"{x}/{_MARKER}" in names}
            wanted = names.intersection(_NEEDED if only is None else only)
            if only is None:
                wanted |= {x for x in names if _step_folder(x) in whole}
            files = {name: self.local / name for name in sorted(wanted)}
            for path in files.values():
                path.parent.mkdir(parents=True, exist_ok=True)
            if files:
                self._fs.get(
                    list(map(self._remote, files)), list(map(str, files.values()))
                )
            self._stamps = {name: _stamp(path) for name, path in files.items()}
            if self._lock is not None:
                for folder in steps - whole:  # left by a process that was killed
                    self._fs.rm(self._remote(folder), recursive=True)

    def upload(self, after: Callable[[], None] = lambda: None) -> None:
        """Uploads what has changed; checkpoints follow all other files.

        A resumed run removes metrics of later steps than its checkpoint, so metrics may
        be newer than the checkpoints, but never older.
        """
        try:
            self._finish()
        except SeglossError as error:
            warnings.warn(f"{error} The next upload tries again.", stacklevel=3)
        if self._lock is not None:
            self._lock.check()
        # Copies, because the run appends to these files in the meantime.
        changed = self._changed(of_checkpoints=False)
        for name in changed:
            copy = self._copies / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.local / name, copy)
        self._running = self._thread.submit(self._upload, changed, after)

    def close(self) -> None:
        """Uploads what has changed; if that fails, keeps the local folder elsewhere."""
        try:
            self.upload()
            self._finish()
        except SeglossError as error:
            kept = Path(tempfile.mkdtemp(prefix="segloss-kept-")) / self.local.name
            self.local.rename(kept)
            raise SeglossError(
                f"{self.rename(str(error))} The files of the run are kept in {kept}."
            ) from error
        finally:
            self._thread.shutdown()

    def _finish(self) -> None:
        """Waits for the upload in the background, and raises its error."""
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def _upload(
        self, changed: Mapping[str, tuple[int, int]], after: Callable[[], None]
    ) -> None:
        self._put(changed, self._copies)
        shutil.rmtree(self._copies, ignore_errors=True)
        after()
        self._put(self._changed(of_checkpoints=True), self.local)
        self._remove_vanished()

    def _put(self, stamps: Mapping[str, tuple[int, int]], folder: Path) -> None:
        """Uploads files of a local folder, those of `_LAST` after all others."""
        with explaining(self.url):
            for last in (False, True):
                names = [x for x in stamps if (Path(x).name in _LAST) == last]
                if names:
                    self._fs.put(
                        [str(folder / name) for name in names],
                        list(map(self._remote, names)),
                    )
                    self._stamps |= {name: stamps[name] for name in names}

    def _remove_vanished(self) -> None:
        """Removes the checkpoints that the run has removed."""
        gone = [x for x in self._stamps if not (self.local / x).exists()]
        with explaining(self.url):
            for folder in sorted({x for x in map(_step_folder, gone) if x}):
                self._fs.rm(self._remote(f"{folder}/{_MARKER}"))
                self._fs.rm(self._remote(folder), recursive=True)
        for name in gone:
            del self._stamps[name]

    def _changed(self, *, of_checkpoints: bool) -> dict[str, tuple[int, int]]:
        """Maps the files that differ from those of the file system to their stamps."""
        changed = {}
        for folder, _, files in os.walk(self.local):
            for file in files:
                path = Path(folder, file)
                name = path.relative_to(self.local).as_posix()
                if name == LOCK or _UNFINISHED in name:
                    continue
                # A file that disappears now belongs to a checkpoint that is removed.
                with contextlib.suppress(FileNotFoundError):
                    stamp = _stamp(path)
                    is_new = self._stamps.get(name) != stamp
                    if is_new and name.startswith(_CHECKPOINTS) == of_checkpoints:
                        changed[name] = stamp
        return changed

    def _remote(self, name: str | Path) -> str:
        return f"{self._root}/{name}"


def _step_folder(name: str) -> str:
    """Returns `checkpoints/STEP` of a file below it; "" of any other file."""
    parts = name.split("/")
    within = len(parts) > 2 and parts[0] == _CHECKPOINTS and parts[1].isdecimal()
    return "/".join(parts[:2]) if within else ""


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@contextlib.contextmanager
def _temporary_folder() -> Iterator[Path]:
    """Yields a new folder, which is deleted after the block.

    Folders that killed processes left on this machine are deleted first.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/{LOCK}"):
        # Locked by a process that works, or the folder of another user, or removed by
        # another process at the same time. While it is being locked, it is empty.
        with contextlib.suppress(SeglossError, OSError):
            if left.stat().st_size:
                with locked(left.parent):
                    shutil.rmtree(left.parent)
    place = Path(tempfile.mkdtemp(prefix=_PREFIX))
    with locked(place):
        try:
            yield place
        finally:
            shutil.rmtree(place)

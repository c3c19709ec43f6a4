"""Folders of predictions: their names, their lists of files, and how they replace.

A folder is written next to its place and renamed when it is complete. Its list of
files, `predictions.jsonl`, starts with a line about the input and the model. Every
other line is about one image. `files` maps each file to its size in bytes and its time
of change in nanoseconds. A folder is replaced only by predictions of the same input,
and only if it holds no other files, and none that was changed.
"""

import contextlib
import json
import os
import shutil
import stat
from collections.abc import Collection, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from segloss.data.datasets.layouts import IMAGE_NAMES
from segloss.errors import ExistingFileError
from segloss.trained.inputs import MANIFEST, Tally, printable
from segloss.writing import making_folder, put_in_place

_FORMAT = "segloss predictions 1"
_MAX_NAME_BYTES = 255


class PredictionFolder:
    """Writes the predictions of one input, as a context manager.

    The end of the context renames the folder to `place`. After an error, the folder is
    deleted, or left where it is if it holds a prediction already: `kept` is its path.

    Args:
        place: where the folder is to be, from `choose_place`.
        about: describes the predictions; values that can be written as JSON.
        input: the image or folder that is predicted.
    """

    def __init__(self, place: Path, about: dict[str, Any], *, input: Path):
        self.place, self.kept = place, None
        self._input, self._count = input, 0
        self._header = {"format": _FORMAT, "input": str(input), **about}
        self._folder: Path
        self._manifest: TextIO
        self._making = contextlib.ExitStack()

    def __enter__(self) -> "PredictionFolder":
        self._folder = self._making.enter_context(making_folder(self.place))
        self._manifest = (self._folder / MANIFEST).open("x", encoding="utf-8")
        self._write_line(self._header)
        return self

    def path(self, kind: str, name: str) -> Path:
        """Returns the path of a file of the folder `kind`, and makes its folders."""
        path = self._folder / kind / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def add(self, files: Collection[Path] = (), **about: Any) -> None:
        """Adds a line to the list of files: of an image and what was written for it."""
        if files:
            self._count += 1
            about["files"] = {_relative(self._folder, p): _stamp(p) for p in files}
        self._write_line(about)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._making:
            replaced = False
            try:
                self._manifest.close()
                if error is None:
                    self._replace()
                    replaced = True
            finally:
                if not replaced and self._count:
                    self.kept = self._folder
                elif not replaced:
                    shutil.rmtree(self._folder, ignore_errors=True)

    def _replace(self) -> None:
        if os.path.lexists(self.place):
            # It may have changed while the images were predicted.
            _check_owned(self.place, self._input)
        old = put_in_place(self._folder, self.place)
        if old is not None:
            shutil.rmtree(old)

    def _write_line(self, about: dict[str, Any]) -> None:
        self._manifest.write(json.dumps(about, allow_nan=False) + "\n")


def choose_place(root: Path, input: Path, taken: Collection[Path] = ()) -> Path:
    """Returns the folder in `root` for the predictions of `input`.

    This is the folder of its earlier predictions, if there is one. Otherwise it is the
    first of these that does not exist: the name of the input, and the same with the
    names of one, two, ... folders above it. A folder `images`, or another of its names
    in `layouts`, has the name of the folder above it.

    Args:
        root: folder of all predictions.
        input: the image or folder that is predicted, as an absolute path.
        taken: folders that are not chosen.

    Raises:
        ExistingFileError: if all of these belong to other inputs, or if the folder of
            earlier predictions holds other files, or files that were changed.
    """
    places = [root / name for name in _names(input)]
    for place in places:
        if _input_of(place) == str(input):
            _check_owned(place, input)
            return place
    for place in places:
        if not os.path.lexists(place) and place not in taken:
            return place
    raise ExistingFileError(
        f"{printable(str(places[0]))} holds predictions of another input than "
        f"{printable(str(input))}; move them, or choose another --output."
    )


def _names(input: Path) -> Iterator[str]:
    """Yields names for an input: `photos`, `day1_photos`, `2026_day1_photos`, ..."""
    parts = input.parts[1:] or ("images",)
    if parts[-1].lower() in IMAGE_NAMES and len(parts) > 1:
        parts = parts[:-1]
    if input.is_file():
        parts = (*parts[:-1], input.stem)
    name = ""
    for part in reversed(parts):
        name = f"{part}_{name}" if name else part
        if len(os.fsencode(name)) > _MAX_NAME_BYTES:
            return
        yield name


def _input_of(place: Path) -> str | None:
    """Returns the input of a folder that `predict` wrote; None of any other."""
    try:
        if place.is_symlink():
            return None
        with (place / MANIFEST).open(encoding="utf-8") as lines:
            header = json.loads(next(lines, ""))
        return header["input"] if header["format"] == _FORMAT else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _check_owned(place: Path, input: Path) -> None:
    """Checks that a folder holds predictions of `input`, and nothing else.

    Raises:
        ExistingFileError: if it does not.
    """
    stray = Tally()
    if _input_of(place) == str(input):
        try:
            _tally_strays(place, stray)
        except (ValueError, TypeError, AttributeError) as error:
            stray.add(MANIFEST, f"is damaged: {error}")
        if not stray.count:
            return
    else:
        stray.add(MANIFEST)
    raise ExistingFileError(
        f"{printable(str(place))} is not replaced, because it holds files that predict "
        f"did not write or that were changed since: {stray}. Move or rename the "
        "folder, or choose another --output."
    )


def _tally_strays(place: Path, stray: Tally) -> None:
    """Adds the files that `predict` did not write, or that were changed since."""
    known = {MANIFEST}
    for name, stamp in _listed(place):
        known.add(name)
        try:
            found = _stamp(place / name)
        except OSError:
            continue
        if found != stamp:
            stray.add(name)
    if stray.count:
        return
    # One by one: a list may name a file twice, or one of another folder.
    for name in _files(place):
        if name not in known:
            stray.add(name)


def _listed(place: Path) -> Iterator[tuple[str, list[int]]]:
    with (place / MANIFEST).open(encoding="utf-8") as lines:
        for line in lines:
            yield from json.loads(line).get("files", {}).items()


def _files(place: Path) -> Iterator[str]:
    for folder, folders, files in os.walk(place):
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in (*files, *links):
            yield _relative(place, Path(folder, name))


def _relative(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()


def _stamp(path: Path) -> list[int]:
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        return []
    return [status.st_size, status.st_mtime_ns]

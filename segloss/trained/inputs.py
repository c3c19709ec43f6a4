"""Finds the images to predict, their labels, and names for their predictions."""

import collections
import dataclasses
import itertools
import os
import stat
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from segloss.data import IMAGE_SUFFIXES, LABEL_SUFFIXES
from segloss.data.datasets.layouts import IMAGE_NAMES, LABEL_NAMES
from segloss.errors import MissingFileError, SeglossError, printable

# The file that `predict` writes into each of its folders.
MANIFEST = "predictions.jsonl"

_SHOWN = 5  # number of names in a message


class Tally:
    """Counts names and keeps the first five, so its size does not grow with them."""

    def __init__(self):
        self.count = 0
        self._shown: list[str] = []

    def add(self, name: str | os.PathLike[str], reason: str = "") -> None:
        """Counts a name; the text of the tally shows it with its reason."""
        self.count += 1
        if len(self._shown) < _SHOWN:
            shown = printable(os.fspath(name))
            self._shown.append(f"{shown} ({printable(reason)})" if reason else shown)

    def __str__(self) -> str:
        more = self.count - len(self._shown)
        return ", ".join(self._shown) + f" and {more:,} more" * (more > 0)


@dataclasses.dataclass(frozen=True)
class InputImage:
    """One image to predict.

    Attributes:
        path: the file.
        name: path of its predictions below each folder of predictions, without suffix
            and with forward slashes; no other image of the input has it.
        labels: path of its label image, or None.
    """

    path: Path
    name: str
    labels: Path | None


@dataclasses.dataclass(frozen=True)
class LabelNames:
    """What the names of images and labels end with, before the format's suffix.

    Attributes:
        image_suffix: as in "_leftImg8bit"; labels do not have it.
        label_suffix: as in "_gtFine_labelIds"; images do not have it.
    """

    image_suffix: str = ""
    label_suffix: str = ""

    def find(self, name: str, folder: Path) -> Path | None:
        """Returns the label in `folder` of an image called `name`; None without one."""
        stem = os.path.splitext(name)[0].removesuffix(self.image_suffix)
        # macOS writes decomposed names.
        forms = (stem, *(unicodedata.normalize(form, stem) for form in ("NFC", "NFD")))
        for form, suffix in itertools.product(dict.fromkeys(forms), LABEL_SUFFIXES):
            path = folder / f"{form}{self.label_suffix}{suffix}"
            if os.path.isfile(path):
                return path
        return None


@dataclasses.dataclass(frozen=True)
class Input:
    """An image, or a folder that is searched for images with all folders below it.

    A folder of images next to a folder of labels, or alone, stands for the folder that
    holds both. Labels have the path of their images in that other folder, or, for an
    input with any name, in a folder of labels next to it. `layouts` has the names of
    these folders. Hidden files and folders are passed over, and so are folders that
    `predict` wrote; links to folders are not followed.

    Attributes:
        path: the image, or the folder that the names of predictions are relative to.
        start: the image or the folder that the user named.
        skipped: folders that are not entered.
    """

    path: Path
    start: Path
    skipped: Collection[Path] = ()

    def images(
        self, left_out: Tally | None = None, label_names: LabelNames | None = None
    ) -> Iterator[InputImage]:
        """Yields the images, folder by folder, sorted by name.

        Memory holds the names of one folder at a time. `left_out` receives all other
        files and folders found.
        """
        left_out = Tally() if left_out is None else left_out
        label_names = label_names or LabelNames()
        if self.start.is_dir():
            found = self._walk(self.start, left_out)
            base = self.path
        else:
            found, base = [(self.path.parent, [self.path.name])], self.path.parent
        for folder, files in found:
            label_folder = _find_label_folder(folder, base)
            for file, name in _output_names(files).items():
                labels = label_folder and label_names.find(file, label_folder)
                name = (folder.relative_to(base) / name).as_posix()
                yield InputImage(folder / file, name, labels)

    def _walk(self, folder: Path, left_out: Tally) -> Iterator[tuple[Path, list[str]]]:
        """Yields each folder with the sorted names of its image files."""
        waiting = [folder]
        while waiting:
            folder = waiting.pop()
            try:
                found = _list(folder)
            except OSError:
                # Reading it as an image says why.
                yield folder.parent, [folder.name]
                continue
            images, entered = self._choose(folder, found, left_out)
            if images:
                yield folder, images
            waiting += [folder / name for name in reversed(entered)]

    def _choose(
        self, folder: Path, found: Sequence[os.DirEntry], left_out: Tally
    ) -> tuple[list[str], list[str]]:
        """Returns the images and the folders to enter, of what a folder holds."""
        images, entered, hidden = [], [], set()
        if only := _only_image_folder(found):
            hidden = {e.name for e in found if _is_folder(e, LABEL_NAMES)}
            if folder / only == self.path or not (folder / only).is_symlink():
                entered = [only]
        else:
            folders = [e.name for e in found if e.is_dir(follow_symlinks=False)]
            entered = [name for name in folders if self._is_entered(folder / name)]
            images = [e.name for e in found if _is_image(e)]
        for name in sorted({e.name for e in found}.difference(images, entered, hidden)):
            left_out.add((folder / name).relative_to(self.start))
        return images, entered

    def _is_entered(self, folder: Path) -> bool:
        return folder not in self.skipped and not os.path.exists(folder / MANIFEST)


def find_inputs(
    paths: Sequence[str | os.PathLike[str]], *, skipped: Collection[Path] = ()
) -> list[tuple[Input, int, Tally]]:
    """Finds the images of each path, in the order given and each once.

    Args:
        paths: images, folders of images, and folders that contain `images/`.
        skipped: folders that are not searched where they lie below another.

    Returns:
        Each input, the number of its images, and the files that are not images.

    Raises:
        MissingFileError: if there is no such file or folder, or it holds no image.
        SeglossError: if it is neither a file nor a folder, or cannot be listed.
    """
    if not paths:
        raise SeglossError("--input is missing; name an image or a folder of images.")
    found: dict[Path, tuple[Input, int, Tally]] = {}
    for given in paths:
        one = _make_input(given, skipped)
        left_out = Tally()
        count = sum(1 for _ in one.images(left_out))
        if not count:
            raise MissingFileError(
                f"--input={printable(str(given))}: no image found; known are "
                f"{', '.join(IMAGE_SUFFIXES)}"
                + (f", but there are {left_out}." if left_out.count else ".")
            )
        found.setdefault(one.path, (one, count, left_out))
    return list(found.values())


def _make_input(given: str | os.PathLike[str], skipped: Collection[Path]) -> Input:
    shown = f"--input={printable(os.fspath(given))}"
    if not os.fspath(given):
        raise SeglossError("--input is empty; name an image or a folder of images.")
    try:
        path = Path(given).expanduser().resolve()
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            only = _only_image_folder(_list(path))
            return Input(path / (only or ""), path, skipped)
    # A link to itself raises RuntimeError; a zero byte, ValueError.
    except (OSError, RuntimeError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        kind = MissingFileError if missing else SeglossError
        reason = getattr(error, "strerror", None) or error
        raise kind(f"{shown}: cannot be read ({reason}); no image found.") from error
    if not stat.S_ISREG(mode):
        raise SeglossError(f"{shown}: must be an image or a folder of images.")
    return Input(path, path)


def _list(folder: Path) -> list[os.DirEntry]:
    """Returns the visible files and folders of a folder, sorted by name."""
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    return sorted(visible, key=lambda entry: entry.name)


def _only_image_folder(found: Sequence[os.DirEntry]) -> str | None:
    """Returns the folder that stands for a folder with these entries; None if none."""
    images = [e.name for e in found if _is_folder(e, IMAGE_NAMES)]
    if len(images) != 1:
        return None
    others = [e for e in found if e.name not in images]
    if any(_is_folder(e, LABEL_NAMES) for e in others):
        return images[0]
    mixed = any(_is_image(e) or os.path.isdir(e.path) for e in others)
    return None if mixed else images[0]


def _is_folder(entry: os.DirEntry, names: Collection[str]) -> bool:
    return entry.name.lower() in names and os.path.isdir(entry.path)


def _is_image(entry: os.DirEntry) -> bool:
    suffix = os.path.splitext(entry.name)[1].lower()
    return suffix in IMAGE_SUFFIXES and not os.path.isdir(entry.path)


def _output_names(files: Sequence[str]) -> dict[str, str]:
    """Returns a distinct name for each file of a folder: its stem, or its full name.

    Files with the same stem, such as `a.jpg` and `a.png`, keep their full names. As
    some file systems do, this takes upper and lower case as the same.
    """
    names = {file: os.path.splitext(file)[0] for file in files}
    while True:
        counts = collections.Counter(name.lower() for name in names.values())
        twice = [f for f, n in names.items() if counts[n.lower()] > 1 and n != f]
        if not twice:
            return names
        names |= {file: file for file in twice}


def _find_label_folder(folder: Path, base: Path) -> Path | None:
    """Returns the folder with the labels of the images of `folder`; None without one.

    `base` is the input, or the folder that holds it.
    """
    parts = folder.parts
    named = [k for k, part in enumerate(parts) if part.lower() in IMAGE_NAMES]
    for k in (*named[-1:], len(base.parts) - 1):
        if k < 1:
            continue
        above = Path(*parts[:k])
        try:
            labels = [e.name for e in _list(above) if _is_folder(e, LABEL_NAMES)]
        except OSError:
            continue
        # Label images that are predicted are not their own labels.
        if labels and folder != (found := above.joinpath(labels[0], *parts[k + 1 :])):
            return found
    return None

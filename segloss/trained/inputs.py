"""Finds the images to predict, their labels, and names for their predictions."""

import collections
import dataclasses
import functools
import os
import stat
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Integer, Shaped
from PIL import UnidentifiedImageError

from segloss.data import IMAGE_SUFFIXES, LABEL_SUFFIXES, read_image, read_labels
from segloss.errors import MissingFileError, SeglossError

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


def printable(text: str) -> str:
    r"""Escapes line breaks, terminal codes and bytes that are no text, as `\x1b`.

    >>> printable("red\x1b[31m.png")
    'red\\x1b[31m.png'
    """
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in text
    )


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
class Input:
    """An image, or a folder that is searched for images with all folders below it.

    A folder that holds a folder `images` stands for that folder alone; labels lie in
    the folder `labels` next to it. Hidden files and folders are passed over, and so are
    folders that `predict` wrote; links to folders are not followed.

    Attributes:
        path: the image, or the folder that the names of predictions are relative to.
        start: the image or the folder that the user named.
        skipped: folders that are not entered.
    """

    path: Path
    start: Path
    skipped: Collection[Path] = ()

    def images(self, left_out: Tally | None = None) -> Iterator[InputImage]:
        """Yields the images, folder by folder, sorted by name.

        Memory holds the names of one folder at a time. `left_out` receives all other
        files and folders found.
        """
        if not self.start.is_dir():
            labels = _find_labels(self.path, self.path.parent)
            yield InputImage(self.path, self.path.stem, labels)
            return
        left_out = Tally() if left_out is None else left_out
        for folder, files in self._walk(self.start, left_out):
            where = folder.relative_to(self.path)
            for file, name in _output_names(files).items():
                path = folder / file
                labels = _find_labels(path, self.path)
                yield InputImage(path, (where / name).as_posix(), labels)

    def _walk(self, folder: Path, left_out: Tally) -> Iterator[tuple[Path, list[str]]]:
        """Yields each folder with the sorted names of its image files."""
        try:
            with os.scandir(folder) as entries:
                found = [e for e in entries if not e.name.startswith(".")]
        except OSError:
            # Reading it as an image says why.
            yield folder.parent, [folder.name]
            return
        folders = {e.name for e in found if e.is_dir(follow_symlinks=False)}
        if "images" in folders or folder / "images" == self.path:
            images, entered = [], ["images"]
        else:
            entered = sorted(n for n in folders if self._is_entered(folder / n))
            # A link to a folder may lead back to where it lies.
            files = (e for e in found if not os.path.isdir(e.path))
            images = sorted(e.name for e in files if _is_image(e))
        for name in sorted({e.name for e in found}.difference(images, entered)):
            if (name, entered) != ("labels", ["images"]):
                left_out.add((folder / name).relative_to(self.start))
        if images:
            yield folder, images
        for name in entered:
            yield from self._walk(folder / name, left_out)

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
            images = path / "images"
            base = images if os.path.isdir(images) else path
            os.listdir(base)
            return Input(base, path, skipped)
    # A link to itself raises RuntimeError; a zero byte, ValueError.
    except (OSError, RuntimeError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        kind = MissingFileError if missing else SeglossError
        reason = getattr(error, "strerror", None) or error
        raise kind(f"{shown}: cannot be read ({reason}); no image found.") from error
    if not stat.S_ISREG(mode):
        raise SeglossError(f"{shown}: must be an image or a folder of images.")
    return Input(path, path)


def _is_image(entry: os.DirEntry) -> bool:
    return os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES


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


def _find_labels(path: Path, folder: Path) -> Path | None:
    """Returns the label image of an image at or below `folder`; None if it has none.

    It lies in `labels` next to the last folder `images` of the path, or else next to
    `folder`, at the same place and with the same stem.
    """
    *folders, name = path.relative_to(folder).parts
    base = folder.parent
    if "images" in folders:
        last = len(folders) - 1 - folders[::-1].index("images")
        base, folders = folder.joinpath(*folders[:last]), folders[last + 1 :]
    place = base.joinpath("labels", *folders)
    stem = os.path.splitext(name)[0]
    candidates = (place / f"{stem}{suffix}" for suffix in LABEL_SUFFIXES)
    return next((p for p in candidates if os.path.isfile(p)), None)


def read_pixels(
    path: Path, label_hw: tuple[int, int] | None = None
) -> Shaped[np.ndarray, "h w c"]:
    """Reads the pixels of an image, as training does.

    `label_hw` is the height and width of the image's label; None if unknown.

    Raises:
        SeglossError: if the file cannot be used; says why, without its name.
    """
    return _decode(path, functools.partial(read_image, label_hw=label_hw))


def read_class_ids(path: Path) -> Integer[np.ndarray, "h w"]:
    """Reads the class ids of a label image.

    Raises:
        SeglossError: if the file cannot be used; says why, without its name.
    """
    return _decode(path, read_labels)


def _decode(path: Path, read: Callable[[bytes], tuple]) -> np.ndarray:
    try:
        # A pipe would never end.
        if not stat.S_ISREG(path.stat().st_mode):
            raise SeglossError("is not a file that can be read")
        return np.asarray(read(path.read_bytes())[0])
    except SeglossError:
        raise
    except UnidentifiedImageError as error:
        raise SeglossError("is not an image") from error
    # Decoders raise many kinds of errors on damaged files.
    except Exception as error:
        reason = getattr(error, "strerror", None) or f"is damaged: {error}"
        raise SeglossError(str(reason)) from error

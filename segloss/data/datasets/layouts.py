"""Finds the folders of images and labels of each split, in the usual layouts.

ROOT/SPLIT/images and ROOT/SPLIT/labels
ROOT/images/SPLIT and ROOT/labels/SPLIT
ROOT/images and ROOT/labels, without splits: all samples are for training
"""

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from segloss.data.datasets.classes_file import NAME
from segloss.data.datasets.faults import Fault, abridge

# Names of folders, in lower case; the first of each is the one that messages use.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
IMAGE_NAMES = ("images", "image", "imgs", "img", "img_dir", "leftimg8bit", "jpegimages")
LABEL_NAMES = (
    *("labels", "label", "masks", "mask", "annotations", "ann_dir", "gtfine"),
    "segmentationclass",
)


class Layout(NamedTuple):
    """Where a dataset's files lie.

    Attributes:
        folders: the folders of images and of labels of each split.
        faults: what is wrong with the folders.
        unread: other files and folders next to them, relative to the root; folders end
            with "/".
    """

    folders: dict[str, tuple[Path, Path]]
    faults: list[Fault]
    unread: list[str]


def find_layout(root: Path) -> Layout:
    """Finds the folders of each split below `root`."""
    faults: list[Fault] = []
    folders: dict[str, tuple[Path, Path]] = {}
    read = {root / NAME}
    for split, names in SPLIT_NAMES.items():
        if directory := _only(root, names, faults):
            folders[split] = _both(directory, faults)
            read |= {directory, *folders[split]}
    if not folders:
        images, labels = _both(root, faults)
        read |= {images, labels}
        folders = _splits_inside(images, labels, faults)
        read |= {path for pair in folders.values() for path in pair}
        if not folders and images.is_dir() and labels.is_dir():
            folders = {"train": (images, labels)}
    parents = {root, *(path.parent for pair in folders.values() for path in pair)}
    unread = sorted(
        _name(root, path)
        for directory in parents
        if directory.is_dir()
        for path in directory.iterdir()
        if path not in read and not path.name.startswith(".")
    )
    if not (folders or faults):
        remedy = "make train/images and train/labels in it, and the same for val"
        got = abridge(unread)
        faults.append(Fault(".", "must hold folders of images and labels", remedy, got))
    return Layout(folders, faults, unread)


def _splits_inside(
    images: Path, labels: Path, faults: list[Fault]
) -> dict[str, tuple[Path, Path]]:
    """Returns the folders of the splits that both folders have."""
    found = {
        split: tuple(_only(directory, names, faults) for directory in (images, labels))
        for split, names in SPLIT_NAMES.items()
    }
    return {split: pair for split, pair in found.items() if all(pair)}


def _both(directory: Path, faults: list[Fault]) -> tuple[Path, Path]:
    """Returns the folders of images and labels in `directory`; they may be missing."""
    return (
        _only(directory, IMAGE_NAMES, faults) or directory / IMAGE_NAMES[0],
        _only(directory, LABEL_NAMES, faults) or directory / LABEL_NAMES[0],
    )


def _only(directory: Path, names: Collection[str], faults: list[Fault]) -> Path | None:
    """Returns the folder in `directory` with one of the names, in any case."""
    found = [path for path in _folders(directory) if path.name.lower() in names]
    if len(found) > 1:
        rule = f"must be one folder of {', '.join(names)}"
        got = ", ".join(map(str, found))
        faults.append(Fault(".", rule, "merge them or rename one", got))
    return found[0] if found else None


def _folders(directory: Path) -> Iterable[Path]:
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if path.is_dir())


def _name(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix() + "/" * path.is_dir()

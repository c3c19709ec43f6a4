"""Your own data: images and label images in folders.

ROOT/classes.txt                        lines `index name`, indices 0, 1, ... in order
ROOT/{train,val,test}/images/STEM.jpg   or .jpeg or .png
ROOT/{train,val,test}/labels/STEM.png   8-bit class ids, grey or palette
"""

import os
from pathlib import Path

from segloss.data.datasets.files import (
    IMAGE_SUFFIXES,
    LABEL_SUFFIXES,
    DatasetError,
    Fault,
    FilesBuilder,
    FilesConfig,
    Pair,
    list_files,
    make_name,
    pair_up,
)
from segloss.errors import SeglossError

SPLITS = ("train", "val", "test")
MAX_LABEL = 255


class Folder(FilesBuilder, skip_registration=True):
    """TFDS builder of images in folders; checks all files before it writes a record."""


def folder(
    *,
    root: str | os.PathLike[str],
    ignore_label: int = 255,
    data_dir: str | os.PathLike[str] | None = None,
) -> Folder:
    """Makes the TFDS builder of your own images and labels.

    The docstring of this module shows the layout of `root`. One split is enough, and
    images may differ in size. This function only lists the files; the builder reads
    them when it prepares the dataset. The name of the dataset depends on the names,
    sizes and modification times of its files, so changed files give a new dataset, and
    unchanged files reuse the prepared one.

    Args:
        root: folder with the data.
        ignore_label: label of pixels that do not count, in 0..255; not a class id.
        data_dir: folder where prepared datasets are stored; None is TFDS's default.

    Raises:
        ValueError: if `ignore_label` is out of range.
        DatasetError: if `root` is not a folder. The builder raises it for other faults.
    """
    if not 0 <= ignore_label <= MAX_LABEL:
        raise SeglossError(
            f"folder: ignore_label must be in 0..255, got {ignore_label}."
        )
    root = Path(root).expanduser().resolve()
    if not root.is_dir():
        raise DatasetError(root, [Fault(".", "is not a folder; check the path")])
    class_names, faults = _read_classes(root, ignore_label)
    pairs = {}
    for split in SPLITS:
        if (root / split).is_dir():
            pairs[split], missing = _pair_up(root, split)
            faults += missing
    if not pairs:
        faults.append(Fault(".", "has no folder train, val or test; make one of them"))
    return Folder(
        data_dir=data_dir,
        config=FilesConfig(
            name=_name(root, ignore_label),
            class_names=class_names,
            ignore_label=ignore_label,
            root=root,
            pairs=pairs,
            faults=faults,
        ),
    )


def _pair_up(root: Path, split: str) -> tuple[list[Pair], list[Fault]]:
    pairs, faults = pair_up(root, root / split / "images", root / split / "labels")
    if not (pairs or faults):
        problem = "has no images/*.jpg or *.png; fill it or remove the folder"
        faults.append(Fault(split, problem))
    return pairs, faults


def _name(root: Path, ignore_label: int) -> str:
    files = [root / "classes.txt"]
    for split in SPLITS:
        files += list_files(root / split / "images", IMAGE_SUFFIXES)
        files += list_files(root / split / "labels", LABEL_SUFFIXES)
    return make_name(root, str(ignore_label), files)


def _read_classes(root: Path, ignore_label: int) -> tuple[tuple[str, ...], list[Fault]]:
    path = root / "classes.txt"
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        return (), [Fault(path.name, "is missing; write a line `index name` per class")]
    except (OSError, UnicodeDecodeError) as error:
        return (), [Fault(path.name, f"must be UTF-8 text, got {error}; rewrite it")]
    names, faults = [], []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            index, name = (*line.split(maxsplit=1), "")[:2]
            if problem := _class_problem(index, name.strip(), names, ignore_label):
                faults.append(Fault(f"{path.name} line {number}", f"must {problem}"))
            names.append(name.strip())
    if not names:
        faults.append(Fault(path.name, "is empty; write a line `index name` per class"))
    return (() if faults else tuple(names)), faults


def _class_problem(
    index: str, name: str, names: list[str], ignore_label: int
) -> str | None:
    """Returns what is wrong with the line `index name` of classes.txt, or None.

    `names` are the classes of the lines before. The text continues "line N must".
    """
    expected = len(names)
    if index != str(expected) or not name:
        return f"be `{expected} NAME`, got `{index} {name}`; indices count up from 0"
    if name in names:
        return f"name a class that no earlier line names, got {name!r}; rename it"
    if expected == ignore_label:
        return (
            f"not be ignore_label, got {index}; "
            "remove the line or choose another ignore_label"
        )
    if expected > MAX_LABEL:
        return f"have an index <= {MAX_LABEL}, got {index}; labels are 8-bit"
    return None

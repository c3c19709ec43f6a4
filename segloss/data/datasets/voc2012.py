"""PASCAL VOC 2012 with the additional training labels of SBD.

ROOT/VOCdevkit/VOC2012/JPEGImages/ID.jpg
ROOT/VOCdevkit/VOC2012/SegmentationClass/ID.png                palette, 255 is void
ROOT/VOCdevkit/VOC2012/ImageSets/Segmentation/{train,val}.txt  one id per line
and SBD, either as unpacked from its archive, or as label images and an optional list:
ROOT/benchmark_RELEASE/dataset/{train.txt,val.txt,cls/ID.mat}
ROOT/VOCdevkit/VOC2012/SegmentationClassAug/ID.png
ROOT/VOCdevkit/VOC2012/ImageSets/Segmentation/train_aug.txt
"""

import os
from collections import Counter
from collections.abc import Set
from pathlib import Path

import numpy as np

from segloss.data.datasets.faults import Fault, abridge
from segloss.data.datasets.files import FilesBuilder
from segloss.data.datasets.pairs import Pair, check_sizes, list_files, relative
from segloss.data.datasets.rules import Rules
from segloss.data.decoding.labels import DecodedLabels
from segloss.data.decoding.mat import read_mat_image
from segloss.data.decoding.opening import UnfitError, check_not_empty, damage_named

CLASS_NAMES = (
    "background",
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair"),
    *("cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant"),
    *("sheep", "sofa", "train", "tvmonitor"),
)
VOID = 255
SPLIT_SIZES = {"train": 10_582, "train_official": 1_464, "val": 1_449}


class Voc2012(FilesBuilder, skip_registration=True):
    """TFDS builder of PASCAL VOC 2012 with the additional labels of SBD.

    Checks every image and label file before it writes the dataset.
    """

    INSTRUCTIONS = """\
Unpack both archives in that folder:
  http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar
    -> VOCdevkit/VOC2012/{JPEGImages,SegmentationClass,ImageSets}
  https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz
    -> benchmark_RELEASE/dataset/{cls,train.txt,val.txt}
Instead of the second archive, label images made from it can be used:
  VOCdevkit/VOC2012/SegmentationClassAug/ID.png"""


def voc2012(
    *,
    root: str | os.PathLike[str],
    partial: bool = False,
    data_dir: str | os.PathLike[str] | None = None,
) -> Voc2012:
    """Makes the TFDS builder of VOC 2012 from the files in `root`.

    The docstring of this module shows the layout of the files. VOC 2012 is Everingham
    et al. 2010 (doi:10.1007/s11263-009-0275-4), SBD Hariharan et al. 2011
    (doi:10.1109/ICCV.2011.6126343). The splits, each sorted by image id, are:

    - `train`: the 10,582 images usually called train_aug. These are VOC's train and
      SBD's train and val, without VOC's val.
    - `train_official`: the 1,464 of them that VOC itself labels.
    - `val`: VOC's 1,449 images.

    Images that VOC labels get VOC's labels, in which 255 is void. The others get SBD's
    labels, which have no void: from SegmentationClassAug/ID.png if it exists, else from
    cls/ID.mat. The ids of SBD are those of train_aug.txt if it exists, else those of
    SBD's own lists. Without any list, all of SBD's labels outside VOC's val are used.
    The folder `VOC2012` may also be directly in `root`.

    Args:
        root: folder in which the archives were unpacked.
        partial: True accepts fewer samples and splits; False requires all. Missing
            files that a list names are skipped; existing files must still be valid.
        data_dir: folder where prepared datasets are stored; None is TFDS's default.

    Raises:
        DatasetError: if files are missing or lists invalid; lists all faults and says
            where to get the files. The builder checks the images later.
    """
    root = Path(root).expanduser().resolve()
    found = (root / "VOCdevkit/VOC2012", root / "VOC2012")
    voc = next((path for path in found if path.is_dir()), None)
    if voc is None:
        rule = "has no folder VOCdevkit/VOC2012"
        pairs, faults = {}, [Fault(".", rule, "download it")]
    else:
        pairs, faults = _list_pairs(root, voc, partial=partial)
    return Voc2012.make_checked(
        Rules(root=root, class_names=CLASS_NAMES, ignore_label=VOID),
        pairs,
        faults,
        data_dir=data_dir,
    )


def read_mat(data: bytes) -> DecodedLabels:
    """Decodes the class ids in a .mat file of SBD, given its content.

    Raises:
        UnfitError: if the file is empty, damaged or too large, or lacks
            `GTcls.Segmentation`, uint8 [h, w].
    """
    check_not_empty(data)
    with damage_named():
        ids = read_mat_image(data, "GTcls", "Segmentation")
    if ids is None:
        raise UnfitError(
            "must hold GTcls.Segmentation, 8-bit class ids [h, w]",
            "",
            "use the file in dataset/cls, not in dataset/inst",
        )
    return DecodedLabels(np.ascontiguousarray(ids), unchanged=False)


def _list_pairs(
    root: Path, voc: Path, *, partial: bool
) -> tuple[dict[str, list[Pair]], list[Fault]]:
    faults: list[Fault] = []
    sbd = root / "benchmark_RELEASE/dataset"
    images = _by_id(voc / "JPEGImages", ".jpg")
    voc_labels = _by_id(voc / "SegmentationClass", ".png")
    sbd_labels = _by_id(sbd / "cls", ".mat")
    sbd_labels |= _by_id(voc / "SegmentationClassAug", ".png")
    ids = _read_splits(root, voc, sbd, sbd_labels.keys(), faults)
    of_voc = {*ids["train_official"], *ids["val"]}
    labels = {stem: sbd_labels.get(stem) for stem in ids["train"]}
    labels |= {stem: voc_labels.get(stem) for stem in of_voc}

    if not partial:
        faults += check_sizes(ids, SPLIT_SIZES)
        for directory, wanted, there in (
            (voc / "JPEGImages", labels.keys(), images),
            (voc / "SegmentationClass", of_voc, voc_labels),
            (sbd / "cls", labels.keys() - of_voc, sbd_labels),
        ):
            if missing := wanted - there.keys():
                rule = f"lacks {len(missing):,} of {len(wanted):,} files"
                rule += f", {abridge(missing)}"
                faults.append(Fault(relative(root, directory), rule, "download them"))
    pairs = {
        split: [
            _make_pair(stem, images[stem], labels[stem])
            for stem in sorted(stems)
            if stem in images and labels[stem]
        ]
        for split, stems in ids.items()
    }
    return pairs, faults


def _read_splits(
    root: Path, voc: Path, sbd: Path, labelled: Set[str], faults: list[Fault]
) -> dict[str, Set[str]]:
    """Returns the image ids of each split; adds a fault for each problem to `faults`.

    The `labelled` ids, those with a label of SBD, are used if SBD has no list.
    """
    lists = voc / "ImageSets/Segmentation"
    official = _read_ids(root, lists / "train.txt", faults)
    val = _read_ids(root, lists / "val.txt", faults)
    if (lists / "train_aug.txt").exists():
        further = _read_ids(root, lists / "train_aug.txt", faults)
    elif (sbd / "train.txt").exists() or (sbd / "val.txt").exists():
        of_sbd = [_read_ids(root, sbd / f"{k}.txt", faults) for k in ("train", "val")]
        further = set.union(*of_sbd) - val
    else:
        further = labelled - val
    for name, ids in (("train.txt", official), ("train_aug.txt", further)):
        if leaked := ids & val:
            rule, got = "must not name ids of val.txt", abridge(leaked)
            where = relative(root, lists / name)
            faults.append(Fault(where, rule, "remove them", got))
    return {"train": official | further, "train_official": official, "val": val}


def _read_ids(root: Path, path: Path, faults: list[Fault]) -> set[str]:
    """Returns the image ids in the list `path`, one a line; adds faults to `faults`.

    If a line is a path, its stem is the id.
    """
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        faults.append(Fault(relative(root, path), "is missing", "download it"))
        return set()
    ids = [Path(line.split()[0]).stem for line in lines if line.strip()]
    if twice := [stem for stem, count in Counter(ids).items() if count > 1]:
        got = f"{abridge(twice)} again"
        where = relative(root, path)
        faults.append(Fault(where, "must name an id once", "remove lines", got))
    return {*ids}


def _by_id(directory: Path, suffix: str) -> dict[str, Path]:
    return {path.stem: path for path in list_files(directory, (suffix,))}


def _make_pair(stem: str, image: Path, labels: Path) -> Pair:
    if labels.suffix == ".mat":
        return Pair(stem, image, labels, read_mat)
    return Pair(stem, image, labels)

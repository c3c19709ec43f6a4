"""Your own data: images and label images in folders.

ROOT/classes.txt                        a line per class; see `classes_file`
ROOT/{train,val,test}/images/STEM.jpg   or any other image; see `read_image`
ROOT/{train,val,test}/labels/STEM.png   or any other lossless image; see `read_labels`

`layouts` lists other arrangements of the folders. Images and labels may be in nested
folders.
"""

import functools
import hashlib
import os
from pathlib import Path

from segloss.data.datasets.classes_file import read_classes
from segloss.data.datasets.faults import DatasetError, Fault, abridge
from segloss.data.datasets.files import FilesBuilder
from segloss.data.datasets.layouts import find_layout
from segloss.data.datasets.pairs import Pair, pair_up
from segloss.data.datasets.rules import Rules, parse_nodata
from segloss.data.decoding.images import ALPHA
from segloss.data.decoding.label_values import MAX_VALUE
from segloss.data.decoding.labels import read_labels
from segloss.data.decoding.opening import MAX_IMAGE_PIXELS
from segloss.errors import SeglossError


class Folder(FilesBuilder, skip_registration=True):
    """TFDS builder of images in folders; checks all files before it writes a record."""


def folder(
    *,
    root: str | os.PathLike[str] | None,
    ignore_label: int = 255,
    image_suffix: str = "",
    label_suffix: str = "",
    val_fraction: float = 0.0,
    alpha: str = "drop",
    nodata: float | str | None = None,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
    data_dir: str | os.PathLike[str] | None = None,
) -> Folder:
    """Makes the TFDS builder of your own images and labels.

    The docstring of this module shows the layout of `root`. One split is enough, and
    images may differ in size, but not in their number and type of bands. This function
    lists the files and opens one; the builder reads the others when it prepares the
    dataset. The name of the dataset depends on the names, sizes and modification times
    of its files, so changed files give a new dataset, and unchanged files reuse the
    prepared one.

    Args:
        root: folder with the data.
        ignore_label: label of pixels that do not count, in 0..65535; not a class id.
        image_suffix: what the names of images end with before the format's suffix, and
            the names of their labels do not, such as "_leftImg8bit".
        label_suffix: the same for labels, such as "_mask" or "_gtFine_labelIds".
        val_fraction: share of the training samples, in [0, 1), that become the split
            val if there is none. A hash of its stem decides where a sample goes, so
            further files do not change the splits of the others.
        alpha: what happens to the opacity of images: "drop" ignores it, "void" makes
            transparent pixels void, and "band" makes it a band of the image.
        nodata: pixels with this value in all bands are void; "nan" are those that are
            NaN, None means none.
        max_image_pixels: largest number of pixels of an image.
        data_dir: folder where prepared datasets are stored; None is TFDS's default.

    Raises:
        SeglossError: if an argument is out of range.
        DatasetError: if `root` is not a folder. The builder raises it for other faults.
    """
    _check_arguments(ignore_label, val_fraction, alpha)
    root = Path(root).expanduser().resolve()
    if not root.is_dir():
        raise DatasetError(root, [Fault(".", "is not a folder", "check the path")])
    names, values, faults = read_classes(root, ignore_label)
    layout = find_layout(root)
    faults += layout.faults
    pairs: dict[str, list[Pair]] = {}
    unread = layout.unread
    for split, (images_dir, labels_dir) in layout.folders.items():
        found = pair_up(
            root,
            images_dir,
            labels_dir,
            image_suffix=image_suffix,
            label_suffix=label_suffix,
            read_labels=functools.partial(
                read_labels, values=values, max_pixels=max_image_pixels
            ),
        )
        pairs[split], unread = found.pairs, [*unread, *found.unread]
        faults += found.faults
        if not (found.pairs or found.faults):
            remedy = "fill it or remove the folder"
            got = abridge(layout.unread)
            faults.append(Fault(split, "must hold images and labels", remedy, got))
    if val_fraction:
        faults += _split_off(pairs, val_fraction)
    rules = Rules.of_first(
        (pair for found in pairs.values() for pair in found),
        root=root,
        class_names=names,
        ignore_label=ignore_label,
        alpha=alpha,
        nodata=parse_nodata(nodata),
        max_pixels=max_image_pixels,
    )
    notes = []
    if unread:
        notes.append(
            f"{len(unread):,} files and folders are not read: {abridge(unread)}"
        )
    return Folder.make(
        rules,
        pairs,
        faults=faults,
        notes=notes,
        salt=repr((ignore_label, names, values, alpha, nodata)),
        data_dir=data_dir,
    )


def _check_arguments(ignore_label: int, val_fraction: float, alpha: str) -> None:
    if not 0 <= ignore_label <= MAX_VALUE:
        raise SeglossError(
            f"folder: ignore_label must be in 0..{MAX_VALUE}, got {ignore_label}."
        )
    if not 0 <= val_fraction < 1:
        raise SeglossError(
            f"folder: val_fraction must be in [0, 1), got {val_fraction}."
        )
    if alpha not in ALPHA:
        known = ", ".join(map(repr, ALPHA))
        raise SeglossError(f"folder: alpha must be one of {known}, got {alpha!r}.")


def _split_off(pairs: dict[str, list[Pair]], val_fraction: float) -> list[Fault]:
    """Moves a part of the training samples to the split val; returns what is wrong."""
    if "val" in pairs:
        remedy = "remove --config.data.val_fraction, or the folder"
        return [Fault("val", "exists, so val_fraction cannot make it", remedy)]
    samples = pairs.get("train", [])
    parts: tuple[list[Pair], list[Pair]] = [], []
    for pair in samples:
        digest = hashlib.sha256(pair.stem.encode()).digest()
        share = int.from_bytes(digest[:8]) / 2**64
        parts[share < val_fraction].append(pair)
    pairs["train"], pairs["val"] = parts
    if samples and not all(parts):
        rule = f"val_fraction={val_fraction} of {len(samples)} samples empties a split"
        return [Fault("train", rule, "choose another fraction")]
    return []

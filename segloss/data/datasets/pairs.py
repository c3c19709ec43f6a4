"""Finds image and label files that belong together, by their names."""

import bisect
import collections
import dataclasses
import os
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from segloss.data.datasets.faults import Fault
from segloss.data.decoding.labels import DecodedLabels, read_labels
from segloss.data.decoding.opening import IMAGE_SUFFIXES, LABEL_SUFFIXES


@dataclasses.dataclass(frozen=True)
class Pair:
    """The files of one sample.

    Attributes:
        stem: name of the sample: the path of its image in the folder of images, without
            suffixes.
        image: path of the image.
        labels: path of the label image.
        read_labels: function that decodes the bytes of the label image; takes and
            returns the same as `decoding.labels.read_labels`.
    """

    stem: str
    image: Path
    labels: Path
    read_labels: Callable[[bytes], DecodedLabels] = read_labels


class PairedUp(NamedTuple):
    """Pairs of files, what is wrong with the other files, and files that are not read.

    Attributes:
        pairs: the pairs, sorted by stem.
        faults: a fault for each image or label without a partner, or of a stem that is
            not unique.
        unread: other files in both folders, relative to the root.
    """

    pairs: list[Pair]
    faults: list[Fault]
    unread: list[str]


class _Files(NamedTuple):
    """Files of a folder by stem, and those that are not read."""

    by_stem: dict[str, list[Path]]
    others: list[Path]


def pair_up(
    root: Path,
    images_dir: Path,
    labels_dir: Path,
    *,
    image_suffix: str = "",
    label_suffix: str = "",
    read_labels: Callable[[bytes], DecodedLabels] = read_labels,
) -> PairedUp:
    """Pairs the images and labels in two folders below `root`.

    An image and a label are a pair if their paths in these folders are equal without
    `image_suffix`, `label_suffix` and the suffix of the format. Paths are compared in
    Unicode's composed form (NFC): macOS writes decomposed names.
    """
    images = _find(images_dir, IMAGE_SUFFIXES, image_suffix)
    labels = _find(labels_dir, LABEL_SUFFIXES, label_suffix)
    pairs = [
        Pair(stem, images.by_stem[stem][0], labels.by_stem[stem][0], read_labels)
        for stem in sorted(images.by_stem.keys() & labels.by_stem.keys())
        if len(images.by_stem[stem]) == len(labels.by_stem[stem]) == 1
    ]
    faults = []
    for files in (images, labels):
        for same in files.by_stem.values():
            if len(same) > 1:
                first, *rest = (relative(root, path) for path in same)
                rule = "has the same stem as another file"
                faults.append(Fault(first, rule, "keep one of them", ", ".join(rest)))
    faults += _lonely(root, images, labels, images_dir, labels_dir)
    others = [relative(root, path) for path in (*images.others, *labels.others)]
    return PairedUp(pairs, faults, others)


def _find(directory: Path, suffixes: Collection[str], ending: str) -> _Files:
    by_stem: dict[str, list[Path]] = collections.defaultdict(list)
    others = []
    for path in walk(directory):
        stem = path.with_suffix("").relative_to(directory).as_posix()
        fits = path.suffix.lower() in suffixes and stem.endswith(ending)
        # A pipe would never end.
        if fits and path.is_file() and _is_text(stem):
            stem = unicodedata.normalize("NFC", stem.removesuffix(ending))
            by_stem[stem].append(path)
        else:
            others.append(path)
    return _Files(by_stem, others)


def _is_text(name: str) -> bool:
    """Whether a name is valid Unicode; names in old archives may not be."""
    return name.isascii() or not any("\ud800" <= c <= "\udfff" for c in name)


def guess_label_suffix(images_dir: Path, labels_dir: Path) -> str:
    """Returns what most labels are named with after the names of their images."""
    images = _find(images_dir, IMAGE_SUFFIXES, "").by_stem
    labels = _find(labels_dir, LABEL_SUFFIXES, "").by_stem
    near = _starting_with(sorted(images.keys() - labels.keys()), labels)
    endings = collections.Counter(label[len(image) :] for image, label in near.items())
    return endings.most_common(1)[0][0] if endings else ""


def walk(directory: Path) -> Iterable[Path]:
    """Yields the visible files below a folder, sorted by path.

    A link to a folder is yielded like a file, since it may lead back to where it lies.
    """
    if not directory.is_dir():
        return
    for folder, folders, files in os.walk(directory, onerror=_raise):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        links = [name for name in folders if os.path.islink(Path(folder, name))]
        for name in sorted((*files, *links)):
            if not name.startswith("."):
                yield Path(folder, name)


def _raise(error: OSError) -> None:
    raise error


def _lonely(
    root: Path, images: _Files, labels: _Files, images_dir: Path, labels_dir: Path
) -> list[Fault]:
    """Returns a fault for each file without a partner; one for two that nearly fit."""
    image_stems = sorted(images.by_stem.keys() - labels.by_stem.keys())
    label_stems = sorted(labels.by_stem.keys() - images.by_stem.keys())
    label_of = _starting_with(image_stems, label_stems)
    image_of = _starting_with(label_stems, image_stems)
    others = _unreadable(labels, labels_dir, LABEL_SUFFIXES)
    other_of = _starting_with(image_stems, others)
    other_images = _unreadable(images, images_dir, IMAGE_SUFFIXES)
    other_image_of = _starting_with(label_stems, other_images)
    longer_images = {image: label for label, image in image_of.items()}
    endings = _common_endings(label_of), _common_endings(image_of)
    faults = []
    for stem in image_stems:
        path = relative(root, images.by_stem[stem][0])
        rule = "has no label of the same name"
        if stem in label_of:
            near = labels.by_stem[label_of[stem]][0]
            remedy = _rename("label", endings[0])
            faults.append(Fault(path, rule, remedy, relative(root, near)))
        elif stem in longer_images:
            near = labels.by_stem[longer_images[stem]][0]
            remedy = _rename("image", endings[1])
            faults.append(Fault(path, rule, remedy, relative(root, near)))
        elif stem in other_of:
            kinds = ", ".join(LABEL_SUFFIXES)
            remedy = f"labels are read from {kinds}, which store them without loss"
            near = relative(root, labels_dir / other_of[stem])
            faults.append(Fault(path, rule, remedy, near))
        else:
            remedy = f"add {relative(root, labels_dir)}/STEM.png or remove the image"
            faults.append(Fault(path, "has no label", remedy))
    explained = {*label_of.values(), *image_of}
    for stem in label_stems:
        path = relative(root, labels.by_stem[stem][0])
        if stem in other_image_of:
            near = relative(root, images_dir / other_image_of[stem])
            remedy = f"images are read from {', '.join(IMAGE_SUFFIXES)}"
            faults.append(Fault(path, "has no image of the same name", remedy, near))
        elif stem not in explained:
            folder = relative(root, images_dir)
            remedy = f"add {folder}/STEM.jpg or another image, or remove the label"
            faults.append(Fault(path, "has no image", remedy))
    return faults


def _unreadable(files: _Files, directory: Path, suffixes: Collection[str]) -> list[str]:
    """Returns the files of other formats than those with the suffixes."""
    return [
        path.relative_to(directory).as_posix()
        for path in files.others
        if path.suffix.lower() not in suffixes
    ]


def _starting_with(stems: Collection[str], names: Collection[str]) -> dict[str, str]:
    """Finds for each stem a name that starts with it, whatever the case."""
    known = sorted((_fold(name), name) for name in names)
    found: dict[str, str] = {}
    for stem in stems:
        at = bisect.bisect_left(known, (_fold(stem), ""))
        if at < len(known) and known[at][0].startswith(_fold(stem)):
            found[stem] = known[at][1]
    return found


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _common_endings(longer_of: Mapping[str, str]) -> str | None:
    """Returns what all longer names have after the stems; None if they differ."""
    endings = {longer[len(stem) :] for stem, longer in longer_of.items()}
    return endings.pop() if len(endings) == 1 else None


def _rename(kind: str, ending: str | None) -> str:
    """Returns what to do about files whose names continue their partners' names."""
    if ending is None:
        return "give both the same name"
    if not ending:
        return "write both names in the same case"
    return (
        f"if the {kind}s' names end in {ending!r}, add "
        f"--config.data.{kind}_suffix={ending}"
    )


def list_files(directory: Path, suffixes: Collection[str]) -> list[Path]:
    """Returns the visible files of a folder with one of the suffixes, sorted by name.

    Returns none if the folder does not exist.
    """
    if not directory.is_dir():
        return []
    files = (
        path
        for path in directory.iterdir()
        if path.suffix.lower() in suffixes and not path.name.startswith(".")
    )
    return sorted(files, key=lambda path: path.name)


def check_sizes(
    found: Mapping[str, Collection[Any]], expected: Mapping[str, int]
) -> list[Fault]:
    """Returns a fault for each split without the expected number of samples.

    `found` maps a split to its samples, `expected` to their number.
    """
    return [
        Fault(
            split,
            f"expected {size:,} samples, found {len(found.get(split, ())):,}",
            "complete the data, or set partial=True to accept a part of it",
        )
        for split, size in expected.items()
        if len(found.get(split, ())) != size
    ]


def relative(root: Path, path: Path) -> str:
    """Returns `path` relative to `root`, with forward slashes."""
    return path.relative_to(root).as_posix()

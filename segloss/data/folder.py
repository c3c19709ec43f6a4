"""The user's own data: images and label images in folders.

ROOT/classes.txt                        lines `index name`, from 0 without gaps
ROOT/{train,val,test}/images/STEM.jpg   or .jpeg or .png
ROOT/{train,val,test}/labels/STEM.png   8-bit class ids, grey or palette
"""

import collections
import dataclasses
import functools
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from segloss.data.builder import (
    Sample,
    SegmentationBuilder,
    SegmentationConfig,
    Shard,
    encode_png,
    make_progress,
)

SPLITS = ("train", "val", "test")
# Labels are exact, so a lossy format cannot hold them.
SUFFIXES = {"images": (".jpg", ".jpeg", ".png"), "labels": (".png",)}

MAX_LABEL = 255

_SHARD_BYTES = 64 << 20  # of source files
_EXIF_ORIENTATION = 0x0112
_PNG_BITS = 24  # the byte of a PNG that holds the bit depth
_KEPT_FORMATS = ("JPEG", "MPO", "PNG")  # MPO is the JPEG of many phones
# What PIL turns into RGB without losing range: 16-bit and float images are not here.
_MODES_TO_RGB = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")


@dataclasses.dataclass(frozen=True)
class Fault:
    """One thing wrong with a file, and what to do about it.

    Attributes:
        path: the file, relative to the root.
        problem: rule, value and remedy in a line.
    """

    path: str
    problem: str

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}"


class DatasetError(ValueError):
    """A data set cannot be used as it is.

    Attributes:
        faults: all of them, each a line of the message.
    """

    def __init__(self, root: str | os.PathLike[str], faults: Iterable[Fault]):
        self.root, self.faults = root, tuple(faults)
        shown = [f"  {fault}" for fault in self.faults]
        count = len(self.faults)
        super().__init__(
            f"folder: {root} has {count} fault{'s' * (count > 1)}, nothing was "
            "written:\n" + "\n".join(shown)
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.root, self.faults)


@dataclasses.dataclass(frozen=True)
class Pair:
    """The files of one sample."""

    stem: str
    image: Path
    labels: Path


@dataclasses.dataclass(eq=False, kw_only=True)
class FolderConfig(SegmentationConfig):
    """What was found under `root`, before any image was opened."""

    root: Path
    pairs: Mapping[str, list[Pair]]
    faults: list[Fault]


class Folder(SegmentationBuilder, skip_registration=True):
    """Writes what lies under a folder, once every file has been found sound."""

    def download_and_prepare(self, **options: Any) -> None:
        """Prepares the dataset where that has not been done.

        Raises:
            DatasetError: if any file is missing or faulty; nothing is written then.
        """
        if not self.data_path.exists():
            check(self.builder_config)
        super().download_and_prepare(**options)

    def shards(self) -> dict[str, list[Shard]]:
        return {
            split: [
                Shard(len(part), functools.partial(_encode_all, part))
                for part in _cut(pairs)
            ]
            for split, pairs in self.builder_config.pairs.items()
        }


def folder(
    *,
    root: str | os.PathLike[str],
    ignore_label: int = 255,
    data_dir: str | os.PathLike[str] | None = None,
) -> Folder:
    """Builder of the data under `root`, laid out as this module's docstring shows.

    Any one split suffices, and sizes may differ between samples. Files are listed, not
    read, until the builder prepares. A dataset is named after its files' names, sizes
    and times, so that changed data makes a new one and the same data is found again.

    Args:
        root: the folder.
        ignore_label: the label, in 0..255, of pixels that do not count; no class.
        data_dir: where datasets are kept; None is TFDS's default.

    Raises:
        ValueError: if `ignore_label` is out of range.
        DatasetError: if `root` is no folder.
    """
    if not 0 <= ignore_label <= MAX_LABEL:
        raise ValueError(f"folder: ignore_label must be in 0..255, got {ignore_label}.")
    root = Path(root).expanduser().resolve()
    if not root.is_dir():
        raise DatasetError(root, [Fault(".", "is no folder; check the path")])
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
        config=FolderConfig(
            name=_name(root, ignore_label),
            class_names=class_names,
            ignore_label=ignore_label,
            root=root,
            pairs=pairs,
            faults=faults,
        ),
    )


# --- what there is --------------------------------------------------------------


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
    """What is wrong with the line that follows `names`; None if nothing is."""
    expected = len(names)
    if index != str(expected) or not name:
        return f"be `{expected} NAME`, got `{index} {name}`; indices count up from 0"
    if name in names:
        return f"name another class than the lines before, got {name!r}; rename it"
    if expected == ignore_label:
        return (
            f"not be ignore_label, got {index}; "
            "remove the line or choose another ignore_label"
        )
    if expected > MAX_LABEL:
        return f"have an index <= {MAX_LABEL}, got {index}; labels are 8-bit"
    return None


def _pair_up(root: Path, split: str) -> tuple[list[Pair], list[Fault]]:
    found: dict[str, dict[str, list[Path]]] = {}
    for kind in SUFFIXES:
        found[kind] = collections.defaultdict(list)
        for path in _files(root / split / kind, kind):
            found[kind][path.stem].append(path)
    pairs, faults = [], []
    for stem in sorted(found["images"].keys() | found["labels"].keys()):
        images, labels = found["images"][stem], found["labels"][stem]
        if len(images) == len(labels) == 1:
            pairs.append(Pair(stem, images[0], labels[0]))
        elif not labels:
            wanted = f"{split}/labels/{stem}.png"
            problem = f"has no label; add {wanted} or remove the image"
            faults += [Fault(_relative(root, path), problem) for path in images]
        elif not images:
            wanted = f"{split}/images/{stem}.jpg or .png"
            problem = f"has no image; add {wanted} or remove the label"
            faults += [Fault(_relative(root, path), problem) for path in labels]
        for same in (images, labels):
            if len(same) > 1:
                first, *rest = (_relative(root, path) for path in same)
                problem = f"has the same stem as {', '.join(rest)}; keep one of them"
                faults.append(Fault(first, problem))
    if not (found["images"] or found["labels"]):
        problem = "has no images/*.jpg or *.png; fill it or remove the folder"
        faults.append(Fault(split, problem))
    return pairs, faults


def _files(directory: Path, kind: str) -> list[Path]:
    if not directory.is_dir():
        return []
    return sorted(
        path
        for path in directory.iterdir()
        if path.suffix.lower() in SUFFIXES[kind] and not path.name.startswith(".")
    )


def _relative(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


def _name(root: Path, ignore_label: int) -> str:
    """The folder's name and a hash that changes with its files, not with its place."""
    digest = hashlib.sha256(str(ignore_label).encode())
    candidates = [root / "classes.txt"]
    for split in SPLITS:
        for kind in SUFFIXES:
            candidates += _files(root / split / kind, kind)
    for path in candidates:
        if path.exists():
            stat = path.stat()
            line = f"\n{_relative(root, path)}\0{stat.st_size}\0{stat.st_mtime_ns}"
            digest.update(line.encode())
    return f"{re.sub(r'[^0-9A-Za-z_.-]+', '_', root.name)}-{digest.hexdigest()[:12]}"


# --- whether it is sound --------------------------------------------------------


def check(config: FolderConfig) -> None:
    """Reads every file once.

    Raises:
        DatasetError: with all faults, if there is one.
    """
    pairs = [pair for of_split in config.pairs.values() for pair in of_split]
    inspect = functools.partial(_inspect, config=config)
    with make_progress() as bar, ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(inspect, pairs)
        found = bar.track(found, total=len(pairs), description="Checking files")
        faults = config.faults + [fault for some in found for fault in some]
    if faults:
        raise DatasetError(config.root, faults)


def _inspect(pair: Pair, config: FolderConfig) -> list[Fault]:
    sizes, faults = {}, []
    for path, read in ((pair.image, read_image), (pair.labels, read_labels)):
        name = _relative(config.root, path)
        try:
            pixels = read(path.read_bytes())[0]
        except UnfitError as error:
            faults.append(Fault(name, str(error)))
        # Decoders raise nearly anything on broken bytes.
        except Exception as error:
            problem = f"cannot be read, it is damaged ({error}); replace the file"
            faults.append(Fault(name, problem))
        else:
            sizes[path] = pixels.size
            if path is pair.labels and config.class_names:
                faults += _stray_values(name, pixels, config)
    if len(set(sizes.values())) == 2:
        (w, h), (label_w, label_h) = sizes[pair.image], sizes[pair.labels]
        problem = (
            f"must be as large as its image, {h} x {w} (height x width), "
            f"got {label_h} x {label_w}; resize one of them"
        )
        faults.append(Fault(_relative(config.root, pair.labels), problem))
    return faults


def _stray_values(name: str, labels: Image.Image, config: FolderConfig) -> list[Fault]:
    num_classes = len(config.class_names)
    stray = [
        f"{value} ({pixels} px)"
        for value, pixels in enumerate(labels.histogram())
        if pixels and value >= num_classes and value != config.ignore_label
    ]
    if not stray:
        return []
    problem = (
        f"values must be 0..{num_classes - 1} or ignore_label {config.ignore_label}, "
        f"got {', '.join(stray)}; correct the label or add the class to classes.txt"
    )
    return [Fault(name, problem)]


# --- what is stored -------------------------------------------------------------


class UnfitError(ValueError):
    """A sound file of the wrong kind."""


def read_image(data: bytes) -> tuple[Image.Image, bool]:
    """Decodes an image to RGB; True if its bytes can be stored as they are."""
    with Image.open(BytesIO(data)) as image:
        image.load()
        upright = image.getexif().get(_EXIF_ORIENTATION, 1) == 1
        if image.mode == "RGB" and image.format in _KEPT_FORMATS and upright:
            return image, True
        if image.mode not in _MODES_TO_RGB:
            raise UnfitError(
                f"must have 8 bits per channel, got mode {image.mode}; convert it"
            )
        image = ImageOps.exif_transpose(image)
        if "transparency" in image.info:  # else PIL warns
            image = image.convert("RGBA")
        return image.convert("RGB"), False


def read_labels(data: bytes) -> tuple[Image.Image, bool]:
    """Decodes class ids to mode L, as `read_image`; of a palette, its indices."""
    with Image.open(BytesIO(data)) as image:
        image.load()
        if image.format != "PNG":
            raise UnfitError(f"must be PNG inside, got {image.format}; convert it")
        # PIL stretches grey of fewer bits to 0..255, which are no ids any more.
        if image.mode not in ("L", "P") or (image.mode == "L" and data[_PNG_BITS] != 8):
            raise UnfitError(
                "must hold class ids as 8-bit grey (L) or palette (P), got mode "
                f"{image.mode} of {data[_PNG_BITS]} bits; convert it"
            )
        if image.mode == "L":
            return image, True
        return Image.fromarray(np.asarray(image)), False


def _encode(pair: Pair) -> Sample:
    encoded = []
    for path, read in ((pair.image, read_image), (pair.labels, read_labels)):
        data = path.read_bytes()
        pixels, sound = read(data)
        encoded.append(data if sound else encode_png(pixels))
    return Sample(pair.stem, *encoded, hw=(pixels.height, pixels.width))


def _encode_all(pairs: list[Pair]) -> Iterator[Sample]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(_encode, pairs)


def _cut(pairs: list[Pair]) -> Iterator[list[Pair]]:
    """Cuts a split where its files reach the size of a shard."""
    shard, size = [], 0
    for pair in pairs:
        size += pair.image.stat().st_size + pair.labels.stat().st_size
        shard.append(pair)
        if size >= _SHARD_BYTES:
            yield shard
            shard, size = [], 0
    if shard:
        yield shard

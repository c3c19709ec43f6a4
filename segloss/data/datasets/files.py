"""Pairs, checks and writes image and label files.

Shared by all datasets that are made from files. Pairs of files, and faults such as a
missing label, are listed first. Nothing is written unless every file is valid.
"""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from segloss.console import make_progress
from segloss.data.datasets.builder import (
    Sample,
    SegmentationBuilder,
    SegmentationConfig,
    Shard,
    encode_png,
)
from segloss.data.loading.decode import UnfitError, read_image, read_labels
from segloss.errors import SeglossError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
# Labels must be stored losslessly.
LABEL_SUFFIXES = (".png",)

_SHOWN = 5  # number of names in a message
_SHARD_BYTES = 64 << 20  # total size of the source files of a shard


@dataclasses.dataclass(frozen=True)
class Fault:
    """One problem with a file, and how to solve it.

    Attributes:
        path: the file, relative to the root.
        problem: the rule that is broken, the value found and the remedy, in one line.
    """

    path: str
    problem: str

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}"


class DatasetError(SeglossError):
    """The files of a dataset are missing or invalid.

    Attributes:
        root: folder of the dataset.
        faults: all faults; each is one line of the message.
        dataset: name of the builder.
        instructions: where to get the data and how to arrange them; the last lines of
            the message.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        faults: Iterable[Fault],
        *,
        dataset: str = "folder",
        instructions: str = "",
    ):
        self.root, self.faults = root, tuple(faults)
        self.dataset, self.instructions = dataset, instructions
        count = len(self.faults)
        super().__init__(
            f"{dataset}: {root} has {count} fault{'s' * (count > 1)}, nothing was "
            "written:\n"
            + "\n".join(f"  {fault}" for fault in self.faults)
            + (f"\n{instructions}" if instructions else "")
        )

    def __reduce__(self) -> tuple[Any, ...]:
        make = functools.partial(
            type(self), dataset=self.dataset, instructions=self.instructions
        )
        return make, (self.root, self.faults)


# --- finding files ---------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Pair:
    """The files of one sample.

    Attributes:
        stem: name of the sample.
        image: path of the image.
        labels: path of the label image.
        read_labels: function that decodes the bytes of the label image; takes and
            returns the same as `decode.read_labels`.
    """

    stem: str
    image: Path
    labels: Path
    read_labels: Callable[[bytes], tuple[Image.Image, bool]] = read_labels


@dataclasses.dataclass(eq=False, kw_only=True)
class FilesConfig(SegmentationConfig):
    """The files found under `root`, before any image is opened.

    Attributes:
        root: folder of the dataset.
        pairs: the files of the samples of each split, by the split's name.
        faults: faults found so far; reported with those found inside the files.
    """

    root: Path
    pairs: Mapping[str, list[Pair]]
    faults: Sequence[Fault] = ()


class FilesBuilder(SegmentationBuilder, skip_registration=True):
    """TFDS builder of pairs of image and label files; checks all before it writes."""

    @classmethod
    def make(
        cls,
        root: Path,
        pairs: Mapping[str, list[Pair]],
        faults: Sequence[Fault],
        *,
        class_names: tuple[str, ...],
        ignore_label: int,
        instructions: str,
        data_dir: str | os.PathLike[str] | None,
    ) -> "FilesBuilder":
        """Makes the builder of a public dataset; splits without pairs are left out.

        `faults` are those found while listing the files. The message of an error ends
        with `instructions`, which say where to get the files.

        Raises:
            DatasetError: if there is a fault, or no pair at all.
        """
        if not (faults or any(pairs.values())):
            faults = [Fault(".", "holds no sample of any split; check the path")]
        if faults:
            raise DatasetError(
                root, faults, dataset=cls.name, instructions=instructions
            )
        pairs = {split: found for split, found in pairs.items() if found}
        return cls(
            data_dir=data_dir,
            config=FilesConfig(
                name=make_pairs_name(root, pairs),
                class_names=class_names,
                ignore_label=ignore_label,
                root=root,
                pairs=pairs,
            ),
        )

    def download_and_prepare(self, **options: Any) -> None:
        """Checks all files and writes the dataset, unless it exists already.

        TFDS's `download_and_prepare` receives `options`.

        Raises:
            DatasetError: if any file is missing or invalid; nothing is written then.
        """
        if not self.data_path.exists():
            check(self.name, self.builder_config)
        super().download_and_prepare(**options)

    def shards(self) -> dict[str, list[Shard]]:
        return {
            split: [
                Shard(len(part), functools.partial(_encode_all, part))
                for part in _cut(pairs)
            ]
            for split, pairs in self.builder_config.pairs.items()
        }


def pair_up(
    root: Path, images_dir: Path, labels_dir: Path
) -> tuple[list[Pair], list[Fault]]:
    """Pairs the images and labels of two folders below `root` by their stems.

    Also returns a fault for each file without a partner or with a stem that is not
    unique.
    """
    found: list[dict[str, list[Path]]] = []
    for directory, suffixes in (
        (images_dir, IMAGE_SUFFIXES),
        (labels_dir, LABEL_SUFFIXES),
    ):
        found.append(collections.defaultdict(list))
        for path in list_files(directory, suffixes):
            found[-1][path.stem].append(path)
    pairs, faults = [], []
    for stem in sorted(found[0].keys() | found[1].keys()):
        images, labels = found[0][stem], found[1][stem]
        if len(images) == len(labels) == 1:
            pairs.append(Pair(stem, images[0], labels[0]))
        elif not labels:
            wanted = f"{relative(root, labels_dir)}/{stem}.png"
            problem = f"has no label; add {wanted} or remove the image"
            faults += [Fault(relative(root, path), problem) for path in images]
        elif not images:
            wanted = f"{relative(root, images_dir)}/{stem}.jpg or .png"
            problem = f"has no image; add {wanted} or remove the label"
            faults += [Fault(relative(root, path), problem) for path in labels]
        for same in (images, labels):
            if len(same) > 1:
                first, *rest = (relative(root, path) for path in same)
                problem = f"has the same stem as {', '.join(rest)}; keep one of them"
                faults.append(Fault(first, problem))
    return pairs, faults


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
            f"expected {size:,} samples, found {len(found.get(split, ())):,}; "
            "complete the data, or set partial=True to accept a part of it",
        )
        for split, size in expected.items()
        if len(found.get(split, ())) != size
    ]


def abridge(names: Collection[str]) -> str:
    """Returns a text with the first five sorted names and the number of the others."""
    shown = ", ".join(sorted(names)[:_SHOWN])
    return shown + f" and {len(names) - _SHOWN:,} more" * (len(names) > _SHOWN)


def relative(root: Path, path: Path) -> str:
    """Returns `path` relative to `root`, with forward slashes."""
    return path.relative_to(root).as_posix()


def make_name(root: Path, salt: str, files: Iterable[Path]) -> str:
    """Returns a name for a dataset: that of its folder, and a hash of its files.

    The name does not change if the folder is moved to another directory.

    Args:
        root: the folder.
        salt: text that distinguishes datasets with the same files.
        files: files below `root`; their names, sizes and modification times are hashed.
    """
    digest = hashlib.sha256(salt.encode())
    for path in files:
        with contextlib.suppress(FileNotFoundError):
            stat = path.stat()
            line = f"\n{relative(root, path)}\0{stat.st_size}\0{stat.st_mtime_ns}"
            digest.update(line.encode())
    return f"{re.sub(r'[^0-9A-Za-z_.-]+', '_', root.name)}-{digest.hexdigest()[:12]}"


def make_pairs_name(root: Path, pairs: Mapping[str, Iterable[Pair]]) -> str:
    """Returns `make_name` of the files of all pairs; also depends on the splits."""
    stems = {
        split: [pair.stem for pair in of_split] for split, of_split in pairs.items()
    }
    every = (pair for of_split in pairs.values() for pair in of_split)
    files = dict.fromkeys(path for pair in every for path in (pair.image, pair.labels))
    return make_name(root, repr(stems), files)


# --- checking files --------------------------------------------------------------


def check(dataset: str, config: FilesConfig) -> None:
    """Reads every image and label file of `config` and checks that it is valid.

    Raises:
        DatasetError: if there is any fault; names `dataset` and lists all faults.
    """
    # A sample may be in two splits.
    pairs = dict.fromkeys(
        pair for of_split in config.pairs.values() for pair in of_split
    )
    inspect = functools.partial(_inspect, config=config)
    with (
        make_progress(transient=True) as bar,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        found = pool.map(inspect, pairs)
        found = bar.track(found, total=len(pairs), description="Checking files")
        faults = [*config.faults, *(fault for of_pair in found for fault in of_pair)]
    if faults:
        raise DatasetError(config.root, faults, dataset=dataset)


def _inspect(pair: Pair, config: FilesConfig) -> list[Fault]:
    faults: list[Fault] = []
    labels = _try(pair.labels, pair.read_labels, config.root, faults)
    label_hw = None if labels is None else (labels.height, labels.width)
    read = functools.partial(read_image, label_hw=label_hw)
    image = _try(pair.image, read, config.root, faults)
    if labels is None:
        return faults
    name = relative(config.root, pair.labels)
    if config.class_names:
        faults += _stray_values(name, labels, config)
    if image is not None and image.size != labels.size:
        problem = (
            f"must have the size of its image, {image.height} x {image.width} "
            f"(height x width), got {labels.height} x {labels.width}; "
            "resize one of them"
        )
        faults.append(Fault(name, problem))
    return faults


def _try(
    path: Path,
    read: Callable[[bytes], tuple[Image.Image, bool]],
    root: Path,
    faults: list[Fault],
) -> Image.Image | None:
    """Decodes the file with `read` and returns its pixels.

    If that fails, adds a fault to `faults` and returns None.
    """
    try:
        return read(path.read_bytes())[0]
    except UnfitError as error:
        problem = str(error)
    except UnidentifiedImageError:
        problem = "cannot be read, it is not an image; replace the file"
    # Decoders raise many kinds of errors on broken files.
    except Exception as error:
        problem = f"cannot be read, it is damaged ({error}); replace the file"
    faults.append(Fault(relative(root, path), problem))
    return None


def _stray_values(name: str, labels: Image.Image, config: FilesConfig) -> list[Fault]:
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
        f"got {', '.join(stray)}; correct the label or the classes"
    )
    return [Fault(name, problem)]


# --- writing samples -------------------------------------------------------------


def _encode(pair: Pair) -> Sample:
    data = pair.labels.read_bytes()
    pixels, sound = pair.read_labels(data)
    labels = data if sound else encode_png(pixels)
    hw = (pixels.height, pixels.width)
    data = pair.image.read_bytes()
    pixels, sound = read_image(data, hw)
    return Sample(pair.stem, data if sound else encode_png(pixels), labels, hw)


def _encode_all(pairs: list[Pair]) -> Iterator[Sample]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(_encode, pairs)


def _cut(pairs: list[Pair]) -> Iterator[list[Pair]]:
    """Splits `pairs` into lists with about `_SHARD_BYTES` bytes of files each."""
    shard, size = [], 0
    for pair in pairs:
        size += pair.image.stat().st_size + pair.labels.stat().st_size
        shard.append(pair)
        if size >= _SHARD_BYTES:
            yield shard
            shard, size = [], 0
    if shard:
        yield shard

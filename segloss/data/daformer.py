"""Reads and writes the class counts of DAFormer's rare class sampling.

DAFormer (Hoyer et al. 2022, arXiv:2111.14887, sec. 3.3; github.com/lhoyer/DAFormer)
counts the labels of a training set with scripts in tools/convert_datasets, which write
three JSON files:

sample_class_stats.json         [{"CLASS": PIXELS, ..., "file": PATH}, ...]
sample_class_stats_dict.json    {PATH: {"CLASS": PIXELS, ...}, ...}
samples_with_class.json         {"CLASS": [[PATH, PIXELS], ...], ...}

Classes with no pixel in a sample are omitted. DAFormer's readers of GTA and Cityscapes
use only the last component of a path.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segloss.data.class_index import ClassIndex
from segloss.errors import SeglossError

_LISTED = "sample_class_stats.json"
_BY_FILE = "sample_class_stats_dict.json"
_BY_CLASS = "samples_with_class.json"
_MAX_PIXELS = np.iinfo(np.int32).max


def write_daformer(
    index: ClassIndex,
    directory: str | os.PathLike[str],
    stems: Sequence[str],
    *,
    suffix: str = ".png",
) -> None:
    """Writes a class index as the three JSON files that DAFormer's training reads.

    They are `sample_class_stats.json`, `sample_class_stats_dict.json` and
    `samples_with_class.json`.

    Args:
        index: pixel counts of each class in each sample.
        directory: existing directory for the files.
        stems: names of the samples, in the order of the index.
        suffix: ending of the label files' names after the stem; "_labelTrainIds.png"
            in DAFormer's GTA.

    Raises:
        ValueError: if the number of stems differs from the number of samples, or two
            stems are equal.
    """
    _check_stems("write_daformer", stems)
    if len(stems) != len(index.pixel_counts):
        raise SeglossError(
            f"write_daformer: stems must name {len(index.pixel_counts)} samples, "
            f"got {len(stems)}; pass the stems of the index's split."
        )
    by_file: dict[str, dict[int, int]] = {}
    by_class: dict[int, list[tuple[str, int]]] = {}
    for stem, counts in zip(stems, index.pixel_counts, strict=True):
        file, held = f"{stem}{suffix}", np.flatnonzero(counts)
        by_file[file] = dict(zip(held.tolist(), counts[held].tolist(), strict=True))
        for class_id, pixels in by_file[file].items():
            by_class.setdefault(class_id, []).append((file, pixels))
    listed = [counts | {"file": file} for file, counts in by_file.items()]
    for name, content in (
        (_LISTED, listed),
        (_BY_FILE, by_file),
        (_BY_CLASS, by_class),
    ):
        (Path(directory) / name).write_text(json.dumps(content, indent=2))


def read_daformer(
    directory: str | os.PathLike[str],
    stems: Sequence[str],
    *,
    num_classes: int,
    fingerprint: str,
    suffix: str = ".png",
) -> ClassIndex:
    """Reads a class index from DAFormer's `sample_class_stats.json`.

    DAFormer's other two files hold the same counts and are not read.

    Args:
        directory: directory of the file.
        stems: names of the samples, in the order of the returned index.
        num_classes: class ids are in `[0, num_classes)`.
        fingerprint: fingerprint of the dataset to which the stems belong.
        suffix: ending of the label files' names after the stem.

    Raises:
        ValueError: if the file is damaged, a count is out of range, or a sample is
            missing, unknown or listed twice; the message names the sample.
    """
    _check_stems("read_daformer", stems)
    path = Path(directory) / _LISTED
    rows = {f"{stem}{suffix}": row for row, stem in enumerate(stems)}
    counts = np.zeros((len(stems), num_classes), np.int32)
    classes = {str(class_id): class_id for class_id in range(num_classes)}
    read = set()
    for file, sample in _read_samples(path):
        name = file.rsplit("/", 1)[-1]
        if name not in rows or name in read:
            raise SeglossError(
                f"read_daformer: {path} must count one file STEM{suffix} per stem, got "
                f"{file} {'twice' if name in read else 'of no stem'}; "
                "pass the stems and the suffix of the set that was counted."
            )
        read.add(name)
        for key, pixels in sample.items():
            if key not in classes or not _is_count(pixels):
                raise SeglossError(
                    f"read_daformer: {path} must hold pixels of classes "
                    f"0..{num_classes - 1}, got {key!r}: {pixels!r} of {file}; "
                    "pass the number of classes of the set that was counted."
                )
            counts[rows[name], classes[key]] = pixels
    missing = [name for name in rows if name not in read]
    if missing:
        raise SeglossError(
            f"read_daformer: {path} must count every sample, {len(missing)} of "
            f"{len(stems)} are missing, {missing[0]} first; count the whole set."
        )
    return ClassIndex(counts, fingerprint)


def _read_samples(path: Path) -> list[tuple[str, dict[str, Any]]]:
    try:
        listed = json.loads(path.read_bytes())
        samples = [(sample.pop("file"), sample) for sample in listed]
        if not all(isinstance(file, str) for file, _ in samples):
            raise TypeError("a file must be a string")
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise SeglossError(
            f'read_daformer: {path} must be a list of {{"CLASS": PIXELS, "file": PATH}}'
            f", got {error!r}; write it again with DAFormer's tools/convert_datasets."
        ) from error
    return samples


def _check_stems(function: str, stems: Sequence[str]) -> None:
    seen: set[str] = set()
    for stem in stems:
        if stem in seen:
            raise SeglossError(
                f"{function}: stems must differ, got {stem!r} twice; rename one."
            )
        seen.add(stem)


def _is_count(pixels: Any) -> bool:
    return type(pixels) is int and 0 <= pixels <= _MAX_PIXELS

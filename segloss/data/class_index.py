"""Which classes each sample holds, and how many pixels of each."""

import dataclasses
import functools
import os
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int

from segloss.data.builder import make_progress

_NUM_VALUES = 256  # of an 8-bit label
_TRAILER = b"\nsegloss class index of "


@runtime_checkable
class LabelSource(Protocol):
    """Random access to `{"labels": uint8 [h, w], "stem": str}`."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Mapping[str, Any]: ...


@dataclasses.dataclass(frozen=True, eq=False)
class ClassIndex:
    """Pixel counts of each class in each sample of one split.

    Attributes:
        pixel_counts: labelled pixels of class `c` in sample `n`, in the order of the
            split's source; int32. A loaded index maps the file instead of reading it.
        fingerprint: of the dataset that was counted.
    """

    pixel_counts: Int[np.ndarray, "n c"]
    fingerprint: str

    @classmethod
    def build(
        cls,
        source: LabelSource,
        *,
        num_classes: int,
        ignore_label: int,
        fingerprint: str,
    ) -> "ClassIndex":
        """Counts the labels of every sample once.

        Args:
            source: samples; only their labels and stem are looked at.
            num_classes: class ids are `[0, num_classes)`.
            ignore_label: the label of pixels that do not count.
            fingerprint: identifies what `source` reads.

        Raises:
            ValueError: naming the sample, if a label is neither class nor ignored.
        """
        counts = np.empty((len(source), num_classes), np.int32)
        count = functools.partial(_count, source, num_classes, ignore_label)
        with make_progress() as bar, ThreadPoolExecutor(os.cpu_count()) as pool:
            rows = pool.map(count, range(len(source)))
            rows = bar.track(rows, total=len(source), description="Counting classes")
            for i, row in enumerate(rows):
                counts[i] = row
        return cls(counts, fingerprint)

    def presence(self, min_pixels: int = 1) -> Bool[np.ndarray, "n c"]:
        """True where a sample holds at least `min_pixels` (>= 1) pixels of a class."""
        if min_pixels < 1:
            raise ValueError(
                f"ClassIndex.presence: min_pixels must be >= 1, got {min_pixels}."
            )
        return np.asarray(self.pixel_counts >= min_pixels)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the index, whole or not at all.

        The file is a .npy array, which any numpy reads, followed by the fingerprint.
        """
        path = Path(path)
        unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            with unfinished.open("wb") as file:
                np.save(file, np.asarray(self.pixel_counts))
                file.write(_TRAILER + self.fingerprint.encode() + b"\n")
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], fingerprint: str | None = None
    ) -> "ClassIndex":
        """Maps a saved index into memory.

        Args:
            path: what `save` wrote.
            fingerprint: that of the dataset at hand; None takes whatever is stored.

        Raises:
            ValueError: if the file is damaged, or belongs to another dataset.
        """
        try:
            counts = np.load(path, mmap_mode="r")
            with open(path, "rb") as file:
                file.seek(counts.offset + counts.nbytes)
                trailer = file.read()
            if not (trailer.startswith(_TRAILER) and trailer.endswith(b"\n")):
                raise ValueError("it does not end in a fingerprint")
        except (ValueError, EOFError) as error:
            raise ValueError(
                f"ClassIndex.load: {path} is damaged ({error}); "
                "delete it, and it is made anew."
            ) from error
        stored = trailer.removeprefix(_TRAILER).decode().strip()
        if fingerprint not in (None, stored):
            raise ValueError(
                f"ClassIndex.load: {path} counts the dataset {stored}, "
                f"but this is {fingerprint}; delete it, and it is made anew."
            )
        return cls(counts, stored)


def _count(
    source: LabelSource, num_classes: int, ignore_label: int, i: int
) -> Int[np.ndarray, " c"]:
    sample = source[i]
    counts = np.bincount(sample["labels"].ravel(), minlength=_NUM_VALUES)
    stray = [
        int(value)
        for value in np.flatnonzero(counts)
        if value >= num_classes and value != ignore_label
    ]
    if stray:
        raise ValueError(
            f"ClassIndex.build: labels of {sample['stem']} must be < {num_classes} "
            f"or ignore_label {ignore_label}, got {stray}."
        )
    counts[ignore_label] = 0
    return counts[:num_classes]

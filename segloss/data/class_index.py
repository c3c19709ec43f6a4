"""Which classes each sample holds, and how many pixels of each."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int
from PIL import Image

from segloss.data.builder import make_progress
from segloss.writing import replacing

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
        """Counts the labels of every sample once; the arguments are `LabelCounter`'s.

        Raises:
            ValueError: naming the sample, if its labels are no uint8 [h, w], or one is
                neither class nor ignored.
        """
        counter = LabelCounter(source, num_classes, ignore_label, fingerprint)
        return cls(counter.count(), fingerprint)

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
        with replacing(path) as unfinished, unfinished.open("wb") as file:
            np.save(file, np.asarray(self.pixel_counts))
            file.write(_TRAILER + self.fingerprint.encode() + b"\n")

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        fingerprint: str | None = None,
        shape: tuple[int, int] | None = None,
    ) -> "ClassIndex":
        """Maps a saved index into memory.

        Args:
            path: what `save` wrote.
            fingerprint: that of the dataset at hand; None takes whatever is stored.
            shape: its number of samples and of classes; None takes any.

        Raises:
            ValueError: if the file is damaged, or belongs to another dataset.
        """

        def refuse(problem: str) -> ValueError:
            return ValueError(
                f"ClassIndex.load: {path} {problem}; delete it, and it is made anew."
            )

        try:
            counts = np.lib.format.open_memmap(path, mode="r")
            with open(path, "rb") as file:
                file.seek(counts.offset + counts.nbytes)
                trailer = file.read()
            if not (trailer.startswith(_TRAILER) and trailer.endswith(b"\n")):
                raise ValueError("it does not end in a fingerprint")
            stored = trailer.removeprefix(_TRAILER).decode().strip()
        except (ValueError, EOFError) as error:
            # numpy takes several lines for some headers.
            reason = " ".join(str(error).split())
            raise refuse(f"is damaged ({reason})") from error
        if counts.ndim != 2 or counts.dtype != np.int32:
            raise refuse(
                f"must hold int32 [samples, classes], got {counts.dtype} "
                f"{list(counts.shape)}"
            )
        if fingerprint not in (None, stored):
            raise refuse(f"counts the dataset {stored}, but this is {fingerprint}")
        if shape not in (None, counts.shape):
            raise refuse(
                "must count {} samples of {} classes, got {} of {}".format(
                    *shape, *counts.shape
                )
            )
        return cls(counts, stored)


@dataclasses.dataclass(frozen=True, eq=False)
class LabelCounter:
    """Counts the labels of one split part by part; no image is decoded.

    With `parts_dir` every finished part is kept there, whole or not at all, so that a
    count that was killed goes on where it stopped, and several processes may share one.

    Attributes:
        source: samples; only their labels and stem are looked at.
        num_classes: class ids are `[0, num_classes)`.
        ignore_label: the label of pixels that do not count.
        fingerprint: identifies what `source` reads and the two numbers above.
        parts_dir: a directory for the parts; None keeps nothing.
    """

    source: LabelSource
    num_classes: int
    ignore_label: int
    fingerprint: str
    parts_dir: Path | None = None

    @property
    def parts(self) -> list[range]:
        """The samples of each part: at most 1000 parts, none too small for a file."""
        n = len(self.source)
        size = max(128, -(-n // 1000))
        return [range(start, min(start + size, n)) for start in range(0, n, size)]

    def count(self) -> Int[np.ndarray, "n c"]:
        """Counts what is not in `parts_dir` yet, and returns the counts of all samples.

        Raises:
            ValueError: naming the sample, if its labels are no uint8 [h, w], or one is
                neither class nor ignored.
        """
        if self.parts_dir is not None:
            self.parts_dir.mkdir(parents=True, exist_ok=True)
        n = len(self.source)
        counts = np.empty((n, self.num_classes), np.int32)
        # Not processes: PIL decodes and counts without the interpreter's lock.
        with make_progress() as bar, ThreadPoolExecutor(os.cpu_count()) as pool:
            task = bar.add_task("Counting classes", total=n)
            for part in self.parts:
                counts[part.start : part.stop] = self.count_part(part, pool.map)
                bar.advance(task, len(part))
        return counts

    def count_part(self, part: range, map: Callable = map) -> Int[np.ndarray, "m c"]:
        """Counts the samples `part`, or reads them from `parts_dir`.

        Args:
            part: one of `parts`.
            map: applies a function to each sample.
        """
        if self.parts_dir is None:
            return self._count_samples(part, map)
        path = self.parts_dir / f"{part.start}.npy"
        # A part that is damaged or of other data is counted again.
        with contextlib.suppress(ValueError, FileNotFoundError):
            shape = len(part), self.num_classes
            return ClassIndex.load(path, self.fingerprint, shape).pixel_counts
        counts = self._count_samples(part, map)
        # Another process that has counted all removes the directory.
        with contextlib.suppress(FileNotFoundError):
            ClassIndex(counts, self.fingerprint).save(path)
        return counts

    def _count_samples(self, part: range, map: Callable) -> Int[np.ndarray, "m c"]:
        return np.stack(list(map(self._count_sample, part)))

    def _count_sample(self, i: int) -> Int[np.ndarray, " c"]:
        sample = self.source[i]
        labels = sample["labels"]
        if labels.dtype != np.uint8 or labels.ndim != 2:
            raise ValueError(
                f"ClassIndex.build: labels of {sample['stem']} must be uint8 [h, w], "
                f"got {labels.dtype} {list(labels.shape)}."
            )
        # Twice as fast as numpy's bincount, which makes int64 of the labels first.
        counts = np.array(Image.fromarray(labels).histogram(), np.int32)
        stray = [
            int(value)
            for value in np.flatnonzero(counts)
            if value >= self.num_classes and value != self.ignore_label
        ]
        if stray:
            raise ValueError(
                f"ClassIndex.build: labels of {sample['stem']} must be < "
                f"{self.num_classes} or ignore_label {self.ignore_label}, got {stray}."
            )
        counts[self.ignore_label] = 0
        return counts[: self.num_classes]

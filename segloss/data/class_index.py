"""The class index: pixel counts of each class in each sample of a split."""

import contextlib
import dataclasses
import hashlib
import os
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int, Int32, UInt
from PIL import Image

from segloss.console import make_progress
from segloss.data.loading.windows import Windows
from segloss.errors import SeglossError, printable
from segloss.writing import replacing

_TRAILER = b"\nsegloss class index of "
_DIGEST = re.compile(rb"\nSHA-256 ([0-9a-f]{64})\n")
_DIGEST_BYTES = 74


@runtime_checkable
class LabelSource(Protocol):
    """Samples by position: `source[i]` is `{"labels": integers [h, w], "stem": name}`.

    Labels are uint8 or uint16.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Mapping[str, Any]: ...


@dataclasses.dataclass(frozen=True, eq=False)
class ClassIndex:
    """Pixel counts of each class in each sample of one split.

    Attributes:
        pixel_counts: int32; row `n`, column `c` is the number of pixels of class `c` in
            sample `n` of the split. A loaded index memory-maps the file.
        fingerprint: text that identifies the samples and how they were counted.

    >>> import numpy as np
    >>> index = ClassIndex(np.array([[9, 0], [5, 4]], np.int32), fingerprint="toy")
    >>> index.presence(min_pixels=5)
    array([[ True, False],
           [ True, False]])
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
        """Counts the pixels of each class in every sample.

        Args:
            source: samples; only their labels and stems are used.
            num_classes: class ids are in `[0, num_classes)`.
            ignore_label: label of pixels that do not count.
            fingerprint: text that identifies the dataset; stored in the index.

        Raises:
            ValueError: if the labels of a sample are not uint8 or uint16 [h, w], or a
                label is neither a class id nor `ignore_label`; the message names the
                sample.
        """
        counter = LabelCounter(source, num_classes, ignore_label, fingerprint)
        return cls(counter.count(), fingerprint)

    def presence(self, min_pixels: int = 1) -> Bool[np.ndarray, "n c"]:
        """Returns True where a sample has at least `min_pixels` pixels of a class.

        Raises:
            ValueError: if `min_pixels` is less than 1.
        """
        if min_pixels < 1:
            raise SeglossError(
                f"ClassIndex.presence: min_pixels must be >= 1, got {min_pixels}."
            )
        return np.asarray(self.pixel_counts >= min_pixels)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the index to `path`; an existing file is replaced atomically.

        The file is a .npy array that `np.load` reads, followed by the fingerprint and
        a digest of all that precedes it.
        """
        with replacing(path) as unfinished:
            with unfinished.open("wb") as file:
                np.save(file, np.asarray(self.pixel_counts))
                file.write(_TRAILER + self.fingerprint.encode())
            with unfinished.open("r+b") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                file.write(f"\nSHA-256 {digest}\n".encode())

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        fingerprint: str | None = None,
        shape: tuple[int, int] | None = None,
    ) -> "ClassIndex":
        """Opens an index that `save` wrote, and memory-maps its counts.

        The file is read once and compared with its digest, which only those that
        earlier versions wrote lack.

        Args:
            path: file written by `save`.
            fingerprint: expected fingerprint; None accepts any.
            shape: expected numbers of samples and of classes; None accepts any.

        Raises:
            ValueError: if the file is damaged, or its fingerprint or shape differs from
                the expected one.
        """

        def refuse(problem: str) -> SeglossError:
            return SeglossError(
                f"ClassIndex.load: {path} {problem}; delete it to have it made again."
            )

        try:
            digest = _find_digest(path)
            counts = np.lib.format.open_memmap(path, mode="r")
            with open(path, "rb") as file:
                file.seek(counts.offset + counts.nbytes)
                trailer = file.read()
            if not (trailer.startswith(_TRAILER) and trailer.endswith(b"\n")):
                raise SeglossError("it does not end in a fingerprint")
            trailer = trailer.removeprefix(_TRAILER).removesuffix(digest)
            stored = " ".join(trailer.decode().split())
        except OSError:
            raise
        # NumPy raises many kinds of errors, in several lines, on damaged headers.
        except Exception as error:
            reason = printable(" ".join(str(error).split()))
            raise refuse(f"is damaged ({reason[:200]})") from error
        if counts.ndim != 2 or counts.dtype != np.int32:
            raise refuse(
                f"must hold int32 [samples, classes], got {counts.dtype} "
                f"{list(counts.shape)}"
            )
        if fingerprint not in (None, stored):
            stored = printable(stored)
            raise refuse(f"belongs to dataset {stored}, but this is {fingerprint}")
        if shape not in (None, counts.shape):
            raise refuse(
                "must count {} samples of {} classes, got {} of {}".format(
                    *shape, *counts.shape
                )
            )
        return cls(counts, stored)


def _find_digest(path: str | os.PathLike[str]) -> bytes:
    """Returns the last line of an index, which holds the SHA-256 of all before it.

    Returns b"" if the file has none.

    Raises:
        SeglossError: if the file has another digest.
    """
    size = os.path.getsize(path)
    left = max(0, size - _DIGEST_BYTES)
    with open(path, "rb") as file:
        file.seek(left)
        line = file.read()
        if not (stored := _DIGEST.fullmatch(line)):
            return b""
        file.seek(0)
        digest = hashlib.sha256()
        while part := file.read(min(left, 1 << 20)):
            digest.update(part)
            left -= len(part)
    if digest.hexdigest().encode() != stored[1]:
        raise SeglossError("its contents have changed since it was written")
    return line


@dataclasses.dataclass(frozen=True, eq=False)
class LabelCounter:
    """Counts the pixels of each class in the samples of a split, without their images.

    If `parts_dir` is given, every finished part (a range of samples) is saved there
    atomically. A count that was killed then resumes where it stopped, and several
    processes can share the work.

    Attributes:
        source: samples; only their labels and stems are used.
        num_classes: class ids are in `[0, num_classes)`.
        ignore_label: label of pixels that do not count.
        fingerprint: text that identifies all that affects the counts.
        parts_dir: directory for the counts of finished parts; None saves none.
        windows: if given, only classes that one random crop can hold together are
            counted, by their pixels in it; see `Windows.keepable`.
    """

    source: LabelSource
    num_classes: int
    ignore_label: int
    fingerprint: str
    parts_dir: Path | None = None
    windows: Windows | None = None

    @property
    def parts(self) -> list[range]:
        """Ranges of samples that are counted and saved as one unit.

        There are at most 1000; each has at least 128 samples, except for the last.
        """
        n = len(self.source)
        size = max(128, -(-n // 1000))
        return [range(start, min(start + size, n)) for start in range(0, n, size)]

    def count(self) -> Int[np.ndarray, "n c"]:
        """Returns the pixels of each class in every sample.

        Parts (ranges of samples) in `parts_dir` are read; others are saved there.

        Raises:
            ValueError: if the labels of a sample are not uint8 or uint16 [h, w], or a
                label is neither a class id nor `ignore_label`; the message names the
                sample.
        """
        if self.parts_dir is not None:
            self.parts_dir.mkdir(parents=True, exist_ok=True)
        n = len(self.source)
        counts = np.empty((n, self.num_classes), np.int32)
        # Threads suffice: PIL releases the GIL when it decodes and counts.
        with (
            make_progress(transient=True) as bar,
            ThreadPoolExecutor(os.cpu_count()) as pool,
        ):
            what = "Finding windows" if self.windows else "Counting classes"
            task = bar.add_task(what, total=n)
            for part in self.parts:
                counts[part.start : part.stop] = self.count_part(part, pool.map)
                bar.advance(task, len(part))
        return counts

    def count_part(self, part: range, map: Callable = map) -> Int[np.ndarray, "m c"]:
        """Returns the pixels of each class in each sample of `part`.

        They are read from `parts_dir` if possible, else counted and saved there.

        Args:
            part: an element of `parts`.
            map: used instead of `map` over the samples, such as a thread pool's `map`.
        """
        if self.parts_dir is None:
            return self._count_samples(part, map)
        path = self.parts_dir / f"{part.start}.npy"
        # A part that is damaged or belongs to other data is counted again.
        with contextlib.suppress(ValueError, FileNotFoundError):
            shape = len(part), self.num_classes
            return ClassIndex.load(path, self.fingerprint, shape).pixel_counts
        counts = self._count_samples(part, map)
        # Another process removes the directory once all parts are counted.
        with contextlib.suppress(FileNotFoundError):
            ClassIndex(counts, self.fingerprint).save(path)
        return counts

    def _count_samples(self, part: range, map: Callable) -> Int[np.ndarray, "m c"]:
        return np.stack(list(map(self._count_sample, part)))

    def _count_sample(self, i: int) -> Int[np.ndarray, " c"]:
        sample = self.source[i]
        labels = sample["labels"]
        if labels.dtype not in (np.uint8, np.uint16) or labels.ndim != 2:
            raise SeglossError(
                f"ClassIndex.build: labels of {sample['stem']} must be uint8 or "
                f"uint16 [h, w], got {labels.dtype} {list(labels.shape)}."
            )
        counts = self._histogram(labels)
        stray = [
            int(value)
            for value in np.flatnonzero(counts)
            if value >= self.num_classes and value != self.ignore_label
        ]
        if stray:
            raise SeglossError(
                f"ClassIndex.build: labels of {sample['stem']} must be < "
                f"{self.num_classes} or ignore_label {self.ignore_label}, got {stray}."
            )
        if self.windows is not None:
            return self.windows.keepable(labels, self.num_classes, self.ignore_label)
        counts[self.ignore_label] = 0
        return counts[: self.num_classes]

    def _histogram(self, labels: UInt[np.ndarray, "h w"]) -> Int32[np.ndarray, " n"]:
        if labels.dtype == np.uint8 and max(self.num_classes, self.ignore_label) < 256:
            # Twice as fast as NumPy's bincount, which first converts labels to int64.
            return np.array(Image.fromarray(labels).histogram(), np.int32)
        size = max(self.num_classes, self.ignore_label + 1)
        return np.bincount(labels.ravel(), minlength=size).astype(np.int32)

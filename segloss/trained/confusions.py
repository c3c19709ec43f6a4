"""Stores the confusion matrix of each image of a split on disk."""

import os
import zipfile
from collections.abc import Iterable, Iterator
from typing import BinaryIO

import numpy as np
from jaxtyping import Int

from segloss import hosts

# A process sends its counts in parts of about this size.
_PART_BYTES = 2**20
_CELL = np.dtype([("place", np.int32), ("pixels", np.int32)])


class ConfusionStore:
    """Collects confusion matrices image by image and writes them as one array.

    A split of 100,000 images and 150 classes has 9 GB of counts, most of which are 0.
    The store keeps the other counts in a file, so memory holds one matrix at a time.

    Args:
        file: an empty file, open for reading and writing, that only the store uses.
        num_images: number of images in the split.
        num_classes: number of rows and columns of each matrix.
    """

    def __init__(self, file: BinaryIO, num_images: int, num_classes: int):
        self._file = file
        self._shape = (num_images, num_classes, num_classes)
        # First byte and number of cells of each image.
        self._spans = np.zeros((num_images, 2), np.int64)

    def add(self, ids: Iterable[int], confusions: Int[np.ndarray, "b c c"]) -> None:
        """Stores the matrices of the images at the positions `ids` in the split."""
        for i, confusion in zip(ids, confusions, strict=True):
            places = np.flatnonzero(confusion)
            cells = np.empty(len(places), _CELL)
            cells["place"] = places
            cells["pixels"] = confusion.ravel()[places]
            self._append(i, cells.tobytes())

    def gather(self) -> None:
        """Moves what the stores of all processes hold to that of the first process.

        All processes must call it, after the last `add`. They send a few images at a
        time.
        """
        hosts.send_to_first(self._parts(), self._add_part)

    def _append(self, i: int, cells: bytes) -> None:
        self._file.seek(0, os.SEEK_END)
        self._spans[i] = self._file.tell(), len(cells) // _CELL.itemsize
        self._file.write(cells)

    def _read(self, i: int) -> bytes:
        start, count = self._spans[i]
        self._file.seek(start)
        return self._file.read(count * _CELL.itemsize)

    def _parts(self) -> Iterator[bytes]:
        """Yields the images with counts in parts.

        A part is, in int64, the number of its images, and the position and number of
        cells of each one; then their cells.
        """
        sizes = self._spans[:, 1] * _CELL.itemsize
        part_of = np.cumsum(sizes) // _PART_BYTES
        for part in np.unique(part_of):
            ids = np.flatnonzero((part_of == part) & (sizes > 0))
            if len(ids):
                head = [len(ids), *ids, *self._spans[ids, 1]]
                cells = map(self._read, ids)
                yield np.array(head, np.int64).tobytes() + b"".join(cells)

    def _add_part(self, sender: int, part: bytes) -> None:
        start = 8 + 16 * int(np.frombuffer(part, np.int64, 1)[0])
        ids, counts = np.frombuffer(part[8:start], np.int64).reshape(2, -1)
        for i, count in zip(ids, counts, strict=True):
            stop = start + int(count) * _CELL.itemsize
            self._append(i, part[start:stop])
            start = stop

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes `per_image`, int32 `[n, c, c]`, to an .npz file for `np.load`.

        Matrices that were not added are zero. Call once, after the last `add`.
        """
        header = {
            "descr": np.lib.format.dtype_to_descr(np.dtype(np.int32)),
            "fortran_order": False,
            "shape": self._shape,
        }
        with (
            zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
            archive.open("per_image.npy", "w", force_zip64=True) as array,
        ):
            np.lib.format.write_array_header_1_0(array, header)
            for i in range(len(self._spans)):
                cells = np.frombuffer(self._read(i), _CELL)
                confusion = np.zeros(self._shape[1:], np.int32)
                confusion.ravel()[cells["place"]] = cells["pixels"]
                array.write(confusion.tobytes())

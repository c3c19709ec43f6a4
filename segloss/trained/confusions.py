"""Stores the confusion matrix of each image of a split on disk."""

import os
import zipfile
from collections.abc import Iterable
from typing import BinaryIO

import numpy as np
from jaxtyping import Int

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
            self._spans[i] = self._file.tell(), len(cells)
            self._file.write(cells.tobytes())

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
            for start, count in self._spans:
                self._file.seek(start)
                cells = np.frombuffer(self._file.read(count * _CELL.itemsize), _CELL)
                confusion = np.zeros(self._shape[1:], np.int32)
                confusion.ravel()[cells["place"]] = cells["pixels"]
                array.write(confusion.tobytes())

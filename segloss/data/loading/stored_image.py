"""An encoded image of a dataset, decoded only where it is needed."""

import math
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from io import BytesIO

import numpy as np
from PIL import Image

from segloss.errors import SeglossError

# Returns a context manager that turns any error inside it into one naming the sample.
FaultsNamed = Callable[[], AbstractContextManager[None]]


class StoredImage:
    """An encoded image that is decoded when it is sliced.

    Pillow decodes to 4 bytes per pixel. Only the slice is copied from there to NumPy,
    which for a large image takes less than half the memory of slicing an array. Errors
    of the decoder pass through the context manager that `faults_named` returns.

    Attributes:
        shape: height, width and number of channels; without the last if it is 1.
    """

    def __init__(self, data: bytes, faults_named: FaultsNamed):
        self._faults_named = faults_named
        with faults_named():
            # TFDS would use OpenCV if it is installed, which decodes differently.
            self._image = Image.open(BytesIO(data))
        channels = len(self._image.getbands())
        self.shape = (*self._image.size[::-1], channels)[: 2 + (channels > 1)]

    def __getitem__(self, slices: tuple[slice, slice]) -> np.ndarray:
        """Decodes the image, and returns the rows and columns of two slices.

        Raises:
            BadSampleError: if the image cannot be decoded.
        """
        (top, bottom, _), (left, right, _) = (
            part.indices(size) for part, size in zip(slices, self.shape, strict=False)
        )
        with self._faults_named():
            if (bottom - top, right - left) == self.shape[:2]:
                return np.asarray(self._image)
            return np.asarray(self._image.crop((left, top, right, bottom)))


class StoredArray:
    """A compressed array of TFDS that is decompressed when it is sliced.

    Decompression stops after the last row of the slice. Errors pass through the context
    manager that `faults_named` returns.

    Attributes:
        shape: height, width and number of bands.
        dtype: type of the values.
    """

    def __init__(
        self,
        data: bytes,
        shape: tuple[int, ...],
        dtype: np.dtype,
        faults_named: FaultsNamed,
    ):
        self._data = data
        self._faults_named = faults_named
        self.shape = shape
        self.dtype = dtype

    def __getitem__(self, slices: tuple[slice, slice]) -> np.ndarray:
        """Decompresses the array, and returns the rows and columns of two slices.

        Raises:
            BadSampleError: if the data are damaged.
        """
        rows, columns = slices
        _, bottom, _ = rows.indices(self.shape[0])
        shape = bottom, *self.shape[1:]
        size = math.prod(shape) * self.dtype.itemsize
        with self._faults_named():
            # A size of 0 would mean no limit.
            values = zlib.decompressobj().decompress(self._data, max(size, 1))
            if len(values) != size:
                raise SeglossError(f"its data end after {len(values)} of {size} bytes")
            return np.frombuffer(values, self.dtype).reshape(shape)[rows, columns]

"""Reads the samples of a dataset that segloss wrote."""

import contextlib
import functools
import io
import operator
import os
from collections.abc import Iterator
from typing import Any, SupportsIndex

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image, UnidentifiedImageError
from tensorflow_datasets.proto import tf_example_pb2

from segloss.data.loading.batches import BadSampleError
from segloss.data.loading.stored_image import StoredArray, StoredImage
from segloss.errors import SeglossError

# Fields in which TFDS stores an array.
_PARTS = ("shape", "value")


class SampleSource:
    """Random access to the samples of one split of a prepared dataset; picklable.

    `source[i]` is `{"image": [h, w, n], "labels": [h, w], "stem": str}`, with the bands
    and types of the dataset. With `images=False` the image is neither decoded nor
    included.

    Indexing raises `BadSampleError` if that sample cannot be decoded, and ValueError if
    a record file is damaged.
    """

    def __init__(self, data_dir: str | os.PathLike[str], split: str, *, images: bool):
        self.split = split
        self._data_dir = os.fspath(data_dir)
        builder = tfds.builder_from_directory(os.fspath(data_dir))
        self._records = builder.as_data_source(
            split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
        # Types of the fields that are stored as arrays; others are image files.
        self._dtypes = {
            name: np.dtype(feature.np_dtype)
            for name, feature in builder.info.features.items()
            if type(feature) is tfds.features.Tensor
        }
        arrays = {f"{name}/{part}" for name in self._dtypes for part in _PARTS}
        self._keys = {"image", "labels", "stem"} - self._dtypes.keys() | arrays
        self._images = images

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, i: SupportsIndex) -> dict[str, Any]:
        sample = self.opened(i)
        if self._images:
            sample["image"] = sample["image"][:, :]
        return sample

    def opened(self, i: SupportsIndex) -> dict[str, Any]:
        """Returns sample i with its image as a `StoredImage`, decoded when sliced."""
        fields = self._read(operator.index(i))
        stem = fields["stem"].decode()
        if "labels" in self._dtypes:
            labels = self._open_array("labels", fields, stem)[:, :][..., 0]
        else:
            with self._faults_named("labels", stem):
                labels = np.asarray(Image.open(io.BytesIO(fields["labels"])))
        sample = {"labels": labels, "stem": stem}
        if self._images and "image" in self._dtypes:
            sample["image"] = self._open_array("image", fields, stem)
        elif self._images:
            faults_named = functools.partial(self._faults_named, "image", stem)
            sample["image"] = StoredImage(fields["image"], faults_named)
        return sample

    def _open_array(self, name: str, fields: dict[str, Any], stem: str) -> StoredArray:
        return StoredArray(
            fields[f"{name}/value"],
            fields[f"{name}/shape"],
            self._dtypes[name],
            functools.partial(self._faults_named, name, stem),
        )

    def label_hw(self, i: SupportsIndex) -> tuple[int, int]:
        """Returns height and width of the labels of sample i without decoding them."""
        fields = self._read(operator.index(i))
        if "labels" in self._dtypes:
            return fields["labels/shape"][:2]
        with self._faults_named("labels", fields["stem"].decode()):
            return Image.open(io.BytesIO(fields["labels"])).size[::-1]

    def _read(self, i: int) -> dict[str, Any]:
        """Returns the bytes, or a tuple of integers, of each field of record i."""
        if not 0 <= i < len(self):
            raise IndexError(f"SampleSource: must be in [0, {len(self)}), got {i}.")
        try:
            example = tf_example_pb2.Example.FromString(self._records[i])
            fields = {
                key: feature.bytes_list.value[0]
                if feature.HasField("bytes_list")
                else tuple(feature.int64_list.value)
                for key, feature in example.features.feature.items()
            }
            # A file truncated between two blocks is read as other bytes, silently.
            if fields.keys() != self._keys:
                raise SeglossError("a record is not a sample")
        # The reader raises RuntimeError, the parser DecodeError.
        except Exception as error:
            raise SeglossError(
                f"{self._data_dir}: sample {i} of split {self.split!r} cannot be read, "
                f"its file is damaged ({error}); delete that directory to prepare the "
                "dataset again."
            ) from error
        return fields

    @contextlib.contextmanager
    def _faults_named(self, kind: str, stem: str) -> Iterator[None]:
        try:
            yield
        # Decoders raise many kinds of errors on broken bytes.
        except Exception as error:
            # Pillow's message has a memory address, so a warning would be repeated.
            unknown = isinstance(error, UnidentifiedImageError)
            raise BadSampleError(
                f"{kind} of sample {stem!r} of split {self.split!r} cannot be decoded "
                f"({'it is not an image' if unknown else error})."
            ) from error

"""Reads the samples of a dataset that segloss wrote."""

import functools
import io
import os
from typing import Any, SupportsIndex

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from segloss.data.datasets.record_source import RecordSource
from segloss.data.loading.stored_image import StoredArray, StoredImage
from segloss.errors import SeglossError

# Fields in which TFDS stores an array.
_PARTS = ("shape", "value")


class SampleSource(RecordSource):
    """Random access to the samples of one split of a prepared dataset; picklable.

    `source[i]` is `{"image": [h, w, n], "labels": [h, w], "stem": str}`, with the bands
    and types of the dataset. With `images=False` the image is neither decoded nor
    included.

    Indexing raises `BadSampleError` if that sample cannot be used, and SeglossError if
    a record file is damaged.
    """

    def __init__(self, data_dir: str | os.PathLike[str], split: str, *, images: bool):
        directory = os.fspath(data_dir)
        builder = tfds.builder_from_directory(directory)
        records = builder.as_data_source(
            split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
        super().__init__(directory, split, records, images=images)
        # Types of the fields that are stored as arrays; others are image files.
        self._dtypes = {
            name: np.dtype(feature.np_dtype)
            for name, feature in builder.info.features.items()
            if type(feature) is tfds.features.Tensor
        }
        arrays = {f"{name}/{part}" for name in self._dtypes for part in _PARTS}
        self._keys = {"image", "labels", "stem"} - self._dtypes.keys() | arrays

    def opened(self, i: SupportsIndex) -> dict[str, Any]:
        """Returns sample i with its image as a `StoredImage`, decoded when sliced."""
        fields = self._parsed(i, self._parse)
        stem = fields["stem"].decode()
        if "labels" in self._dtypes:
            labels = self._open_array("labels", fields, stem)[:, :][..., 0]
        else:
            with self.faults_named("labels", stem):
                labels = np.asarray(Image.open(io.BytesIO(fields["labels"])))
        sample = {"labels": labels, "stem": stem}
        if self._images and "image" in self._dtypes:
            sample["image"] = self._open_array("image", fields, stem)
        elif self._images:
            faults_named = functools.partial(self.faults_named, "image", stem)
            sample["image"] = StoredImage(fields["image"], faults_named)
        return sample

    def _open_array(self, name: str, fields: dict[str, Any], stem: str) -> StoredArray:
        return StoredArray(
            fields[f"{name}/value"],
            fields[f"{name}/shape"],
            self._dtypes[name],
            functools.partial(self.faults_named, name, stem),
        )

    def label_hw(self, i: SupportsIndex) -> tuple[int, int]:
        """Returns height and width of the labels of sample i without decoding them."""
        fields = self._parsed(i, self._parse)
        if "labels" in self._dtypes:
            return fields["labels/shape"][:2]
        with self.faults_named("labels", fields["stem"].decode()):
            return Image.open(io.BytesIO(fields["labels"])).size[::-1]

    def _parse(self, record: bytes) -> dict[str, Any]:
        """Returns the bytes, or a tuple of integers, of each field of a record."""
        example = tf_example_pb2.Example.FromString(record)
        fields = {
            key: feature.bytes_list.value[0]
            if feature.HasField("bytes_list")
            else tuple(feature.int64_list.value)
            for key, feature in example.features.feature.items()
        }
        # A file truncated between two blocks is read as other bytes, silently.
        if fields.keys() != self._keys:
            raise SeglossError("a record is not a sample")
        return fields

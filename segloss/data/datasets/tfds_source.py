"""Random access to the samples of a dataset that TFDS has prepared."""

import dataclasses
import functools
import io
import operator
from typing import Any, SupportsIndex

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Integer, UInt8
from PIL import Image
from tensorflow_datasets.core.example_parser import ExampleParserNp

from segloss.data.datasets.record_source import RecordSource
from segloss.data.decoding.images import read_image
from segloss.data.decoding.label_values import LabelValues, as_values
from segloss.data.decoding.labels import read_labels
from segloss.data.loading.stored_image import StoredImage
from segloss.errors import SeglossError

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = 1


@dataclasses.dataclass(frozen=True)
class Stored:
    """Where the samples of a prepared dataset are, and what of them is read.

    Attributes:
        directory: directory with the record files and `dataset_info.json`.
        splits: the split of TFDS that each split stands for, such as "train[:90%]".
        image: name of the feature that is the image.
        labels: name of the feature that is the label image.
        stem: name of the text feature that names a sample; None names it by position.
        label_values: how stored labels become class ids.
    """

    directory: str
    splits: dict[str, str]
    image: str
    labels: str
    stem: str | None
    label_values: LabelValues

    def open_source(self, split: str, *, images: bool = True) -> "TfdsSource":
        """Opens the samples of a split; `images=False` omits their images."""
        return TfdsSource(self, split, images=images)


class TfdsSource(RecordSource):
    """Random access to the samples of one split; picklable.

    `source[i]` is `{"image": uint8 [h, w, 3], "labels": uint8 [h, w], "stem": str}`;
    the labels of more than 255 classes are uint16. With `images=False` the image is
    neither decoded nor included. Encoded images are decoded by Pillow, which keeps the
    indices of palette images.

    Indexing raises `BadSampleError` if that sample cannot be decoded or its labels hold
    a value that is neither of a class nor void, and SeglossError if a record file is
    damaged.
    """

    def __init__(self, stored: Stored, split: str, *, images: bool):
        builder = tfds.builder_from_directory(stored.directory)
        records = builder.as_data_source(
            stored.splits[split],
            deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES,
        )
        super().__init__(stored.directory, split, records, images=images)
        self._stored = stored
        self._labels = builder.info.features[stored.labels]
        names = {stored.labels, *([stored.image] if images else [])}
        names |= {stored.stem} - {None}
        self._parser = ExampleParserNp(
            {k: builder.info.features[k].get_serialized_info() for k in names}
        )

    def opened(self, i: SupportsIndex) -> dict[str, Any]:
        """Returns sample i; a JPEG is a `StoredImage`, which is decoded when sliced."""
        stem, fields = self._read(i)
        with self.faults_named("labels", stem):
            labels = self._decode(fields)
        sample = {"labels": labels, "stem": stem}
        if self._images:
            faults_named = functools.partial(self.faults_named, "image", stem)
            data = fields[self._stored.image]
            with faults_named():
                image = _open_rgb(data, labels.shape)
            sample["image"] = (
                StoredImage(data, faults_named) if image is None else image
            )
        return sample

    def label_hw(self, i: SupportsIndex) -> tuple[int, int]:
        """Returns height and width of the labels of sample i without decoding them."""
        stem, fields = self._read(i)
        with self.faults_named("labels", stem):
            data = fields[self._stored.labels]
            if isinstance(data, bytes):
                return Image.open(io.BytesIO(data)).size[::-1]
            return self._labels.decode_example_np(data).shape[:2]

    def _decode(self, fields: dict[str, Any]) -> Integer[np.ndarray, "h w"]:
        """Returns the class ids of an encoded label image, or of a tensor."""
        data, values = fields[self._stored.labels], self._stored.label_values
        if isinstance(self._labels, tfds.features.Image):
            return read_labels(data, values).ids
        labels = self._labels.decode_example_np(data)
        if labels.ndim == 3:
            labels = labels[..., 0]
        return values.of_values(as_values(labels))

    def _read(self, i: SupportsIndex) -> tuple[str, dict[str, Any]]:
        """Returns the name and the stored features of sample i."""
        fields = self._parsed(i, self._parse)
        key = self._stored.stem
        return str(operator.index(i)) if key is None else fields[key].decode(), fields

    def _parse(self, record: bytes) -> dict[str, Any]:
        fields = self._parser.parse_example(record)
        fields[self._stored.labels]  # absent from a damaged record
        return fields


def _open_rgb(
    data: bytes, label_hw: tuple[int, int]
) -> UInt8[np.ndarray, "h w 3"] | None:
    """Decodes an image of 1 or 3 channels to RGB; None if it is an upright RGB JPEG."""
    with Image.open(io.BytesIO(data)) as image:
        upright = image.getexif().get(_EXIF_ORIENTATION, _UPRIGHT) == _UPRIGHT
        if (image.format, image.mode, upright) == ("JPEG", "RGB", True):
            return None
        if len(image.getbands()) not in (1, 3):
            raise SeglossError(f"must have 1 or 3 channels, got mode {image.mode}")
    return np.asarray(read_image(data, label_hw)[0])

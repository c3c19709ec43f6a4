"""Random access to the samples of a dataset that TFDS has prepared."""

import contextlib
import dataclasses
import functools
import io
import operator
from collections.abc import Iterator
from typing import Any, SupportsIndex

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int, UInt8, UInt16
from PIL import Image, UnidentifiedImageError
from tensorflow_datasets.core.example_parser import ExampleParserNp

from segloss.data.decoding.images import read_image
from segloss.data.decoding.labels import read_labels
from segloss.data.loading.batches import BadSampleError
from segloss.data.loading.stored_image import StoredImage
from segloss.errors import SeglossError

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = 1
_STRAY = -1


@dataclasses.dataclass(frozen=True)
class StoredLabels:
    """How the values in stored label images become class ids.

    Attributes:
        values: the stored value of each class id 0, 1, ...
        void: stored values of pixels that do not count.
    """

    values: tuple[int, ...]
    void: tuple[int, ...]

    @property
    def ignore_label(self) -> int:
        """Label of pixels that do not count: the largest of the type of the labels."""
        return 255 if len(self.values) <= 255 else 65_535

    @functools.cached_property
    def _table(self) -> Int[np.ndarray, " n"]:
        """Class id of each stored value; the last entry stands for all others."""
        table = np.full(max(255, *self.values, *self.void) + 2, _STRAY, np.int32)
        table[list(self.void)] = self.ignore_label
        table[list(self.values)] = np.arange(len(self.values))
        return table

    def to_class_ids(
        self, stored: Int[np.ndarray, "h w"]
    ) -> UInt8[np.ndarray, "h w"] | UInt16[np.ndarray, "h w"]:
        """Converts stored values to class ids and `ignore_label`.

        Raises:
            SeglossError: if a value is neither of a class nor void.
        """
        table, entries = self._table, stored
        if stored.dtype != np.uint8:
            entries = np.clip(stored.astype(np.int64), _STRAY, len(table) - 1)
        ids = table[entries]
        if (ids == _STRAY).any():
            stray = np.unique(stored[ids == _STRAY]).tolist()
            raise SeglossError(
                f"must hold values of classes ({_ranges(self.values)}) or void "
                f"({_ranges(self.void) or 'none'}), got {_ranges(stray)}; set values, "
                "label_offset, class_names or void"
            )
        return ids.astype(np.uint8 if self.ignore_label == 255 else np.uint16)


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
    label_values: StoredLabels

    def open_source(self, split: str, *, images: bool = True) -> "TfdsSource":
        """Opens the samples of a split; `images=False` omits their images."""
        return TfdsSource(self, split, images=images)


class TfdsSource:
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
        self.split = split
        self._stored = stored
        self._images = images
        builder = tfds.builder_from_directory(stored.directory)
        self._records = builder.as_data_source(
            stored.splits[split],
            deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES,
        )
        self._labels = builder.info.features[stored.labels]
        names = {stored.labels, *([stored.image] if images else [])}
        names |= {stored.stem} - {None}
        self._parser = ExampleParserNp(
            {k: builder.info.features[k].get_serialized_info() for k in names}
        )

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, i: SupportsIndex) -> dict[str, Any]:
        sample = self.opened(i)
        if self._images:
            sample["image"] = sample["image"][:, :]
        return sample

    def opened(self, i: SupportsIndex) -> dict[str, Any]:
        """Returns sample i; a JPEG is a `StoredImage`, which is decoded when sliced."""
        stem, fields = self._read(i)
        with self._faults_named("labels", stem):
            labels = self._stored.label_values.to_class_ids(self._decode(fields))
        sample = {"labels": labels, "stem": stem}
        if self._images:
            faults_named = functools.partial(self._faults_named, "image", stem)
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
        with self._faults_named("labels", stem):
            data = fields[self._stored.labels]
            if isinstance(data, bytes):
                return Image.open(io.BytesIO(data)).size[::-1]
            return self._decode(fields).shape

    def _decode(self, fields: dict[str, Any]) -> Int[np.ndarray, "h w"]:
        """Returns the stored labels: of an encoded image, or of a tensor."""
        data = fields[self._stored.labels]
        if isinstance(self._labels, tfds.features.Image):
            return np.asarray(read_labels(data)[0])
        labels = self._labels.decode_example_np(data)
        return labels[..., 0] if labels.ndim == 3 else labels

    def _read(self, i: SupportsIndex) -> tuple[str, dict[str, Any]]:
        """Returns the name and the stored features of sample i."""
        i = operator.index(i)
        if not 0 <= i < len(self):
            raise IndexError(f"TfdsSource: must be in [0, {len(self)}), got {i}.")
        try:
            fields = self._parser.parse_example(self._records[i])
            stem = (
                str(i) if (key := self._stored.stem) is None else fields[key].decode()
            )
            fields[self._stored.labels]  # absent from a damaged record
        # The reader raises RuntimeError, the parser errors of several kinds.
        except Exception as error:
            raise SeglossError(
                f"{self._stored.directory}: sample {i} of split {self.split!r} cannot "
                f"be read, its file is damaged ({error!r}); delete that directory to "
                "prepare the dataset again."
            ) from error
        return stem, fields

    @contextlib.contextmanager
    def _faults_named(self, kind: str, stem: str) -> Iterator[None]:
        try:
            yield
        # Decoders raise many kinds of errors on broken bytes.
        except Exception as error:
            # Pillow's message has a memory address, so a warning would be repeated.
            unknown = isinstance(error, UnidentifiedImageError)
            raise BadSampleError(
                f"{kind} of sample {stem!r} of split {self.split!r} cannot be used "
                f"({'not an image' if unknown else error})."
            ) from error


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


def _ranges(values: tuple[int, ...] | list[int]) -> str:
    """Writes whole numbers briefly.

    >>> _ranges((7, 8, 9, 11))
    '7..9, 11'
    """
    texts, values = [], sorted(values)
    while values:
        n = next(
            k for k in range(1, len(values) + 1) if values[k:][:1] != [values[0] + k]
        )
        texts.append(f"{values[0]}..{values[n - 1]}" if n > 1 else f"{values[0]}")
        values = values[n:]
    return ", ".join(texts)

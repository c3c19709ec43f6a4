"""Opens datasets by name. They are converted once and then read by random access."""

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import operator
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image, UnidentifiedImageError
from tensorflow_datasets.proto import tf_example_pb2

from segloss.data.class_index import ClassIndex, LabelCounter
from segloss.data.datasets.builder import SegmentationBuilder
from segloss.data.datasets.camvid import camvid
from segloss.data.datasets.folder import folder
from segloss.data.datasets.longtail_scenes import longtail_scenes
from segloss.data.datasets.tfds_dataset import ForeignDataset, tfds_dataset
from segloss.data.datasets.voc2012 import voc2012
from segloss.data.loading.batches import BadSampleError, Source
from segloss.data.loading.stored_image import StoredImage
from segloss.data.loading.windows import Windows
from segloss.errors import SeglossError
from segloss.registry import bind

DATASETS: dict[str, Callable[..., SegmentationBuilder | ForeignDataset]] = {
    "camvid": camvid,
    "folder": folder,
    "longtail_scenes": longtail_scenes,
    "tfds": tfds_dataset,
    "voc2012": voc2012,
}


class SampleSource:
    """Random access to the samples of one split of a prepared dataset; picklable.

    `source[i]` is `{"image": uint8 [h, w, 3], "labels": uint8 [h, w], "stem": str}`.
    With `images=False` the image is neither decoded nor included.

    Indexing raises `BadSampleError` if that sample cannot be decoded, and ValueError if
    a record file is damaged.
    """

    def __init__(self, data_dir: str | os.PathLike[str], split: str, *, images: bool):
        self.split = split
        self._data_dir = os.fspath(data_dir)
        self._records = tfds.builder_from_directory(os.fspath(data_dir)).as_data_source(
            split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
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
        with self._faults_named("labels", stem):
            labels = np.asarray(Image.open(io.BytesIO(fields["labels"])))
        sample = {"labels": labels, "stem": stem}
        if self._images:
            faults_named = functools.partial(self._faults_named, "image", stem)
            sample["image"] = StoredImage(fields["image"], faults_named)
        return sample

    def label_hw(self, i: SupportsIndex) -> tuple[int, int]:
        """Returns height and width of the labels of sample i without decoding them."""
        fields = self._read(operator.index(i))
        with self._faults_named("labels", fields["stem"].decode()):
            return Image.open(io.BytesIO(fields["labels"])).size[::-1]

    def _read(self, i: int) -> dict[str, bytes]:
        if not 0 <= i < len(self):
            raise IndexError(f"SampleSource: must be in [0, {len(self)}), got {i}.")
        try:
            example = tf_example_pb2.Example.FromString(self._records[i])
            fields = {
                key: feature.bytes_list.value[0]
                for key, feature in example.features.feature.items()
            }
            # A file truncated between two blocks is read as other bytes, silently.
            if fields.keys() != {"image", "labels", "stem"}:
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


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A prepared dataset: one whose samples are read from files by position.

    Attributes:
        name: key of `DATASETS`.
        data_dir: directory of the class index, and of the array_record files unless
            they are those of TFDS.
        class_names: names of the class ids 0, 1, ...
        ignore_label: label of pixels that do not count.
        open_source: `open_source(split, images=True)` opens the samples of a split.
        max_hw: the largest height and the largest width of all splits, in pixels.
        splits: names of the splits.
        fingerprint: 16 hex digits that depend on the samples, the classes and
            `ignore_label`, and on nothing else.
    """

    name: str
    data_dir: Path
    class_names: tuple[str, ...]
    ignore_label: int
    open_source: Callable[..., Source] = dataclasses.field(compare=False, repr=False)
    max_hw: tuple[int, int]
    splits: tuple[str, ...]
    fingerprint: str

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def source(self, split: str, *, images: bool = True) -> Source:
        """Opens the samples of `split`; `images=False` omits their images.

        Raises:
            ValueError: if there is no such split; lists the known ones.
        """
        if split not in self.splits:
            raise SeglossError(
                f"dataset {self.name}: no split is named {split!r}; "
                f"known are {', '.join(self.splits)}."
            )
        return self.open_source(split, images=images)

    def class_index(self, split: str, windows: Windows | None = None) -> ClassIndex:
        """Returns the pixel counts of each class in each sample of `split`.

        The first call counts and saves them in `data_dir`; later calls open the file. A
        count that was killed resumes where it stopped.

        Args:
            split: name of the split.
            windows: None counts whole images. Otherwise only classes that one random
                crop can hold together are counted, by their pixels in it; see
                `Windows.keepable`.

        Raises:
            ValueError: if there is no such split, or the saved file is damaged or
                belongs to other data.
        """
        counter = self.label_counter(split, windows)
        path = self.class_index_path(split, windows)
        if not path.exists():
            ClassIndex(counter.count(), counter.fingerprint).save(path)
        shutil.rmtree(counter.parts_dir, ignore_errors=True)
        shape = len(counter.source), self.num_classes
        return ClassIndex.load(path, counter.fingerprint, shape)

    def label_counter(self, split: str, windows: Windows | None = None) -> LabelCounter:
        """Returns the counter that computes `class_index(split, windows)`.

        It saves the counts of finished ranges of samples in a folder in `data_dir`.

        Raises:
            ValueError: if there is no such split.
        """
        return LabelCounter(
            source=self.source(split, images=False),
            num_classes=self.num_classes,
            ignore_label=self.ignore_label,
            fingerprint="-".join(
                [self.fingerprint, *([windows.digest] if windows else [])]
            ),
            parts_dir=self.class_index_path(split, windows).with_suffix(".parts"),
            windows=windows,
        )

    def class_index_path(self, split: str, windows: Windows | None = None) -> Path:
        """Returns where `class_index(split, windows)` is saved; it need not exist."""
        if windows is None:
            return self.data_dir / f"class_index-{split}.npy"
        return self.data_dir / f"window_index-{split}-{windows.digest}.npy"


def open_dataset(name: str, **hyperparameters: Any) -> Dataset:
    """Opens a dataset by name; the first call converts it to array_record files.

    Args:
        name: key of `DATASETS`.
        **hyperparameters: keyword arguments of the function `DATASETS[name]`.

    Raises:
        ValueError: if the name or a hyperparameter is unknown, or out of range.
        DatasetError: if files are missing or faulty; lists all faults.
    """
    make_builder = bind("dataset", DATASETS, name, hyperparameters)
    builder = make_builder()
    if isinstance(builder, ForeignDataset):
        return Dataset(name=name, **vars(builder))
    try:
        builder.download_and_prepare()
    except OSError:
        builder = make_builder()
        if not builder.data_path.exists():  # otherwise another process prepared it
            raise
    return _read(name, builder.info)


def _read(name: str, info: tfds.core.DatasetInfo) -> Dataset:
    metadata = info.metadata
    identity = [metadata[key] for key in ("class_names", "ignore_label", "content")]
    return Dataset(
        name=name,
        data_dir=Path(info.data_dir),
        class_names=tuple(metadata["class_names"]),
        ignore_label=metadata["ignore_label"],
        open_source=functools.partial(SampleSource, info.data_dir),
        max_hw=tuple(metadata["max_hw"]),
        splits=tuple(info.splits),
        fingerprint=hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16],
    )

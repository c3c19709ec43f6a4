"""Opens datasets by name. They are converted once and then read by random access."""

import dataclasses
import functools
import hashlib
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from segloss.console import make_console
from segloss.data.bands import RGB, Bands, label_dtype
from segloss.data.class_index import ClassIndex, LabelCounter
from segloss.data.datasets.builder import SegmentationBuilder, open_prepared
from segloss.data.datasets.camvid import camvid
from segloss.data.datasets.chosen_classes import Choice, Classes, choose, open_chosen
from segloss.data.datasets.faults import abridge
from segloss.data.datasets.folder import folder
from segloss.data.datasets.longtail_scenes import longtail_scenes
from segloss.data.datasets.sample_source import SampleSource
from segloss.data.datasets.tfds_dataset import ForeignDataset, tfds_dataset
from segloss.data.datasets.voc2012 import voc2012
from segloss.data.loading.batches import Source
from segloss.data.loading.windows import Windows
from segloss.errors import SeglossError, describe_size
from segloss.locking import locked
from segloss.registry import bind
from segloss.writing import on_disk

DATASETS: dict[str, Callable[..., SegmentationBuilder | ForeignDataset]] = {
    "camvid": camvid,
    "folder": folder,
    "longtail_scenes": longtail_scenes,
    "tfds": tfds_dataset,
    "voc2012": voc2012,
}


_INFO = "dataset_info.json"


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A prepared dataset: one whose samples are read from files by position.

    Attributes:
        name: key of `DATASETS`.
        data_dir: directory of the class index, and of the array_record files unless
            they are those of TFDS or classes were chosen.
        class_names: names of the class ids 0, 1, ...
        ignore_label: label of pixels that do not count.
        open_source: `open_source(split, images=True)` opens the samples of a split.
        bands: the bands of the images, with their mean and deviation.
        max_hw: the largest height and the largest width of all splits, in pixels.
        splits: names of the splits.
        fingerprint: 16 hex digits that depend on the samples, the classes and how they
            were chosen, and `ignore_label`, and on nothing else.
        notes: what was found when the dataset was prepared, each in one line.
        num_pixels: name and number of pixels, void or not, of each split; empty if the
            dataset does not store them.
        choice: the classes that `choose` has chosen; None has all.
    """

    name: str
    data_dir: Path
    class_names: tuple[str, ...]
    ignore_label: int
    open_source: Callable[..., Source] = dataclasses.field(compare=False, repr=False)
    max_hw: tuple[int, int]
    splits: tuple[str, ...]
    fingerprint: str
    bands: Bands = RGB
    notes: tuple[str, ...] = ()
    num_pixels: tuple[tuple[str, int], ...] = ()
    choice: Choice | None = None

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def label_dtype(self) -> str:
        """Type of the labels, "uint8" or "uint16"."""
        return label_dtype(self.num_classes, self.ignore_label)

    def choose(self, classes: Classes) -> "Dataset":
        """Returns this dataset with only these classes; the pixels of others are void.

        No image is read and no file is written. Class indices of the result are saved
        in a folder of their own in `data_dir`.

        Args:
            classes: names of classes, whose ids become 0, 1, ... in this order. A pair
                of a new name and a tuple of names merges these classes.

        Raises:
            ValueError: if there is no such class, a class is named twice, or classes
                were chosen before.
        """
        if self.choice is not None:
            raise SeglossError(
                f"Dataset.choose: classes of {self.name} were chosen before; choose "
                "from the dataset that has all."
            )
        choice = choose(classes, self.name, self.class_names, self.ignore_label)
        if choice.is_all:
            return self
        identity = json.dumps([self.fingerprint, choice.to_json()])
        fingerprint = hashlib.sha256(identity.encode()).hexdigest()[:16]
        return dataclasses.replace(
            self,
            data_dir=self.data_dir / f"classes-{fingerprint}",
            class_names=choice.names,
            open_source=functools.partial(open_chosen, self.open_source, choice),
            fingerprint=fingerprint,
            notes=(*self.notes, *choice.describe()),
            choice=choice,
        )

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

        The first call counts and saves them in `data_dir`; later calls open the file,
        and count again with a warning if it is damaged or belongs to other data. A
        count that was killed resumes where it stopped. Other processes wait meanwhile.

        Args:
            split: name of the split.
            windows: None counts whole images. Otherwise only classes that one random
                crop can hold together are counted, by their pixels in it; see
                `Windows.keepable`.

        Raises:
            ValueError: if there is no such split, or a label is neither a class id nor
                void.
        """
        counter = self.label_counter(split, windows)
        path = self.class_index_path(split, windows)
        shape = len(counter.source), self.num_classes
        if path.exists():
            try:
                index = ClassIndex.load(path, counter.fingerprint, shape)
            except SeglossError as error:
                problem = str(error).removesuffix("; delete it to have it made again.")
                warnings.warn(f"{problem}; it is made again.", stacklevel=2)
                path.unlink(missing_ok=True)
            else:
                shutil.rmtree(counter.parts_dir, ignore_errors=True)
                return index
        need = describe_size(4 * shape[0] * shape[1])
        with (
            on_disk(self.data_dir, f"the class index needs about {need}"),
            locked(self.data_dir, on_wait=make_console().print),
        ):
            if not path.exists():
                ClassIndex(counter.count(), counter.fingerprint).save(path)
            shutil.rmtree(counter.parts_dir, ignore_errors=True)
        return ClassIndex.load(path, counter.fingerprint, shape)

    def describe_classes(self, split: str) -> list[str]:
        """Returns lines about void pixels, void images and classes without pixels."""
        counts = self.class_index(split).pixel_counts
        pixels = counts.sum(axis=0, dtype=np.int64)
        lines = []
        total = dict(self.num_pixels).get(split)
        if total and pixels.sum() < total:
            lines.append(
                f"{1 - pixels.sum() / total:.1%} of the pixels of {split} are void: "
                "they do not count"
            )
        if num_void := np.count_nonzero(~np.any(counts, axis=1)):
            lines.append(
                f"{num_void:,} of {len(counts):,} images of {split} have no pixel that "
                "counts"
            )
        absent = [f"{k} {self.class_names[k]}" for k in np.flatnonzero(pixels == 0)]
        if absent:
            lines.append(
                f"no label of {split} has a pixel of {abridge(absent, in_order=True)}"
            )
        return lines

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


def open_dataset(
    name: str, *, classes: Classes | None = None, **hyperparameters: Any
) -> Dataset:
    """Opens a dataset by name; the first call converts it to array_record files.

    Args:
        name: key of `DATASETS`.
        classes: the classes to choose, see `Dataset.choose`; None has all.
        **hyperparameters: keyword arguments of the function `DATASETS[name]`.

    Raises:
        ValueError: if the name, a hyperparameter or a class is unknown, or a value is
            out of range.
        DatasetError: if files are missing or faulty; lists all faults.
    """
    dataset = _open(name, hyperparameters)
    return dataset if classes is None else dataset.choose(classes)


def _open(name: str, hyperparameters: dict[str, Any]) -> Dataset:
    make_builder = bind("dataset", DATASETS, name, hyperparameters)
    data_dir = hyperparameters.get("data_dir")
    if data_dir is not None and hyperparameters.get("root", "") is None:
        return _read(name, _find_prepared(name, Path(data_dir).expanduser()))
    builder = make_builder()
    if isinstance(builder, ForeignDataset):
        return Dataset(name=name, **vars(builder))
    builder.download_and_prepare()
    return _read(name, Path(builder.data_path))


def _find_prepared(name: str, data_dir: Path) -> Path:
    """Returns the directory of the only dataset of this name in `data_dir`.

    `data_dir` may also be that directory itself.

    Raises:
        SeglossError: if there is no dataset, or more than one.
    """
    if (data_dir / _INFO).is_file():
        return data_dir
    found = [path.parent for path in sorted(data_dir.glob(f"{name}/*/*/{_INFO}"))]
    if len({path.resolve() for path in found}) != 1:
        rule = "several datasets" if found else "no prepared dataset"
        names = f": {abridge([str(path) for path in found])}" if found else ""
        raise SeglossError(
            f"config.data.data_dir: {data_dir} holds {rule} of name {name!r}{names}; "
            "give the directory of one of them, or config.data.root with the files."
        )
    return found[0]


def _read(name: str, data_dir: Path) -> Dataset:
    # A link to a dataset made of files with the same contents.
    data_dir = data_dir.resolve()
    identifying = ("class_names", "ignore_label", "content")
    info = open_prepared(data_dir, needs=(*identifying, "max_hw")).info
    metadata = info.metadata
    identity = [metadata[key] for key in identifying]
    return Dataset(
        name=name,
        data_dir=data_dir,
        class_names=tuple(metadata["class_names"]),
        ignore_label=metadata["ignore_label"],
        open_source=functools.partial(SampleSource, info.data_dir),
        max_hw=tuple(metadata["max_hw"]),
        splits=tuple(info.splits),
        bands=Bands.from_json(metadata.get("bands", RGB.to_json())),
        notes=tuple(metadata.get("notes", ())),
        num_pixels=tuple(metadata.get("num_pixels", {}).items()),
        fingerprint=hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16],
    )

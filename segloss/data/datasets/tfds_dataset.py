"""Any dataset of TensorFlow Datasets (TFDS) with an image and a label image.

TFDS downloads the dataset and writes its records. segloss reads them where they are,
without TensorFlow, and keeps what it counts in a folder of its own.
"""

import collections
import dataclasses
import difflib
import hashlib
import json
import math
import os
import re
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core import constants, registered
from tensorflow_datasets.core.download import download_manager, extractor, util

from segloss.console import make_progress
from segloss.data.datasets.builder import open_prepared, preparing
from segloss.data.datasets.checking import map_ahead
from segloss.data.datasets.tfds_source import Stored, TfdsSource
from segloss.data.datasets.tfds_splits import check_overlap, choose_splits
from segloss.data.datasets.tfds_stand_ins import stand_ins
from segloss.data.decoding.label_values import MAX_CLASSES, MAX_VALUE, LabelValues
from segloss.errors import FULL, SeglossError, describe_size
from segloss.writing import on_disk, read_json, write_json

# What TFDS raises for files, folders and downloads; other exceptions are bugs.
_REFUSALS = (
    AssertionError,
    OSError,
    util.DownloadError,
    download_manager.NonMatchingChecksumError,
    extractor.ExtractError,
    extractor.UnsafeArchiveError,
)


@dataclasses.dataclass(frozen=True)
class ForeignDataset:
    """A dataset whose records segloss did not write.

    Attributes:
        data_dir: folder for what segloss counts; the records lie elsewhere.
        class_names: names of the class ids 0, 1, ...
        ignore_label: label of pixels that do not count.
        open_source: `open_source(split, images=True)` opens the samples of a split.
        max_hw: the largest height and the largest width of all splits, in pixels.
        splits: names of the splits.
        fingerprint: 16 hex digits that depend on the samples and the classes.
        num_pixels: name and number of pixels, void or not, of each split.
    """

    data_dir: Path
    class_names: tuple[str, ...]
    ignore_label: int
    open_source: Callable[..., TfdsSource]
    max_hw: tuple[int, int]
    splits: tuple[str, ...]
    fingerprint: str
    num_pixels: tuple[tuple[str, int], ...]


def tfds_dataset(
    *,
    builder: str,
    image: str = "image",
    labels: str = "segmentation_mask",
    class_names: tuple[str, ...] = (),
    num_classes: int | None = None,
    label_offset: int = 0,
    values: tuple[int, ...] | None = None,
    void: tuple[int, ...] = (),
    train: str | None = None,
    val: str | None = None,
    test: str | None = None,
    manual_dir: str | os.PathLike[str] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
) -> ForeignDataset:
    """Opens a dataset of TFDS; the first call has TFDS download and prepare it.

    Splits are those of TFDS, such as "train[:90%]". By default `train` and `test` are
    the splits of these names and `val` is the validation split. Without a validation
    split, `train` and `val` are 90 % and 10 % of TFDS's "train".

    Args:
        builder: name of the dataset in TFDS, `name/config:version`, where config and
            version are optional; or a directory that TFDS has prepared, the one with
            `dataset_info.json`.
        image: name of the feature that is the image, of 1 or 3 channels.
        labels: name of the feature that is the label image, or a tensor [h, w].
        class_names: names of the classes in order; by default those that the feature
            `labels` has.
        num_classes: number of classes, instead of names.
        label_offset: added to a stored value, this gives the class id.
        values: the stored value of each class in order, instead of `label_offset`, for
            values with gaps.
        void: stored values of pixels that do not count.
        train: split of TFDS to train on.
        val: split of TFDS to validate on.
        test: split of TFDS to test on.
        manual_dir: folder with files that TFDS cannot download; None is
            `downloads/manual` in `data_dir`.
        data_dir: folder of TFDS for prepared datasets and downloads, and for the counts
            of segloss; None is TFDS's default.

    Raises:
        SeglossError: if TFDS has no such dataset or cannot prepare it, a feature or a
            split does not exist, classes are not named or contradict `void`, or
            training samples are also in another split.
    """

    def check(features: Any) -> tuple[tuple[str, ...], LabelValues]:
        """Returns the names of the classes, and how labels become class ids."""
        _check_features(features, image, labels)
        names = _name_classes(features[labels], labels, class_names, num_classes)
        return names, _map_values(names, label_offset, values, tuple(void))

    root = Path(data_dir or constants.DATA_DIR).expanduser()
    info = _prepare(builder, check, manual_dir, root).info
    names, label_values = check(info.features)
    stored = Stored(
        directory=str(info.data_dir),
        splits=choose_splits(info, {"train": train, "val": val, "test": test}),
        image=image,
        labels=labels,
        stem=_find_stem(info.features),
        label_values=label_values,
    )
    check_overlap(info, stored.splits)
    fingerprint = _fingerprint(info, stored, names)
    parts = [info.name, info.config_name, str(info.version), fingerprint]
    name = re.sub(r"[^\w.-]", "_", "-".join(filter(None, parts)))
    directory = root / "segloss_tfds" / name
    return ForeignDataset(
        data_dir=directory,
        class_names=names,
        ignore_label=label_values.ignore_label,
        open_source=stored.open_source,
        **_find_sizes(stored, directory / "sizes.json"),
        splits=tuple(stored.splits),
        fingerprint=fingerprint,
    )


def _prepare(
    builder: str,
    check: Callable[[Any], Any],
    manual_dir: str | os.PathLike[str] | None,
    root: Path,
) -> tfds.core.DatasetBuilder:
    """Returns the TFDS builder of a dataset that is prepared.

    `check(features)` raises before anything is downloaded.
    """
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    directory = Path(builder).expanduser()
    if (directory / constants.DATASET_INFO_FILENAME).exists():
        return open_prepared(directory)
    if builder.startswith((".", "~", os.sep)):
        raise SeglossError(
            "tfds: builder must be a dataset of TFDS, or a directory with "
            f"{constants.DATASET_INFO_FILENAME} such as DIR/oxford_iiit_pet/4.0.0, got "
            f"{builder!r}; correct it."
        )
    with stand_ins() as lacking:
        try:
            made = _make(builder, root)
            check(made.info.features)
            _download_and_prepare(made, manual_dir)
        except SeglossError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in FULL:
                raise
            if problem := _explain(builder, error, lacking):
                raise SeglossError(problem) from error
            raise
    # Reads what was written, as any later call does.
    return open_prepared(made.data_path)


def _download_and_prepare(
    made: tfds.core.DatasetBuilder, manual_dir: str | os.PathLike[str] | None
) -> None:
    config = tfds.download.DownloadConfig(manual_dir=manual_dir)
    path = Path(made.data_path)
    size = describe_size(int(made.info.dataset_size) + int(made.info.download_size))
    with on_disk(path, f"the dataset needs about {size}"), preparing(path):
        made.download_and_prepare(file_format="array_record", download_config=config)


def _explain(builder: str, error: Exception, lacking: list[str]) -> str | None:
    """Says why TFDS failed, or returns None if the error looks like a bug.

    `lacking` names functions of TensorFlow that the builder called.
    """
    if lacking or isinstance(error, ImportError):
        name = lacking[0] if lacking else error.name or str(error)
        package = "tensorflow" if lacking else name
        return (
            f"tfds: {builder} needs {name} to be prepared; in an environment with "
            f"tensorflow-datasets and {package}, run `tfds build {builder} "
            "--file_format=array_record`, and set config.data.builder to the directory "
            "that it writes."
        )
    if isinstance(error, _REFUSALS):
        return f"tfds: {builder} cannot be prepared: {_one_line(error)}"
    return None


def _make(builder: str, root: Path) -> tfds.core.DatasetBuilder:
    try:
        return tfds.builder(builder, data_dir=root)
    except registered.DatasetNotFoundError as error:
        known = tfds.list_builders(with_community_datasets=False)
        near = difflib.get_close_matches(builder, known, n=3)
        raise SeglossError(
            f"tfds: TFDS has no dataset {builder!r}; the nearest names are "
            f"{', '.join(near) or 'none'}. builder is a name of "
            "tensorflow.org/datasets/catalog, or a directory that TFDS has prepared."
        ) from error
    # An unknown config or version, or a name that TFDS cannot parse.
    except (ValueError, AssertionError) as error:
        raise SeglossError(f"tfds: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _check_features(features: Any, image: str, labels: str) -> None:
    kinds = {k: type(feature).__name__ for k, feature in features.items()}
    listed = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
    images = {"image": image, "labels": labels}
    for field, name in images.items():
        if name not in kinds:
            raise SeglossError(
                f"tfds: {field} must name a feature, got {name!r}; there are {listed}."
            )
        able = isinstance(features[name], tfds.features.Image)
        if field == "labels":
            able |= type(features[name]) is tfds.features.Tensor
        if not able:
            raise SeglossError(
                f"tfds: {field} must name an image, got {name!r}, a {kinds[name]}; "
                f"there are {listed}."
            )


def _find_stem(features: Any) -> str | None:
    """Returns the text feature that names the samples, such as `file_name`, or None."""
    texts = [k for k, x in features.items() if isinstance(x, tfds.features.Text)]
    return next((k for k in texts if re.search("name|id$", k)), None)


def _name_classes(
    feature: Any,
    labels: str,
    class_names: tuple[str, ...],
    num_classes: int | None,
) -> tuple[str, ...]:
    if not class_names and num_classes is None:
        class_names = getattr(feature, "names", None)
        num_classes = getattr(feature, "num_classes", None)
        if class_names is None and num_classes is None:
            raise SeglossError(
                f"tfds: feature {labels!r} does not name its classes; set class_names "
                "to their names in order, or num_classes."
            )
    if not class_names:
        class_names = [f"class_{k}" for k in range(num_classes)]
    elif num_classes not in (None, len(class_names)):
        raise SeglossError(
            f"tfds: num_classes must be the number of class_names, {len(class_names)}, "
            f"got {num_classes}; leave one of them out."
        )
    if not 0 < len(class_names) <= MAX_CLASSES:
        raise SeglossError(
            f"tfds: there must be 1..{MAX_CLASSES} classes, got {len(class_names)}."
        )
    return tuple(class_names)


def _map_values(
    class_names: tuple[str, ...],
    label_offset: int,
    values: tuple[int, ...] | None,
    void: tuple[int, ...],
) -> LabelValues:
    if values is None:
        values = tuple(k - label_offset for k in range(len(class_names)))
    elif label_offset:
        raise SeglossError(
            f"tfds: label_offset must be 0 with values, got {label_offset}; values are "
            "what is stored."
        )
    if len(values) != len(class_names):
        raise SeglossError(
            f"tfds: values must have one value per class, {len(class_names)}, got "
            f"{len(values)}."
        )
    for value in (*values, *void):
        if not 0 <= value <= MAX_VALUE:
            raise SeglossError(
                f"tfds: stored values must be in 0..{MAX_VALUE}, got {value}; check "
                "label_offset, values and void."
            )
    if len({*values}) < len(values):
        raise SeglossError("tfds: values must differ; a value has one class.")
    for value in void:
        if value in values:
            k = values.index(value)
            raise SeglossError(
                f"tfds: void value {value} must not be a class, got class {k} "
                f"{class_names[k]!r}; remove one of them."
            )
    # The largest value of the type of the labels.
    ignore_label = 255 if len(values) <= 255 else 65_535
    return LabelValues(
        len(values),
        ignore_label,
        {value: k for k, value in enumerate(values)}
        | dict.fromkeys(void, ignore_label),
        listed_in="the config",
        remedy="set values, label_offset, class_names or void",
    )


def _fingerprint(info: Any, stored: Stored, class_names: tuple[str, ...]) -> str:
    """Returns a digest of the records, as TFDS describes them, and of their reading."""
    identity = dataclasses.asdict(stored) | {
        "directory": None,  # so that a copy elsewhere has the same fingerprint
        "class_names": class_names,
        "dataset": [info.name, info.config_name, str(info.version)],
        "sizes": {
            split.name: [split.num_bytes, *split.shard_lengths]
            for split in info.splits.values()
        },
    }
    text = json.dumps(identity, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _find_sizes(stored: Stored, path: Path) -> dict[str, Any]:
    """Returns the fields `max_hw` and `num_pixels` of `ForeignDataset`.

    They are kept in the file `path`.
    """
    if path.exists():
        needs = {"max_hw", "num_pixels"}
        try:
            sizes = read_json(path, remedy="it is made again", needs=needs)
        except SeglossError as error:
            warnings.warn(str(error), stacklevel=2)
            path.unlink()
    if not path.exists():
        sizes = _measure(stored)
        write_json(path, sizes)
    num_pixels = tuple(sizes["num_pixels"].items())
    return {"max_hw": tuple(sizes["max_hw"]), "num_pixels": num_pixels}


def _measure(stored: Stored) -> dict[str, Any]:
    """Reads the size of every label image."""
    try:
        sources = {
            split: stored.open_source(split, images=False) for split in stored.splits
        }
    except NotImplementedError as error:
        raise SeglossError(
            f"tfds: {stored.directory} must hold array_record files, which can be read "
            "by position; prepare it with `tfds build --file_format=array_record`, or "
            "convert it with `tfds convert_format`."
        ) from error
    max_hw, num_pixels = [0, 0], collections.Counter()
    with make_progress(transient=True) as bar, ThreadPoolExecutor() as pool:
        task = bar.add_task("Reading sizes", total=sum(map(len, sources.values())))
        for split, source in sources.items():
            for hw in map_ahead(pool, source.label_hw, range(len(source))):
                max_hw = [max(sides) for sides in zip(max_hw, hw, strict=True)]
                num_pixels[split] += math.prod(hw)
                bar.advance(task)
    return {"max_hw": max_hw, "num_pixels": dict(num_pixels)}

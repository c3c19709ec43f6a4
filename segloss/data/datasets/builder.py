"""Base class of the dataset builders; writes array_record files without TensorFlow.

The base class derives from TFDS's `ShardBasedBuilder`, which streams samples to the
files. TFDS's `GeneratorBasedBuilder` would shuffle splits above 1 GB through temporary
files, for which it needs TensorFlow.
"""

import abc
import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import math
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Shaped
from PIL import Image

from segloss.console import make_console, make_progress
from segloss.data.bands import RGB, BandMoments, check_bands, is_rgb, label_dtype
from segloss.errors import SeglossError
from segloss.locking import locked
from segloss.writing import on_disk, read_json, remove_folder

# What to do about a damaged dataset.
PREPARE_AGAIN = "delete {} to prepare the dataset again"
# The split whose images give the mean and the deviation of each band.
_MEASURED = "train"


@dataclasses.dataclass(frozen=True)
class Sample:
    """One encoded sample.

    Attributes:
        stem: name of the sample, unique in its split.
        image: JPEG or PNG bytes of an RGB image; for any other bands, an array with the
            number of bands and the type that the builder's configuration names.
        labels: PNG bytes of class ids, 8-bit grey, or 16-bit grey where `label_dtype`
            of the configuration is "uint16", with the size of the image.
        hw: height and width in pixels.
        nodata: True where an array has no data, bool [h, w]; these pixels do not count
            in the mean and deviation of the bands. None counts all.
    """

    stem: str
    image: bytes | Shaped[np.ndarray, "h w n"]
    labels: bytes
    hw: tuple[int, int]
    nodata: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Shard:
    """The samples of one file of a split; all are held in memory, so aim for 64 MB.

    Attributes:
        num_samples: number of samples that `read` returns.
        read: function that returns the samples in order.
    """

    num_samples: int
    read: Callable[[], Iterable[Sample]]


@dataclasses.dataclass(eq=False, kw_only=True)
class SegmentationConfig(tfds.core.BuilderConfig):
    """Configuration of one dataset.

    Attributes:
        class_names: names of the class ids 0, 1, ...
        ignore_label: label of pixels that do not count.
        num_bands: number of bands (channels) of the images.
        image_dtype: type of their values, one of `bands.DTYPES`. Images of 3 bands of
            uint8 are RGB.

    Raises:
        ValueError: at construction, if there is no band or the type is unknown.
    """

    class_names: tuple[str, ...]
    ignore_label: int
    num_bands: int = 3
    image_dtype: str = "uint8"

    def __post_init__(self) -> None:
        check_bands(self.num_bands, self.image_dtype)

    @property
    def is_rgb(self) -> bool:
        """Whether images are stored as JPEG or PNG files."""
        return is_rgb(self.num_bands, self.image_dtype)

    @property
    def label_dtype(self) -> str:
        """Type of the stored labels, "uint8" or "uint16"."""
        return label_dtype(len(self.class_names), self.ignore_label)

    def make_features(self) -> tfds.features.FeaturesDict:
        """Returns the features of a sample; they can be read without TensorFlow."""
        images = tfds.features.Image(shape=(None, None, 3))
        if not self.is_rgb:
            images = _make_tensor(self.num_bands, self.image_dtype)
        labels = tfds.features.Image(shape=(None, None, 1), encoding_format="png")
        if self.label_dtype != "uint8":
            # Without OpenCV, TFDS cannot read a PNG of 16 bits.
            labels = _make_tensor(1, self.label_dtype)
        stem = tfds.features.Text()
        return tfds.features.FeaturesDict(
            {"image": images, "labels": labels, "stem": stem}
        )


def _make_tensor(num_bands: int, dtype: str) -> tfds.features.Tensor:
    return tfds.features.Tensor(
        shape=(None, None, num_bands), dtype=np.dtype(dtype), encoding="zlib"
    )


class _Info(tfds.core.DatasetInfo):
    def initialize_from_bucket(self) -> None:
        """Does nothing: the dataset is local, so no server is asked about it."""

    def read_from_directory(self, dataset_info_dir: str | os.PathLike[str]) -> None:
        """Reads what was written of a dataset, and names a file that is damaged."""
        with _damage_named(Path(dataset_info_dir)):
            super().read_from_directory(dataset_info_dir)


class SegmentationBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):
    """Base class of TFDS builders of images with labels.

    Features: `image` [h, w, n], `labels` [h, w, 1], `stem` text, with the types that
    the configuration names. Metadata: `class_names`, `ignore_label`, `max_hw` (the
    largest height and the largest width), `num_pixels` (of all images of each split,
    void or not), `bands` (`Bands.to_json`, with the mean and
    deviation over the training images) and `content` (SHA-256 over all samples).
    """

    VERSION = tfds.core.Version("1.0.0")
    # TFDS would look here for checksums of downloads, with importlib_resources.
    code_path = None

    @abc.abstractmethod
    def shards(self) -> Mapping[str, Sequence[Shard]]:
        """Returns the shards of each split; called once, to write the dataset."""

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config
        return _Info(
            builder=self,
            features=config.make_features(),
            metadata=tfds.core.MetadataDict(
                class_names=list(config.class_names),
                ignore_label=config.ignore_label,
                max_hw=[0, 0],
            ),
            disable_shuffling=True,
        )

    def download_and_prepare(self, **options: Any) -> None:
        """Writes the dataset as array_record files, unless it exists already.

        TFDS's `download_and_prepare` receives `options`.
        """
        if self.data_path.exists():
            return
        path = Path(self.data_path)
        with on_disk(path, self._describe_need()), preparing(path):
            if self.data_path.exists():  # another process has written it meanwhile
                return
            with make_progress(transient=True) as self._progress:
                options = {"file_format": "array_record"} | options
                super().download_and_prepare(**options)

    def _describe_need(self) -> str:
        """Says how large the dataset will be; "" if that is not known."""
        return ""

    def _download_and_prepare(
        self, dl_manager: Any, download_config: Any = None
    ) -> None:
        shards = self.shards()
        total = sum(
            shard.num_samples for of_split in shards.values() for shard in of_split
        )
        task = self._progress.add_task("Writing samples", total=total)
        advance = functools.partial(self._progress.advance, task)
        if download_config is not None and download_config.beam_runner is not None:
            advance = None  # Beam's workers cannot update the progress bar
        digest, max_hw, split_infos = hashlib.sha256(), [0, 0], []
        num_pixels = {}
        config = self.builder_config
        moments = BandMoments.empty(config.num_bands)
        # One split per call: with several, TFDS has Beam write earlier splits again.
        for split, of_split in shards.items():
            self._examples = {
                split: [
                    _Examples(
                        split,
                        shard,
                        self.data_path / f"shard-{i}.json",
                        advance,
                        num_bands=None if config.is_rgb else config.num_bands,
                        label_dtype=config.label_dtype,
                    )
                    for i, shard in enumerate(of_split)
                ]
            }
            super()._download_and_prepare(dl_manager, download_config)
            summaries = [examples.take_summary() for examples in self._examples[split]]
            for summary in summaries:
                digest.update(b"".join(map(bytes.fromhex, summary["digests"])))
                sides = zip(max_hw, summary["max_hw"], strict=True)
                max_hw = [max(pair) for pair in sides]
                if split == _MEASURED and not config.is_rgb:
                    moments = moments.merge(BandMoments.from_json(summary["moments"]))
            num_pixels[split] = sum(summary["pixels"] for summary in summaries)
            # TFDS sorts the lengths that Beam counted as text: "0", "1", "10", "2".
            lengths = [len(summary["digests"]) for summary in summaries]
            split_info = self.info.splits[split].replace(shard_lengths=lengths)
            split_infos.append(split_info)
        for path in self.data_path.glob("*.shard_infos.json"):  # left by TFDS on Beam
            path.unlink()
        self.info.set_splits(tfds.core.splits.SplitDict(split_infos))
        bands = RGB if config.is_rgb else moments.to_bands(config.image_dtype)
        self.info.metadata.update(
            max_hw=max_hw,
            num_pixels=num_pixels,
            bands=bands.to_json(),
            content=digest.hexdigest(),
        )

    def _shard_iterators_per_split(
        self, dl_manager: Any
    ) -> dict[str, list["_Examples"]]:
        return self._examples

    # TFDS warns about every configuration that the class does not list, and announces
    # downloads on stdout. Neither applies here.
    def _create_builder_config(self, builder_config, version):
        return builder_config

    def _log_download_bytes(self) -> None: ...

    def _log_download_done(self) -> None: ...


@dataclasses.dataclass(frozen=True)
class _Examples:
    """Yields the samples of one shard as TFDS examples, and then writes a summary.

    Unlike the builder, Beam can pickle it.

    Attributes:
        split: name of the split.
        shard: the samples.
        summary: JSON file for the digests, the largest size, the number of pixels and
            the moments of the bands of the samples.
        advance: called after each sample; None calls nothing.
        num_bands: number of bands of images that are arrays; None if they are files.
        label_dtype: type of the labels; only uint8 labels are stored as files.
    """

    split: str
    shard: Shard
    summary: tfds.core.Path
    advance: Callable[[], None] | None
    num_bands: int | None
    label_dtype: str

    def __call__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        digests, max_hw, pixels = [], [0, 0], 0
        moments = BandMoments.empty(self.num_bands or 0)
        for sample in self.shard.read():
            image, labels = sample.image, sample.labels
            fields = (self.split.encode(), sample.stem.encode(), labels)
            if self.num_bands is None:
                fields = (*fields[:2], image, labels)
            else:
                shape = f"{image.dtype} {image.shape}".encode()
                fields += (shape, np.ascontiguousarray(image))
                data = slice(None) if sample.nodata is None else ~sample.nodata
                moments = moments.add(image[data].reshape(-1, 1, self.num_bands))
            if self.label_dtype != "uint8":
                labels = np.asarray(Image.open(io.BytesIO(labels)))[..., None]
                labels = labels.astype(self.label_dtype)
            digests.append("".join(hashlib.sha256(x).hexdigest() for x in fields))
            max_hw = [max(sides) for sides in zip(max_hw, sample.hw, strict=True)]
            pixels += math.prod(sample.hw)
            if self.advance is not None:
                self.advance()
            yield (
                sample.stem,
                {"image": image, "labels": labels, "stem": sample.stem},
            )
        summary = {
            "digests": digests,
            "max_hw": max_hw,
            "pixels": pixels,
            "moments": moments.to_json(),
        }
        self.summary.write_text(json.dumps(summary))

    def take_summary(self) -> dict[str, Any]:
        """Returns the content of the summary file, and deletes the file."""
        summary = json.loads(self.summary.read_text())
        self.summary.unlink()
        return summary


@contextlib.contextmanager
def preparing(data_path: Path) -> Iterator[None]:
    """Lets one process at a time write the dataset `data_path`; others wait.

    Removes what killed processes left that were writing it.
    """
    folder = data_path.parent
    with locked(folder, on_wait=make_console().print):
        for left in folder.glob(f"incomplete.*_{data_path.name}"):
            remove_folder(left)
        yield


def open_prepared(
    directory: str | os.PathLike[str], *, needs: Collection[str] = ()
) -> tfds.core.DatasetBuilder:
    """Opens a dataset that was written to a directory.

    Args:
        directory: the directory of `dataset_info.json`.
        needs: names that `metadata.json` must have.

    Raises:
        SeglossError: if a file that describes the dataset is damaged.
    """
    with _damage_named(Path(directory), needs):
        builder = tfds.builder_from_directory(directory)
        builder.info.features.get_serialized_info()
    return builder


@contextlib.contextmanager
def _damage_named(directory: Path, needs: Collection[str] = ()) -> Iterator[None]:
    """Raises SeglossError if a file that describes a dataset is damaged.

    `needs` are names that `metadata.json` must have.
    """
    remedy = PREPARE_AGAIN.format(directory)
    for name in ("dataset_info.json", "features.json", "metadata.json"):
        wanted = needs if name == "metadata.json" else ()
        if wanted or (directory / name).exists():
            read_json(directory / name, remedy=remedy, needs=wanted)
    try:
        yield
    # TFDS and protobuf raise many kinds of errors on damaged files.
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise SeglossError(
            f"{directory}: dataset_info.json or features.json is damaged "
            f"({reason[:200]}); {remedy}."
        ) from error


def encode_png(pixels: Image.Image) -> bytes:
    """Encodes an image as PNG without changing its mode."""
    buffer = io.BytesIO()
    pixels.save(buffer, "PNG")
    return buffer.getvalue()

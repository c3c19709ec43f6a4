"""Base class of the dataset builders; writes array_record files without TensorFlow.

The base class derives from TFDS's `ShardBasedBuilder`, which streams samples to the
files. TFDS's `GeneratorBasedBuilder` would shuffle splits above 1 GB through temporary
files, for which it needs TensorFlow.
"""

import abc
import dataclasses
import functools
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds
from PIL import Image

from segloss.console import make_progress


@dataclasses.dataclass(frozen=True)
class Sample:
    """One encoded sample.

    Attributes:
        stem: name of the sample, unique in its split.
        image: JPEG or PNG bytes of an RGB image.
        labels: PNG bytes of class ids, 8-bit grey, with the size of the image.
        hw: height and width in pixels.
    """

    stem: str
    image: bytes
    labels: bytes
    hw: tuple[int, int]


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
    """

    class_names: tuple[str, ...]
    ignore_label: int


class _Info(tfds.core.DatasetInfo):
    def initialize_from_bucket(self) -> None:
        """Does nothing: the dataset is local, so no server is asked about it."""


class SegmentationBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):
    """Base class of TFDS builders of images with labels.

    Features: `image` uint8 [h, w, 3], `labels` uint8 [h, w, 1], `stem` text. Metadata:
    `class_names`, `ignore_label`, `max_hw` (the largest height and the largest width)
    and `content` (SHA-256 over all samples).
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
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "labels": tfds.features.Image(
                        shape=(None, None, 1), encoding_format="png"
                    ),
                    "stem": tfds.features.Text(),
                }
            ),
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
        with make_progress(transient=True) as self._progress:
            super().download_and_prepare(**{"file_format": "array_record"} | options)

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
        # One split per call: with several, TFDS has Beam write earlier splits again.
        for split, of_split in shards.items():
            self._examples = {
                split: [
                    _Examples(split, shard, self.data_path / f"shard-{i}.json", advance)
                    for i, shard in enumerate(of_split)
                ]
            }
            super()._download_and_prepare(dl_manager, download_config)
            summaries = [examples.take_summary() for examples in self._examples[split]]
            for summary in summaries:
                digest.update(b"".join(map(bytes.fromhex, summary["digests"])))
                sides = zip(max_hw, summary["max_hw"], strict=True)
                max_hw = [max(pair) for pair in sides]
            # TFDS sorts the lengths that Beam counted as text: "0", "1", "10", "2".
            lengths = [len(summary["digests"]) for summary in summaries]
            split_info = self.info.splits[split].replace(shard_lengths=lengths)
            split_infos.append(split_info)
        for path in self.data_path.glob("*.shard_infos.json"):  # left by TFDS on Beam
            path.unlink()
        self.info.set_splits(tfds.core.splits.SplitDict(split_infos))
        self.info.metadata.update(max_hw=max_hw, content=digest.hexdigest())

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
        summary: JSON file for the digests and the largest size of the samples.
        advance: called after each sample; None calls nothing.
    """

    split: str
    shard: Shard
    summary: tfds.core.Path
    advance: Callable[[], None] | None

    def __call__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        digests, max_hw = [], [0, 0]
        for sample in self.shard.read():
            fields = (self.split.encode(), sample.stem.encode())
            fields += (sample.image, sample.labels)
            digests.append("".join(hashlib.sha256(x).hexdigest() for x in fields))
            max_hw = [max(sides) for sides in zip(max_hw, sample.hw, strict=True)]
            if self.advance is not None:
                self.advance()
            yield (
                sample.stem,
                {"image": sample.image, "labels": sample.labels, "stem": sample.stem},
            )
        summary = {"digests": digests, "max_hw": max_hw}
        self.summary.write_text(json.dumps(summary))

    def take_summary(self) -> dict[str, Any]:
        """Returns the content of the summary file, and deletes the file."""
        summary = json.loads(self.summary.read_text())
        self.summary.unlink()
        return summary


def encode_png(pixels: Image.Image) -> bytes:
    """Encodes an image as PNG without changing its mode."""
    buffer = io.BytesIO()
    pixels.save(buffer, "PNG")
    return buffer.getvalue()

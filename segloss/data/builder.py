"""What all datasets share: how samples are written to array_record, without TensorFlow.

`ShardBasedBuilder` streams. TFDS's `GeneratorBasedBuilder` needs TensorFlow as soon as
a split passes 1 GB, because it then shuffles through files.
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
from rich.console import Console
from rich.progress import Progress


@dataclasses.dataclass(frozen=True)
class Sample:
    """One encoded sample.

    Attributes:
        stem: its name, unique in its split.
        image: JPEG or PNG bytes of an RGB image.
        labels: PNG bytes of class ids, mode L, as large as the image.
        hw: height and width in pixels.
    """

    stem: str
    image: bytes
    labels: bytes
    hw: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Shard:
    """Samples that share a file. All are held in memory: keep it near 64 MB.

    Attributes:
        num_samples: how many `read` yields.
        read: makes the samples, in order.
    """

    num_samples: int
    read: Callable[[], Iterable[Sample]]


@dataclasses.dataclass(eq=False, kw_only=True)
class SegmentationConfig(tfds.core.BuilderConfig):
    """Names one dataset.

    Attributes:
        class_names: names of the class ids 0, 1, ...
        ignore_label: the label of pixels that do not count.
    """

    class_names: tuple[str, ...]
    ignore_label: int


class _Info(tfds.core.DatasetInfo):
    def initialize_from_bucket(self) -> None:
        """Asks no server about a dataset that only exists here."""


class SegmentationBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):
    """A TFDS builder of images with labels; subclasses say which.

    Features: `image` uint8 [h, w, 3], `labels` uint8 [h, w, 1], `stem` text. Metadata:
    `class_names`, `ignore_label`, `max_hw` (the largest height and the largest width)
    and `content` (SHA-256 over all samples).
    """

    VERSION = tfds.core.Version("1.0.0")
    # Where TFDS would look for checksums of downloads, with importlib_resources.
    code_path = None

    @abc.abstractmethod
    def shards(self) -> Mapping[str, Sequence[Shard]]:
        """The shards of each split. Called once, when the dataset is written."""

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
        """Writes the dataset as array_record where that has not been done."""
        if self.data_path.exists():
            return
        with make_progress() as self._progress:
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
            advance = None  # the bar cannot follow the shards to their workers
        digest, max_hw, split_infos = hashlib.sha256(), [0, 0], []
        # One by one: with each further split, TFDS lets Beam write all before it anew.
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
            # Those that Beam counted, TFDS sorts as text: "0", "1", "10", "2".
            lengths = [len(summary["digests"]) for summary in summaries]
            split_info = self.info.splits[split].replace(shard_lengths=lengths)
            split_infos.append(split_info)
        for path in self.data_path.glob("*.shard_infos.json"):  # of TFDS on Beam
            path.unlink()
        self.info.set_splits(tfds.core.splits.SplitDict(split_infos))
        self.info.metadata.update(max_hw=max_hw, content=digest.hexdigest())

    def _shard_iterators_per_split(
        self, dl_manager: Any
    ) -> dict[str, list["_Examples"]]:
        return self._examples

    # TFDS warns about every configuration that is not in a list of the class, and
    # announces downloads on stdout. Neither means anything here.
    def _create_builder_config(self, builder_config, version):
        return builder_config

    def _log_download_bytes(self) -> None: ...

    def _log_download_done(self) -> None: ...


@dataclasses.dataclass(frozen=True)
class _Examples:
    """The examples of one shard, without the builder, which Beam could not pickle.

    Attributes:
        split: name of the split.
        shard: its samples.
        summary: the file that takes what metadata must know of them.
        advance: called after each sample.
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
        """What the samples were, once all are made; removes the file."""
        summary = json.loads(self.summary.read_text())
        self.summary.unlink()
        return summary


def encode_png(pixels: Image.Image) -> bytes:
    """PNG bytes of an image, in the mode that it has."""
    buffer = io.BytesIO()
    pixels.save(buffer, "PNG")
    return buffer.getvalue()


def make_progress() -> Progress:
    """Progress bars that only a terminal gets to see, and not once they are done."""
    console = Console()
    return Progress(console=console, transient=True, disable=not console.is_terminal)

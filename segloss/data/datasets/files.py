"""Base class of the builders of datasets that are made from image and label files.

Nothing is written unless every file is valid. A folder that was moved or copied is
recognised by the contents of its files.
"""

import dataclasses
import functools
import hashlib
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from segloss.console import make_console, make_progress
from segloss.data.bands import label_dtype
from segloss.data.datasets.builder import (
    PREPARE_AGAIN,
    Sample,
    SegmentationBuilder,
    SegmentationConfig,
    Shard,
    encode_png,
)
from segloss.data.datasets.checking import check, digest_of, map_ahead
from segloss.data.datasets.faults import DatasetError, Fault
from segloss.data.datasets.pairs import Pair, relative
from segloss.data.datasets.rules import Rules, read_pair
from segloss.errors import SeglossError, describe_size
from segloss.writing import read_json, write_json

_SHARD_BYTES = 64 << 20  # total size of the source files of a shard


@dataclasses.dataclass(eq=False, kw_only=True)
class FilesConfig(SegmentationConfig):
    """The files found under a root, before any image is opened.

    Attributes:
        rules: what the files must be.
        pairs: the files of the samples of each split, by the split's name.
        faults: faults found so far; reported with those found inside the files.
        notes: what the user should know about the files, each in one line.
        sizes: hash of the names and sizes of the files, and of how they are read.
    """

    rules: Rules
    pairs: Mapping[str, list[Pair]]
    faults: Sequence[Fault] = ()
    notes: Sequence[str] = ()
    sizes: str = ""


class FilesBuilder(SegmentationBuilder, skip_registration=True):
    """TFDS builder of pairs of image and label files; checks all before it writes."""

    # Where to get the files; the last lines of the message about faults.
    INSTRUCTIONS = ""

    @classmethod
    def make(
        cls,
        rules: Rules,
        pairs: Mapping[str, list[Pair]],
        *,
        faults: Sequence[Fault] = (),
        notes: Sequence[str] = (),
        salt: str = "",
        data_dir: str | os.PathLike[str] | None = None,
    ) -> "FilesBuilder":
        """Makes the builder of the files that were found.

        Args:
            rules: what the files must be.
            pairs: the files of each split; splits without pairs are left out.
            faults: faults found while listing the files.
            notes: what the user should know about the files, each in one line.
            salt: text that distinguishes datasets with the same files.
            data_dir: folder where prepared datasets are stored; None is TFDS's default.
        """
        pairs = {split: found for split, found in pairs.items() if found}
        if not (faults or pairs):
            remedy = "check the path"
            faults = [Fault(".", "holds no sample of any split", remedy)]
        stems = {split: [pair.stem for pair in found] for split, found in pairs.items()}
        salt = f"{salt}{stems!r}"
        files = _files(pairs)
        return cls(
            data_dir=data_dir,
            config=FilesConfig(
                name=_make_name(rules.root, salt, files),
                class_names=rules.class_names,
                ignore_label=rules.ignore_label,
                num_bands=rules.num_bands,
                image_dtype=rules.image_dtype,
                rules=rules,
                pairs=pairs,
                faults=faults,
                notes=notes,
                sizes=_hash(salt, (_line(rules.root, path) for path in files)),
            ),
        )

    @classmethod
    def make_checked(
        cls,
        rules: Rules,
        pairs: Mapping[str, list[Pair]],
        faults: Sequence[Fault],
        *,
        data_dir: str | os.PathLike[str] | None,
    ) -> "FilesBuilder":
        """Makes the builder of a public dataset, whose files must all be there.

        Raises:
            DatasetError: if there is a fault, or no pair at all.
        """
        builder = cls.make(rules, pairs, faults=faults, data_dir=data_dir)
        if faults := builder.builder_config.faults:
            raise DatasetError(
                rules.root, faults, dataset=cls.name, instructions=cls.INSTRUCTIONS
            )
        return builder

    def download_and_prepare(self, **options: Any) -> None:
        """Checks all files and writes the dataset, unless it exists already.

        A prepared copy of files with the same contents is used instead, through a link.
        TFDS's `download_and_prepare` receives `options`.

        Raises:
            DatasetError: if any file is missing or invalid; nothing is written then.
        """
        config, path = self.builder_config, Path(self.data_path)
        if path.exists():
            if not path.is_symlink():  # the contents were compared for a link
                self._check_source(path)
            return
        path.unlink(missing_ok=True)  # a link to a dataset that was deleted
        if not config.faults and (twin := self._find_twin()):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(os.path.relpath(twin, path.parent))
            return
        found = check(config.rules, config.pairs)
        if faults := [*config.faults, *found.faults]:
            raise DatasetError(
                config.rules.root,
                faults,
                dataset=self.name,
                instructions=self.INSTRUCTIONS,
            )
        self._content = found.content
        self._notes = [*config.notes, *found.notes, *self._describe_older()]
        for note in self._notes:
            make_console().print(f"{self.name}: {note}", soft_wrap=True)
        super().download_and_prepare(**options)

    def _describe_need(self) -> str:
        files = _files(self.builder_config.pairs)
        size = describe_size(sum(path.stat().st_size for path in files))
        return f"the dataset needs about {size}, as much as its files"

    def _download_and_prepare(self, *arguments: Any, **options: Any) -> None:
        super()._download_and_prepare(*arguments, **options)
        config = self.builder_config
        self.info.metadata.update(
            notes=self._notes,
            source={
                "root": str(config.rules.root),
                "sizes": config.sizes,
                "content": self._content,
            },
        )

    def _check_source(self, path: Path) -> None:
        """Checks a dataset of the same name that was made of another folder.

        Files of the same names, sizes and times may differ in content.

        Raises:
            DatasetError: if they do.
        """
        metadata = read_json(path / "metadata.json", remedy=PREPARE_AGAIN.format(path))
        source = metadata.get("source", {})
        config, root = self.builder_config, self.builder_config.rules.root
        if source.get("root") in (None, str(root)):
            return
        if source["content"] != _hash_contents(config):
            rule = f"has files of the same names, sizes and times as {source['root']}"
            remedy = "rename one of the two folders, or give it a data_dir of its own"
            raise DatasetError(root, [Fault(".", rule, remedy)], dataset=self.name)
        # The folder was moved; the next call need not compare its files again.
        source["root"] = str(root)
        write_json(path / "metadata.json", metadata)

    def _prepared(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Yields the directory and the source of every dataset that was made so."""
        for path in sorted(
            Path(self.data_path).parent.parent.glob("*/*/metadata.json")
        ):
            # TFDS writes to a folder `incomplete.*`, which it renames or a kill leaves.
            if path.parent.is_symlink() or path.parent.name.startswith("incomplete."):
                continue
            try:
                metadata = read_json(path, remedy="this prepared dataset is not used")
            except SeglossError as error:
                warnings.warn(str(error), stacklevel=2)
                continue
            yield path.parent, metadata.get("source", {})

    def _find_twin(self) -> Path | None:
        """Returns the directory of a dataset made of files with the same contents."""
        config, content = self.builder_config, None
        for directory, source in self._prepared():
            if source.get("sizes") != config.sizes:
                continue
            content = content or _hash_contents(config)
            if source["content"] == content:
                return directory
        return None

    def _describe_older(self) -> list[str]:
        """Returns a line about datasets made of the same folder before it changed."""
        root = str(self.builder_config.rules.root)
        older = [
            str(path)
            for path, source in self._prepared()
            if source.get("root") == root and source["content"] != self._content
        ]
        if not older:
            return []
        return [
            "the folder has changed; older copies remain for the runs that use them, "
            f"and may be deleted: {', '.join(older)}"
        ]

    def shards(self) -> dict[str, list[Shard]]:
        rules = self.builder_config.rules
        return {
            split: [
                Shard(len(part), functools.partial(_encode_all, rules, part))
                for part in _cut(pairs)
            ]
            for split, pairs in self.builder_config.pairs.items()
        }


def _files(pairs: Mapping[str, Iterable[Pair]]) -> list[Path]:
    every = (pair for of_split in pairs.values() for pair in of_split)
    return [
        *dict.fromkeys(path for pair in every for path in (pair.image, pair.labels))
    ]


def _make_name(root: Path, salt: str, files: Iterable[Path]) -> str:
    """Returns a name for a dataset: that of its folder, and a hash of its files.

    The name does not change if the folder is moved to another directory. It depends on
    `salt`, and on the names, sizes and modification times of the files.
    """
    lines = (f"{_line(root, path)}\0{path.stat().st_mtime_ns}" for path in files)
    return f"{re.sub(r'[^0-9A-Za-z_.-]+', '_', root.name)}-{_hash(salt, lines)[:12]}"


def _line(root: Path, path: Path) -> str:
    return f"{relative(root, path)}\0{path.stat().st_size}"


def _hash(salt: str, lines: Iterable[str]) -> str:
    digest = hashlib.sha256(salt.encode())
    for line in lines:
        digest.update(f"\n{line}".encode())
    return digest.hexdigest()


def _hash_contents(config: FilesConfig) -> str:
    """Returns the `content` that `check` finds, without decoding a file."""
    content = hashlib.sha256()
    files = _files(config.pairs)
    digest = functools.partial(digest_of, config.rules.root)
    with make_progress(transient=True) as bar, ThreadPoolExecutor() as pool:
        digests = map_ahead(pool, digest, files)
        for one in bar.track(digests, len(files), description="Comparing files"):
            content.update(one)
    return content.hexdigest()


def _encode(rules: Rules, pair: Pair) -> Sample:
    data = pair.labels.read_bytes(), pair.image.read_bytes()
    labels, image = read_pair(rules, pair, *data)
    dtype = label_dtype(len(rules.class_names), rules.ignore_label)
    stored = labels.unchanged and dtype == "uint8"
    return Sample(
        pair.stem,
        data[1] if image.unchanged else _store(image.pixels),
        data[0] if stored else encode_png(Image.fromarray(labels.ids.astype(dtype))),
        labels.ids.shape,
        image.nodata,
    )


def _store(pixels: np.ndarray) -> bytes | np.ndarray:
    is_rgb = pixels.dtype == np.uint8 and pixels.shape[-1] == 3
    return encode_png(Image.fromarray(pixels)) if is_rgb else pixels


def _encode_all(rules: Rules, pairs: list[Pair]) -> Iterator[Sample]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from map_ahead(pool, functools.partial(_encode, rules), pairs)


def _cut(pairs: list[Pair]) -> Iterator[list[Pair]]:
    """Splits `pairs` into lists with about `_SHARD_BYTES` bytes of files each."""
    shard, size = [], 0
    for pair in pairs:
        size += pair.image.stat().st_size + pair.labels.stat().st_size
        shard.append(pair)
        if size >= _SHARD_BYTES:
            yield shard
            shard, size = [], 0
    if shard:
        yield shard

import functools

import numpy as np
import pytest
from PIL import Image

from segloss.data.class_index import ClassIndex, LabelCounter
from segloss.data.datasets.builder import (
    Sample,
    SegmentationBuilder,
    SegmentationConfig,
    Shard,
    encode_png,
)
from segloss.data.datasets.dataset import DATASETS, open_dataset

pytest.importorskip("apache_beam", reason="needs the extra beam: make test-beam")
from segloss.data.beam import count_on_beam, prepare_on_beam

# TFDS on the protobuf that Beam allows.
pytestmark = pytest.mark.filterwarnings("ignore:label:DeprecationWarning")

# Samples per shard; with more than ten, TFDS by itself mixes up Beam's lengths.
LENGTHS = {"train": [1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3], "val": [2]}


class Dots(SegmentationBuilder, skip_registration=True):
    """Sample `SPLIT-SHARD-I` is SHARD + 1 pixels of class I and one of void."""

    def shards(self):
        return {
            split: [
                Shard(length, functools.partial(read_dots, split, shard, length))
                for shard, length in enumerate(lengths)
            ]
            for split, lengths in LENGTHS.items()
        }


def read_dots(split, shard, length):
    for i in range(length):
        labels = Image.fromarray(np.array([[i] * (shard + 1) + [255]], np.uint8))
        yield Sample(
            stem=f"{split}-{shard}-{i}",
            image=encode_png(labels.convert("RGB")),
            labels=encode_png(labels),
            hw=(1, shard + 2),
        )


def make_dots(*, data_dir):
    config = SegmentationConfig(
        name="dots", class_names=("a", "b", "c"), ignore_label=255
    )
    return Dots(data_dir=data_dir, config=config)


@pytest.fixture(autouse=True)
def known_dots(monkeypatch):
    monkeypatch.setitem(DATASETS, "dots", make_dots)


def test_beam_makes_the_same_dataset(tmp_path):
    ours = open_dataset("dots", data_dir=tmp_path / "ours")
    theirs = prepare_on_beam("dots", data_dir=tmp_path / "theirs")
    assert theirs.fingerprint == ours.fingerprint
    assert theirs.max_hw == (1, 13)
    for split, lengths in LENGTHS.items():
        expected = [
            (f"{split}-{shard}-{i}", [shard + 1 if i == c else 0 for c in range(3)])
            for shard, length in enumerate(lengths)
            for i in range(length)
        ]
        stems = [sample["stem"] for sample in theirs.source(split)]
        counts = theirs.class_index(split).pixel_counts.tolist()
        assert list(zip(stems, counts, strict=True)) == expected
        ours.class_index(split)
    names, again = (
        {path.name for path in d.data_dir.iterdir()} for d in (ours, theirs)
    )
    assert names == again
    for name in names:
        # The fields of a record have no order.
        if "array_record" not in name:
            written, expected = (
                (d.data_dir / name).read_bytes() for d in (theirs, ours)
            )
            assert written == expected


def test_beam_makes_nothing_twice(tmp_path):
    first = prepare_on_beam("dots", data_dir=tmp_path)
    before = {path: path.stat().st_mtime_ns for path in first.data_dir.iterdir()}
    assert prepare_on_beam("dots", data_dir=tmp_path) == first
    assert before == {
        path: path.stat().st_mtime_ns for path in first.data_dir.iterdir()
    }


class Numbered:
    """300 samples, so 3 parts: sample i is i % 7 + 1 pixels of class i % 2."""

    def __len__(self):
        return 300

    def __getitem__(self, i):
        return {"labels": np.full((1, i % 7 + 1), i % 2, np.uint8), "stem": str(i)}


def test_beam_counts_all_parts(tmp_path):
    count_on_beam(LabelCounter(Numbered(), 2, 255, "c0ffee", tmp_path))
    parts = {path.name for path in tmp_path.iterdir()}
    assert parts == {"0.npy", "128.npy", "256.npy"}
    # 127 % 7 + 1 = 2 pixels, 128 % 7 + 1 = 3, and 299 % 7 + 1 = 6.
    for start, row, expected in (
        (0, 0, [1, 0]),
        (0, 127, [0, 2]),
        (128, 0, [3, 0]),
        (256, 43, [0, 6]),
    ):
        index = ClassIndex.load(tmp_path / f"{start}.npy", "c0ffee")
        assert index.pixel_counts[row].tolist() == expected

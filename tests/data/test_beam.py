import numpy as np
import pytest

from segloss.data import folder
from segloss.data.class_index import ClassIndex, LabelCounter
from segloss.data.datasets import open_dataset

pytest.importorskip("apache_beam", reason="needs the extra beam: make test-beam")
from segloss.data.beam import count_on_beam, prepare_on_beam

# TFDS on the protobuf that Beam allows.
pytestmark = pytest.mark.filterwarnings("ignore:label:DeprecationWarning")


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def prepare_here(name, **hyperparameters):
    dataset = open_dataset(name, **hyperparameters)
    for split in dataset.splits:
        dataset.class_index(split)
    return dataset


# Each sample is a shard of its own: six workers may write at once.
def test_beam_makes_the_same_files(small_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "_SHARD_BYTES", 1)
    ours = prepare_here("folder", root=small_folder, data_dir=tmp_path / "ours")
    theirs = prepare_on_beam("folder", root=small_folder, data_dir=tmp_path / "theirs")
    assert theirs.fingerprint == ours.fingerprint
    assert contents(theirs.data_dir) == contents(ours.data_dir)
    assert "folder-train.array_record-00003-of-00004" in contents(theirs.data_dir)


class Numbered:
    """300 samples, so 3 parts: sample i is i % 7 + 1 pixels of class i % 2."""

    def __len__(self):
        return 300

    def __getitem__(self, i):
        return {"labels": np.full((1, i % 7 + 1), i % 2, np.uint8), "stem": str(i)}


def test_beam_counts_all_parts(tmp_path):
    count_on_beam(LabelCounter(Numbered(), 2, 255, "c0ffee", tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {
        "0.npy",
        "128.npy",
        "256.npy",
    }
    # 127 % 7 + 1 = 2 pixels, 128 % 7 + 1 = 3, and 299 % 7 + 1 = 6.
    for part, row, expected in (
        (0, 0, [1, 0]),
        (0, 127, [0, 2]),
        (128, 0, [3, 0]),
        (256, 43, [0, 6]),
    ):
        index = ClassIndex.load(tmp_path / f"{part}.npy", "c0ffee")
        assert index.pixel_counts[row].tolist() == expected


def test_beam_does_not_make_twice(small_folder, tmp_path):
    first = prepare_on_beam("folder", root=small_folder, data_dir=tmp_path)
    before = {path: path.stat().st_mtime_ns for path in first.data_dir.iterdir()}
    assert prepare_on_beam("folder", root=small_folder, data_dir=tmp_path) == first
    assert before == {
        path: path.stat().st_mtime_ns for path in first.data_dir.iterdir()
    }

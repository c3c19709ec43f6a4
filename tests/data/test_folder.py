import os
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from user_folders import save

from segloss.data.datasets import files
from segloss.data.datasets.dataset import open_dataset
from segloss.data.datasets.faults import DatasetError


def samples(dataset, split="train"):
    source = dataset.source(split)
    return {
        sample["stem"]: sample for sample in (source[i] for i in range(len(source)))
    }


# --- what is read ---------------------------------------------------------------


def test_pixels_come_back_bit_for_bit(open_folder, small_folder):
    dataset = open_folder()
    assert dataset.class_names == ("ground", "box", "bar")
    assert (dataset.splits, dataset.max_hw) == (("train", "val"), (40, 52))
    for split in dataset.splits:
        for stem, sample in samples(dataset, split).items():
            for key, kind in (("image", "images"), ("labels", "labels")):
                file = small_folder / split / kind / f"{stem}.png"
                np.testing.assert_array_equal(sample[key], np.asarray(Image.open(file)))


def test_rgb_files_are_stored_as_they_are(open_folder, small_folder):
    images = small_folder / "train/images"
    Image.open(images / "a.png").save(images / "a.JPEG", quality=80)
    (images / "a.png").unlink()
    builder = tfds.builder_from_directory(str(open_folder().data_dir))
    raw = builder.as_data_source(
        "train", decoders={"image": tfds.decode.SkipDecoding()}
    )
    stored = {sample["stem"].decode(): sample["image"] for sample in raw}
    assert stored["a"] == (images / "a.JPEG").read_bytes()
    assert stored["b"] == (images / "b.png").read_bytes()


def test_image_stays_as_stored_where_its_label_does(open_folder, small_folder):
    image = small_folder / "train/images/a.png"
    stored = Image.open(image).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    stored.save(image, exif=exif)
    path = small_folder / "train/labels/a.png"
    ids = np.rot90(np.asarray(Image.open(path)))
    save(path, ids)
    sample = samples(open_folder())["a"]
    np.testing.assert_array_equal(sample["image"], stored)
    np.testing.assert_array_equal(sample["labels"], ids)


def test_large_splits_go_to_several_files(open_folder, tmp_path, monkeypatch):
    whole = open_folder().fingerprint
    monkeypatch.setattr(files, "_SHARD_BYTES", 1)
    dataset = open_folder(data_dir=tmp_path / "again")
    assert len(list(dataset.data_dir.glob("*train*-of-00004"))) == 4
    assert list(samples(dataset)) == ["a", "b", "c", "d"]
    assert dataset.fingerprint == whole


def test_one_split_is_enough(open_folder, small_folder):
    shutil.rmtree(small_folder / "train")
    assert open_folder().splits == ("val",)


def test_other_files_are_left_alone(open_folder, small_folder):
    (small_folder / "train/images/.hidden.png").touch()
    (small_folder / "train/labels/notes.txt").touch()
    assert len(open_folder().source("train")) == 4


def test_ignore_label_is_void(open_folder, small_folder):
    path = small_folder / "train/labels/a.png"
    ids = np.array(Image.open(path))
    for file in small_folder.glob("*/labels/*.png"):
        labels = np.array(Image.open(file))
        labels[labels == 255] = 7
        save(file, labels)
    dataset = open_folder(ignore_label=7)
    counts = dataset.class_index("train").pixel_counts[0]
    np.testing.assert_array_equal(counts, [np.sum(ids == k) for k in range(3)])


def test_classes_may_have_spaces_and_blank_lines(open_folder, small_folder):
    (small_folder / "classes.txt").write_text(
        "0\tbare  ground\n\n1 box \n2 bar", "utf-8-sig"
    )
    assert open_folder().class_names == ("bare  ground", "box", "bar")


# --- when it is made anew -------------------------------------------------------


def test_same_data_is_found_again_wherever_it_lies(small_folder, tmp_path):
    moved = tmp_path / "elsewhere" / small_folder.name
    shutil.copytree(small_folder, moved)  # keeps times
    first, second = (
        open_dataset("folder", root=root, data_dir=tmp_path / "data")
        for root in (small_folder, moved)
    )
    assert first == second


def test_unchanged_data_is_not_read_again(open_folder, small_folder):
    before = open_folder()
    path = small_folder / "train/images/a.png"
    stat = path.stat()
    path.write_bytes(b"\0" * stat.st_size)  # broken, but not to be noticed
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert open_folder() == before


def test_changed_data_is_another_dataset(open_folder, small_folder):
    path = small_folder / "train/labels/a.png"
    before, ids = open_folder(), np.array(Image.open(path))
    save(path, np.where(ids == 1, 2, ids))
    after = open_folder()
    assert after.data_dir != before.data_dir
    assert after.fingerprint != before.fingerprint
    assert before.source("train")[0]["labels"].max() == 255


def test_ignore_label_is_part_of_the_fingerprint(small_folder, tmp_path):
    for file in small_folder.glob("*/labels/*.png"):
        save(file, np.asarray(Image.open(file)) % 255)
    one, other = (
        open_dataset("folder", root=small_folder, ignore_label=k, data_dir=tmp_path)
        for k in (254, 255)
    )
    assert one.data_dir != other.data_dir
    assert one.fingerprint != other.fingerprint


def test_other_contents_under_the_same_names_sizes_and_times_are_refused(tmp_path):
    def make(place, value):
        for kind in ("images", "labels"):
            (tmp_path / place / "mine/train" / kind).mkdir(parents=True)
        root = tmp_path / place / "mine"
        (root / "classes.txt").write_text("0 a\n1 b\n")
        save(root / "train/images/a.bmp", np.full((4, 4, 3), value))
        save(root / "train/labels/a.bmp", np.eye(4) + value * 0)
        for file in root.glob("train/*/a.bmp"):
            os.utime(file, (10**9, 10**9))
        return root

    first, other = make("x", 1), make("y", 2)
    open_dataset("folder", root=first, data_dir=tmp_path / "data")
    with pytest.raises(DatasetError, match=r"same names, sizes and times as .*/x/mine"):
        open_dataset("folder", root=other, data_dir=tmp_path / "data")


def test_link_to_a_deleted_dataset_is_prepared_anew(small_folder, tmp_path):
    data = {"data_dir": tmp_path / "data"}
    first = open_dataset("folder", root=small_folder, **data)
    copy = tmp_path / "elsewhere" / small_folder.name
    shutil.copytree(small_folder, copy, copy_function=shutil.copyfile)
    assert open_dataset("folder", root=copy, **data).data_dir == first.data_dir
    shutil.rmtree(first.data_dir.parent)
    again = open_dataset("folder", root=copy, **data)
    assert again.fingerprint == first.fingerprint
    assert len(again.source("train")) == 4

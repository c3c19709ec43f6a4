import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from segloss.data.datasets import files
from segloss.data.datasets.checking import map_ahead
from segloss.data.datasets.dataset import open_dataset
from segloss.data.datasets.faults import DatasetError, Fault
from segloss.data.datasets.folder import folder


@pytest.fixture
def open_folder(small_folder, tmp_path):
    """Opens `small_folder` as it is now."""

    def open_now(**hyperparameters):
        hyperparameters = {"data_dir": tmp_path / "data"} | hyperparameters
        return open_dataset("folder", root=small_folder, **hyperparameters)

    return open_now


@pytest.fixture
def faults_of(open_folder, tmp_path):
    """What is wrong with `small_folder` as it is now; nothing may be written."""

    def find():
        with pytest.raises(DatasetError) as caught:
            open_folder()
        assert not (tmp_path / "data").exists()
        return [str(fault) for fault in caught.value.faults]

    return find


def save(path, array, mode=None, **options):
    image = Image.fromarray(np.asarray(array, np.uint8))
    (image.convert(mode) if mode else image).save(path, **options)


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


# --- what is refused ------------------------------------------------------------


def drop_label(root):
    (root / "train/labels/a.png").unlink()


def drop_image(root):
    (root / "train/images/b.png").unlink()


def double_image(root):
    shutil.copy(root / "train/images/c.png", root / "train/images/c.jpg")


def shrink_label(root):
    save(root / "train/labels/a.png", np.zeros((8, 9)))


def stray_label(root):
    path = root / "val/labels/e.png"
    labels = np.array(Image.open(path))
    labels[0, :3], labels[1, :1] = 3, 200
    save(path, labels)


def colour_label(root):
    save(root / "train/labels/a.png", np.full((36, 52, 3), (1, 2, 3)))


def jpeg_label(root):
    save(root / "train/labels/a.png", np.zeros((36, 52)), format="JPEG")


def deep_image(root):
    path = root / "train/images/b.png"
    h, w, _ = np.shape(Image.open(path))
    Image.fromarray(np.zeros((h, w), np.uint16)).save(path)


def truncate_image(root):
    path = root / "train/images/a.png"
    path.write_bytes(path.read_bytes()[:400])


def truncate_jpeg(root):
    images = root / "train/images"
    Image.open(images / "a.png").save(images / "a.jpg")
    (images / "a.png").unlink()
    (images / "a.jpg").write_bytes((images / "a.jpg").read_bytes()[:-200])


def empty_image(root):
    (root / "val/images/e.png").write_bytes(b"")


def empty_label(root):
    (root / "val/labels/f.png").write_bytes(b"")


def text_image(root):
    (root / "val/images/f.png").write_text("no image")


def empty_split(root):
    (root / "test").mkdir()


@pytest.mark.parametrize(
    ("spoil", "faults"),
    [
        (drop_label, ["train/images/a.png: has no label; add train/labels/STEM.png"]),
        (
            drop_image,
            ["train/labels/b.png: has no image; add train/images/STEM.jpg or"],
        ),
        (
            double_image,
            [
                "train/images/c.jpg: has the same stem as another file, "
                "got train/images/c.png; keep one"
            ],
        ),
        (
            shrink_label,
            [
                "train/labels/a.png: must have the size of its image, got 8 x 9, ",
                "the image has 36 x 52 (height x width)",
            ],
        ),
        (
            stray_label,
            [
                "val/labels/e.png: values must be 0..2 or ignore_label 255, "
                "got 3 (3 px), 200 (1 px); correct the label"
            ],
        ),
        (
            colour_label,
            ["train/labels/a.png: labels are colours, but classes.txt lists none; "],
        ),
        (jpeg_label, ["train/labels/a.png: labels must be stored without loss, got J"]),
        (
            deep_image,
            [
                "train/images/b.png: must be RGB, as train/images/a.png is, "
                "got 1 band of uint16"
            ],
        ),
        (truncate_image, ["train/images/a.png: must be a sound file, got a damaged"]),
        (truncate_jpeg, ["train/images/a.jpg: must be a sound file", "truncated"]),
        (empty_image, ["val/images/e.png: is empty; replace the file"]),
        (empty_label, ["val/labels/f.png: is empty; replace the file"]),
        (
            text_image,
            ["val/images/f.png: must be PNG, JPEG, WebP, BMP, GIF, TIFF or a NumPy"],
        ),
        (empty_split, ["test: must hold images and labels; fill it or remove"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_fault_names_file_rule_value_and_remedy(small_folder, faults_of, spoil, faults):
    spoil(small_folder)
    (found,) = faults_of()
    assert found.startswith(faults[0])
    assert all(part in found for part in faults)
    assert ";" in found


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (None, "classes.txt: is missing; write"),
        (b"", "classes.txt: is empty; write"),
        (
            b"0 a\n2 b\n",
            "classes.txt line 2: must be `INDEX NAME`, got `2 b`, which may be `1 ",
        ),
        (
            b"1 a\n",
            "classes.txt line 1: must be `INDEX NAME`, got `1 a`, which may be `0 ",
        ),
        (b"0 a\n1\n", "classes.txt line 2: must be `INDEX NAME`, got `1 `; indices"),
        (b"a\n", "classes.txt line 1: must be `INDEX NAME`, got `a `; indices"),
        (b"0 a\n1 a\n", "classes.txt line 2: must name a class that no"),
        (b"0 \xff\n", "classes.txt: must be UTF-8 text"),
        (b"0 a VALUES=4\n", "classes.txt line 1: must be `INDEX NAME #rrggbb val"),
        (b"0 a values=4;5\n", "classes.txt line 1: must be `INDEX NAME #rrggbb val"),
        (b"0 a #ff00\n", "classes.txt line 1: must be `INDEX NAME #rrggbb values=N"),
        (b"0 a values=1\n1 b\n", "classes.txt line 2: must not list what an earlier"),
        (b"0 a #010203\n1 b #010203", "classes.txt line 2: must not list what an ear"),
        (b"0 a values=65536\n", "classes.txt line 1: must have values <= 65535, got"),
        (
            "\n".join(f"{k} class{k}" for k in range(256)).encode(),
            "classes.txt line 256: must not be ignore_label, got 255",
        ),
    ],
)
def test_bad_classes_are_told_by_line(small_folder, faults_of, text, fault):
    path = small_folder / "classes.txt"
    path.unlink() if text is None else path.write_bytes(text)
    assert faults_of()[0].startswith(fault)


def test_no_split_at_all(small_folder, faults_of):
    shutil.rmtree(small_folder / "train")
    shutil.rmtree(small_folder / "val")
    (fault,) = faults_of()
    assert fault.startswith(".: must hold folders of images and labels; make train/")


def test_all_faults_are_shown_at_once(small_folder, faults_of):
    spoilers = [
        drop_label,
        drop_image,
        double_image,
        stray_label,
        empty_label,
        empty_split,
    ]
    for spoil in spoilers:
        spoil(small_folder)
    (small_folder / "classes.txt").write_text("0 ground\n1 box\n5 bar\n")
    found = faults_of()
    # Without classes no value can be judged, so `stray_label` stays unseen.
    assert sorted(line.split(":")[0] for line in found) == [
        "classes.txt line 3",
        "test",
        "train/images/a.png",
        "train/images/c.jpg",
        "train/labels/b.png",
        "val/labels/f.png",
    ]


def test_faults_of_one_kind_are_one_line_with_five_names():
    faults = [
        Fault(f"train/images/{k}.png", "has no label", "add it") for k in range(10_000)
    ]
    faults.append(Fault("train/labels/a.png", "must be 0..2", "correct it", "7"))
    error = DatasetError("somewhere", faults)
    first, *lines = str(error).splitlines()
    assert first == "folder: somewhere has 10,001 faults, nothing was written:"
    assert lines == [
        "  10,000 files: has no label; add it: train/images/0.png, train/images/1.png, "
        "train/images/2.png, train/images/3.png, train/images/4.png and 9,995 more",
        "  train/labels/a.png: must be 0..2, got 7; correct it",
    ]
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.faults, str(copy)) == (tuple(faults), str(error))


def test_few_files_wait_to_be_read():
    started = []
    with ThreadPoolExecutor(2) as pool:
        results = map_ahead(pool, lambda k: started.append(k) or k, range(20_000))
        for k in range(100):
            assert next(results) == k
            assert len(started) <= k + 66
        assert list(results) == [*range(100, 20_000)]


def test_arguments_are_checked(tmp_path):
    with pytest.raises(
        ValueError, match=r"ignore_label must be in 0..65535, got 65536"
    ):
        folder(root=tmp_path, ignore_label=65536)
    with pytest.raises(DatasetError, match=r"absent has 1 fault, .*\n.*not a folder"):
        folder(root=tmp_path / "absent")

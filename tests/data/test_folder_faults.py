"""What the `folder` format refuses, and how it says so."""

import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from user_folders import save

from segloss.data.datasets.checking import map_ahead
from segloss.data.datasets.faults import DatasetError, Fault
from segloss.data.datasets.folder import folder


@pytest.fixture
def faults_of(open_folder, tmp_path):
    """What is wrong with `small_folder` as it is now; nothing may be written."""

    def find():
        with pytest.raises(DatasetError) as caught:
            open_folder()
        assert not (tmp_path / "data").exists()
        return [str(fault) for fault in caught.value.faults]

    return find


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

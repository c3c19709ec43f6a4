"""Which files are images to predict, their labels, and the names of predictions."""

import os
from pathlib import Path

import pytest

from segloss.errors import MissingFileError, SeglossError
from segloss.trained.inputs import (
    MANIFEST,
    LabelNames,
    Tally,
    find_inputs,
    printable,
)


def make(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def names(path, **options):
    ((found, count, left_out),) = find_inputs([path], **options)
    images = list(found.images())
    assert len(images) == count
    return {i.name: i.path.relative_to(path).as_posix() for i in images}, left_out


def test_folders_below_are_searched_and_keep_their_structure(tmp_path):
    make(tmp_path, "b.PNG", "a.jpg", "day/x.png", "day/night/x.jpeg", ".hidden/x.png")
    make(tmp_path, ".x.png", "notes.txt", "day/Thumbs.db")
    found, left_out = names(tmp_path)
    assert found == {
        "a": "a.jpg",
        "b": "b.PNG",
        "day/x": "day/x.png",
        "day/night/x": "day/night/x.jpeg",
    }
    assert str(left_out) == "notes.txt, day/Thumbs.db"


def test_images_of_one_stem_keep_their_full_names(tmp_path):
    make(
        tmp_path, "a.jpg", "a.png", "b.png", "a.jpg.png", "B.jpg", "c.png", "sub/a.png"
    )
    found, _ = names(tmp_path)
    assert found == {
        "a.jpg": "a.jpg",
        "a.png": "a.png",
        "a.jpg.png": "a.jpg.png",
        "b.png": "b.png",
        "B.jpg": "B.jpg",
        "c": "c.png",
        "sub/a": "sub/a.png",
    }


def test_a_folder_of_images_and_labels_stands_for_its_images(tmp_path):
    make(tmp_path, "images/a.png", "images/sub/b.png", "labels/a.png", "other/c.png")
    make(tmp_path, "labels/sub/b.tif", "d.png", "images/sub/unlabelled.png")
    ((found, count, left_out),) = find_inputs([tmp_path])
    assert found.path == tmp_path / "images"
    assert {image.name: image.labels for image in found.images()} == {
        "a": tmp_path / "labels/a.png",
        "sub/b": tmp_path / "labels/sub/b.tif",
        "sub/unlabelled": None,
    }
    assert (count, str(left_out)) == (3, "d.png, other")


def test_a_folder_of_images_alone_stands_for_what_holds_it(tmp_path):
    make(tmp_path, "images/a.png", "notes.txt")
    ((found, _, left_out),) = find_inputs([tmp_path])
    assert found.path == tmp_path / "images"
    assert str(left_out) == "notes.txt"
    make(tmp_path, "more/b.png")
    assert names(tmp_path)[0] == {"images/a": "images/a.png", "more/b": "more/b.png"}


def test_labels_of_a_whole_dataset_are_no_images(tmp_path):
    make(tmp_path, "train/images/a.png", "train/labels/a.png", "val/imgs/s/b.jpg")
    make(tmp_path, "val/masks/s/b.png", "classes.txt", "test/images/c.png")
    ((found, _, left_out),) = find_inputs([tmp_path])
    assert {i.name: i.labels for i in found.images()} == {
        "test/images/c": None,
        "train/images/a": tmp_path / "train/labels/a.png",
        "val/imgs/s/b": tmp_path / "val/masks/s/b.png",
    }
    assert str(left_out) == "classes.txt"


def test_labels_are_found_from_any_folder_inside(tmp_path):
    make(tmp_path, "images/val/x/a.png", "labels/val/x/a.png")
    make(tmp_path, "set/photos/b.png", "set/labels/b.png")
    labels = tmp_path / "labels/val/x/a.png"
    for inside in ("", "images", "images/val", "images/val/x", "images/val/x/a.png"):
        ((found, _, _),) = find_inputs([tmp_path / inside])
        assert next(i.labels for i in found.images() if i.path.stem == "a") == labels
    for inside in ("photos", "photos/b.png"):
        ((found, _, _),) = find_inputs([tmp_path / "set" / inside])
        assert [i.labels for i in found.images()] == [tmp_path / "set/labels/b.png"]


def test_names_of_labels_may_differ_as_in_training(tmp_path):
    composed, decomposed = "é", "e\u0301"
    make(
        tmp_path, "images/a_img.png", "labels/a_mask.tif", f"images/{composed}_img.png"
    )
    make(tmp_path, f"labels/{decomposed}_mask.png", "labels/a.png")
    ((found, _, _),) = find_inputs([tmp_path])
    images = found.images(label_names=LabelNames("_img", "_mask"))
    assert [image.labels.name for image in images] == [
        "a_mask.tif",
        f"{decomposed}_mask.png",
    ]


def test_each_input_counts_once_and_all_are_checked_first(tmp_path):
    make(tmp_path, "val/images/a.png", "b.jpg")
    given = [tmp_path / "val", tmp_path / "val/images", tmp_path / "b.jpg"]
    assert [count for _, count, _ in find_inputs(given)] == [1, 1]
    with pytest.raises(MissingFileError, match=r"--input=.*none: cannot be read \(No"):
        find_inputs([*given, tmp_path / "none"])


def test_what_predict_wrote_and_the_run_are_not_searched(tmp_path):
    make(tmp_path, "a.png", f"out/a/{MANIFEST}", "out/a/indices/a.png")
    make(tmp_path, "run/figures/curve.png")
    found, left_out = names(tmp_path, skipped=[tmp_path / "run"])
    assert found == {"a": "a.png"}
    assert str(left_out) == "run, out/a"


def test_links_do_not_lead_in_circles_and_pipes_do_not_hang(tmp_path):
    make(tmp_path, "in/a.png", "elsewhere/b.png", "elsewhere/file.png")
    folder = tmp_path / "in"
    (folder / "circle").symlink_to(folder)
    (folder / "other").symlink_to(tmp_path / "elsewhere")
    (folder / "link.png").symlink_to(tmp_path / "elsewhere/file.png")
    (folder / "broken.png").symlink_to(tmp_path / "nowhere.png")
    (folder / "itself.png").symlink_to(folder / "itself.png")
    os.mkfifo(folder / "pipe.png")
    os.mkfifo(folder / "pipe")
    found, left_out = names(folder)
    assert list(found) == ["a", "broken", "itself", "link", "pipe"]
    assert str(left_out) == "circle, other, pipe"
    with pytest.raises(SeglossError, match="must be an image or a folder"):
        find_inputs([folder / "pipe"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "--input is missing"),
        ([""], "--input is empty"),
        (["none"], r"--input=none: cannot be read \(No such file.*no image found"),
        (["a.txt/b"], r"cannot be read \(Not a directory\)"),
        (["x" * 300], r"cannot be read \(File name too long\)"),
        (["zero\0byte"], r"--input=zero\\x00byte: cannot be read"),
        (["loop"], "cannot be read"),
        (["empty"], r"--input=empty: no image found; known are \.bmp.*, but .* a\.tx"),
    ],
)
def test_wrong_input_is_one_line(tmp_path, monkeypatch, given, message):
    monkeypatch.chdir(tmp_path)
    make(tmp_path, "a.txt", "empty/a.txt", "empty/b.txt")
    Path("loop").symlink_to("loop")
    with pytest.raises(SeglossError, match=message) as caught:
        find_inputs(given)
    assert "\n" not in str(caught.value)


def test_names_are_printed_without_harm():
    assert printable("a\nb\x1b[2J\udcff é.png") == r"a\nb\x1b[2J\udcff é.png"
    tally = Tally()
    for k in range(1, 1008):
        tally.add(f"{k}\n.png", "is\tdamaged")
    assert tally.count == 1007
    assert str(tally).startswith(r"1\n.png (is\tdamaged), 2\n.png")
    assert str(tally).endswith(r"5\n.png (is\tdamaged) and 1,002 more")

"""Which files are images to predict, their labels, and the names of predictions."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segloss.errors import MissingFileError, SeglossError
from segloss.trained.inputs import (
    MANIFEST,
    Tally,
    find_inputs,
    printable,
    read_class_ids,
    read_pixels,
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


def test_a_folder_with_images_in_it_stands_for_them(tmp_path):
    make(tmp_path, "images/a.png", "images/sub/b.png", "labels/a.png", "other/c.png")
    make(tmp_path, "labels/sub/b.png", "d.png")
    ((found, count, left_out),) = find_inputs([tmp_path])
    assert found.path == tmp_path / "images"
    assert [image.name for image in found.images()] == ["a", "sub/b"]
    assert [image.labels for image in found.images()] == [
        tmp_path / "labels/a.png",
        tmp_path / "labels/sub/b.png",
    ]
    assert (count, str(left_out)) == (2, "d.png, other")


def test_labels_of_a_whole_dataset_are_no_images(tmp_path):
    make(tmp_path, "train/images/a.png", "train/labels/a.png", "val/images/s/b.jpg")
    make(tmp_path, "val/labels/s/b.png", "classes.txt", "test/images/c.png")
    ((found, _, left_out),) = find_inputs([tmp_path])
    assert {i.name: i.labels for i in found.images()} == {
        "test/images/c": None,
        "train/images/a": tmp_path / "train/labels/a.png",
        "val/images/s/b": tmp_path / "val/labels/s/b.png",
    }
    assert str(left_out) == "classes.txt"


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
    for name in ("broken", "itself", "pipe"):
        with pytest.raises(SeglossError):
            read_pixels(folder / f"{name}.png")
    with pytest.raises(SeglossError, match="is not a file that can be read"):
        read_pixels(folder / "pipe.png")
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
        (["empty"], r"--input=empty: no image found; known are \.jpg.*, but .* a\.tx"),
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


def test_files_that_cannot_be_used_say_why(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("hello")
    Image.fromarray(np.zeros((30, 30, 3), np.uint8)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:60])
    for name, reason in {
        "empty": "empty",
        "text": "is not an image",
        "cut": "damaged",
        "none": "No such file",
    }.items():
        for read in (read_pixels, read_class_ids):
            with pytest.raises(SeglossError, match=reason):
                read(tmp_path / f"{name}.png")

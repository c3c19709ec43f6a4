"""The rows of docs/own_data.md on names, folders and prepared datasets."""

import os
import shutil
import unicodedata

import pytest
from user_folders import IDS, PLAIN, Home, make_rows

from segloss.data.datasets.dataset import open_dataset
from segloss.data.datasets.faults import DatasetError

ROWS, row = make_rows()


@pytest.fixture
def home(tmp_path, capsys):
    return Home(tmp_path, capsys)


# --- names and folders ---


@row("names of labels end in a suffix")
def label_suffix(home):
    for k in range(7):
        home.add(IDS, stem=f"IMG_{k}")
        label = home.root / f"train/labels/IMG_{k}.png"
        label.rename(label.with_name(f"IMG_{k}_mask.png"))
    home.classes(PLAIN).refused(
        "7 files: has no label of the same name; if the labels' names end in '_mask', "
        r"add --config.data.label_suffix=_mask: .*IMG_4_mask.png\) and 2 more$"
    )
    home.open(label_suffix="_mask").means(IDS)
    assert len(home.dataset.source("train")) == 7


@row("names of images and labels end in suffixes (Cityscapes)")
def both_suffixes(home):
    folders = "leftImg8bit/{split}/ulm", "gtFine/{split}/ulm"
    for split in ("train", "val"):
        home.add(IDS, stem="ulm_1", split=split, folders=folders)
        for place, ending in zip(
            folders, ("_leftImg8bit", "_gtFine_labelIds"), strict=1
        ):
            path = home.root / place.format(split=split) / "ulm_1.png"
            path.rename(path.with_name(f"ulm_1{ending}.png"))
    home.add(IDS, stem="ulm_1_gtFine_color", folders=(folders[1], folders[1]))
    home.classes(PLAIN)
    home.open(image_suffix="_leftImg8bit", label_suffix="_gtFine_labelIds").means(IDS)
    assert home.sample()["stem"] == "ulm/ulm_1"
    assert home.dataset.splits == ("train", "val")
    assert "not read: gtFine/train/ulm/ulm_1_gtFine_color.png" in home.said


@row("nested folders")
def nested(home):
    home.add(IDS, stem="day1/a").add(1 - IDS, stem="day2/a").classes(PLAIN).open()
    assert [home.sample(i=i)["stem"] for i in range(2)] == ["day1/a", "day2/a"]
    home.means(1 - IDS, i=1)


@row("images/train and annotations/train (mmsegmentation)")
def split_inside(home):
    folders = "images/{split}", "annotations/{split}"
    for split in ("training", "validation"):
        home.add(IDS, split=split, folders=folders)
    home.classes(PLAIN).open().means(IDS, "val")
    assert home.dataset.splits == ("train", "val")


@row("folders named valid, validation or testing")
def other_split_names(home):
    for split in ("train", "valid", "testing", "holdout"):
        home.add(IDS, split=split)
    home.classes(PLAIN).open()
    assert home.dataset.splits == ("train", "val", "test")
    assert "1 files and folders are not read: holdout/" in home.said


@row("no validation split")
def no_validation(home):
    for k in range(40):
        home.add(IDS, stem=f"s{k}", folders=("imgs", "masks"))
    home.classes(PLAIN).open(val_fraction=0.25)

    def val():
        source = home.dataset.source("val")
        return {source[i]["stem"] for i in range(len(source))}

    before = val()
    assert 5 <= len(before) <= 15
    assert len(home.dataset.source("train")) == 40 - len(before)
    home.add(IDS, stem="another", folders=("imgs", "masks")).open(val_fraction=0.25)
    assert val() - {"another"} == before


@row("files that are not read")
def unread_files(home):
    home.add(IDS).classes(PLAIN)
    for name in ("notes.md", "train/images/raw.cr2", "train/labels/a.json"):
        (home.root / name).write_text("")
    os.mkfifo(home.root / "train/images/pipe.png")
    home.open()
    assert (
        "4 files and folders are not read: notes.md, train/images/pipe.png, "
        "train/images/raw.cr2, train/labels/a.json"
    ) in home.said
    assert home.dataset.notes[0].startswith("4 files and folders are not read")


@row("an image without a label, or the reverse")
def lonely_files(home):
    home.add(IDS).add(IDS, stem="b").add(IDS, stem="c").classes(PLAIN)
    (home.root / "train/labels/b.png").unlink()
    (home.root / "train/images/c.png").unlink()
    with pytest.raises(DatasetError) as caught:
        home.open()
    assert [str(fault) for fault in caught.value.faults] == [
        "train/images/b.png: has no label; add train/labels/STEM.png or remove the "
        "image",
        "train/labels/c.png: has no image; add train/images/STEM.jpg or another image, "
        "or remove the label",
    ]


@row("a partner in another format")
def near_partner(home):
    home.add(IDS).classes(PLAIN)
    image = home.root / "train/images/a.png"
    image.rename(image.with_suffix(".cr2"))
    home.refused(
        "train/labels/a.png: has no image of the same name, got train/images/a.cr2; "
        "images are read from .bmp"
    )


@row("names in decomposed Unicode (macOS)")
def decomposed_names(home):
    home.add(IDS, stem=unicodedata.normalize("NFC", "naïve")).classes(PLAIN)
    label = next((home.root / "train/labels").iterdir())
    label.rename(label.with_name(unicodedata.normalize("NFD", label.name)))
    home.open().means(IDS)


# --- prepared datasets ---


@row("the folder was moved or copied")
def copied_folder(home):
    home.add(IDS).classes(PLAIN).open()
    before = home.dataset
    copy = home.root.parent / "elsewhere" / "mine"
    shutil.copytree(home.root, copy, copy_function=shutil.copy)  # new times
    os.utime(copy / "train/images/a.png", (0, 0))
    home.open(root=copy)
    assert home.dataset == before
    home.open(root=copy)
    assert home.dataset == before


@row("only the prepared dataset is left")
def without_raw_files(home):
    home.add(IDS).classes(PLAIN).open()
    before = home.dataset
    shutil.rmtree(home.root)
    for data_dir in (home.data_dir, before.data_dir):
        assert open_dataset("folder", root=None, data_dir=data_dir) == before
    moved = home.data_dir.with_name("moved")
    home.data_dir.rename(moved)
    home.open(root=None, data_dir=moved).means(IDS)
    assert home.dataset.fingerprint == before.fingerprint
    with pytest.raises(ValueError, match="holds no prepared dataset of name 'folder'"):
        open_dataset("folder", root=None, data_dir=home.root)


@row("the folder has changed")
def changed_folder(home):
    home.add(IDS).classes(PLAIN).open()
    older = home.dataset.data_dir
    home.add(IDS, stem="b").open()
    assert home.dataset.data_dir != older
    assert "older copies remain for the runs that use them, and may be" in home.said
    assert f"deleted: {older}" in home.said


@pytest.mark.parametrize("name", ROWS)
def test_row(name, home):
    ROWS[name](home)

import numpy as np
import pytest
from PIL import Image

from segloss.data import open_dataset, scan
from segloss.data.datasets.faults import DatasetError
from segloss.errors import SeglossError

IDS = np.tile(np.arange(16, dtype=np.uint8) // 4, (12, 1))


def write(root, labels, *, stem="a", ending="", palette=None):
    for kind, content in (
        ("images", np.zeros((12, 16, 3), np.uint8)),
        ("masks", labels),
    ):
        image = Image.fromarray(content)
        if kind == "masks" and palette is not None:
            image.putpalette(np.asarray(palette, np.uint8).tobytes())
        path = root / "train" / kind / f"{stem}{ending if kind == 'masks' else ''}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)


def classes_of(root):
    text = scan.make_classes(scan.scan(root))
    return [line for line in text.splitlines() if not line.startswith("#")]


@pytest.mark.parametrize(
    ("values", "lines"),
    [
        ([0, 255], ["0 class_0", "1 class_255 values=255"]),
        ([0, 1, 2, 255], ["0 class_0", "1 class_1", "2 class_2"]),
        ([1, 2], ["0 class_1 values=1", "1 class_2 values=2"]),
        (
            [7, 9, 30],
            ["0 class_7 values=7", "1 class_9 values=9", "2 class_30 values=30"],
        ),
    ],
)
def test_a_class_for_each_value(tmp_path, values, lines):
    write(tmp_path, np.array(values, np.uint8)[IDS % len(values)])
    assert classes_of(tmp_path) == lines


def test_a_class_for_each_colour(tmp_path):
    write(tmp_path, np.array([[0, 0, 0], [128, 64, 128]], np.uint8)[IDS // 2])
    assert classes_of(tmp_path) == ["0 class_000000 #000000", "1 class_804080 #804080"]


def test_palettes_that_differ_are_read_as_colours(tmp_path):
    write(tmp_path, IDS // 2, palette=[[0, 0, 0], [200, 0, 0]])
    assert classes_of(tmp_path) == ["0 class_0", "1 class_1"]
    write(tmp_path, IDS // 2, stem="b", palette=[[200, 0, 0], [0, 0, 0]])
    assert classes_of(tmp_path) == ["0 class_000000 #000000", "1 class_c80000 #c80000"]


def test_a_file_of_one_colour_among_colours_is_a_colour(tmp_path):
    write(tmp_path, np.array([[0, 0, 0], [128, 64, 128]], np.uint8)[IDS // 2])
    write(tmp_path, np.zeros((12, 16, 3), np.uint8), stem="black")
    assert classes_of(tmp_path) == ["0 class_000000 #000000", "1 class_804080 #804080"]


def test_unreadable_labels_give_no_classes(tmp_path):
    write(tmp_path, IDS)
    (tmp_path / "train/masks/a.png").write_bytes(b"text")
    with pytest.raises(SystemExit, match="no label image can be read"):
        scan.main([str(tmp_path)])
    assert not (tmp_path / "classes.txt").exists()


def test_shares_files_suffix_and_unread_files(tmp_path):
    write(tmp_path, IDS // 3, stem="IMG_1", ending="_mask")
    write(tmp_path, IDS * 0, stem="IMG_2", ending="_mask")
    (tmp_path / "notes.md").touch()
    found = scan.scan(tmp_path)
    assert (found.pairs, found.label_suffix) == ({"train": 2}, "_mask")
    assert found.suffixes == {"images": {".png": 2}, "labels": {".png": 2}}
    assert (found.pixels, found.files) == ({0: 336, 1: 48}, {0: 2, 1: 1})
    assert found.unread == ["notes.md"]
    assert "# 12.50% of the pixels, in 1 label files\n1 class_1" in scan.make_classes(
        found
    )


def test_resized_colours_are_no_classes(tmp_path):
    write(tmp_path, np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8))
    with pytest.raises(
        SeglossError, match="labels have 1,200 colours, too many for cla"
    ):
        classes_of(tmp_path)


def test_folder_without_pairs_is_an_error(tmp_path):
    with pytest.raises(DatasetError, match="is no folder"):
        scan.scan(tmp_path / "absent")
    with pytest.raises(DatasetError, match="must hold folders of images and labels"):
        scan.scan(tmp_path)


def test_command_writes_classes_that_open_and_never_replaces_them(tmp_path, capsys):
    root = tmp_path / "mine"
    write(root, (IDS // 2) * 255, ending="_mask")
    scan.main([str(root)])
    said = " ".join(capsys.readouterr().out.split())
    assert "255 │ 50.00% │ 1" in said
    assert (
        f"then: python run.py --config=configs/folder.py --config.data.root={root} "
        "--config.data.label_suffix=_mask --config.data.val_fraction=0.1"
    ) in said
    dataset = open_dataset(
        "folder", root=root, label_suffix="_mask", data_dir=tmp_path / "data"
    )
    assert dataset.class_names == ("class_0", "class_255")
    before = (root / "classes.txt").read_text()
    scan.main([str(root), "--label_suffix=_mask"])
    assert "exists and is not changed" in " ".join(capsys.readouterr().out.split())
    assert (root / "classes.txt").read_text() == before
    with pytest.raises(SystemExit, match=r"error: folder: .*\n.*is no folder"):
        scan.main([str(tmp_path / "absent")])


def test_a_file_that_cannot_be_written_is_named_with_what_to_do(tmp_path, full_disk):
    write(tmp_path, np.uint8([[0, 1]]))
    with full_disk(1), pytest.raises(SystemExit) as refused:
        scan.main([str(tmp_path)])
    assert str(refused.value) == (
        f"error: {tmp_path}/classes.txt: File too large; choose a place where files "
        "may be larger."
    )

"""Folders of predictions replace their own predecessors, and nothing else."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from segloss.errors import ExistingFileError
from segloss.trained.inputs import MANIFEST
from segloss.trained.prediction_folder import PredictionFolder, choose_place

pytestmark = pytest.mark.shared_out(by="module")

ROOT = Path(__file__).parents[2]


def fill(place, then):
    """Starts to replace a folder by a new one, calls `then`, and ends."""
    folder = PredictionFolder(place, {}, input=Path("/set/val"))

    def start():
        with folder:
            path = folder.path("indices", "a")
            path.write_text("new")
            folder.add([path])
            then()

    return folder, start


def write(root, source, **files):
    """Writes files for an input as `predict` does; returns the folder."""
    place = choose_place(root, Path(source))
    with PredictionFolder(place, {"step": 4}, input=Path(source)) as folder:
        for name, text in files.items():
            path = folder.path("indices/sub", name)
            path.write_text(text)
            folder.add([path], image=name)
    return place


def tree(folder):
    """Every file below a folder with its text, without the lists of files."""
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }


def test_inputs_of_one_name_have_folders_of_their_own(tmp_path):
    days = ["/data/day1/photos", "/data/day2/photos", "/old/day1/photos"]
    places = [write(tmp_path, day, a=day) for day in days]
    names = ["photos", "day2_photos", "day1_photos"]
    assert places == [tmp_path / name for name in names]
    assert [write(tmp_path, day, b="again") for day in reversed(days)] == places[::-1]
    assert tree(tmp_path) == {f"{name}/indices/sub/b": "again" for name in names}


def test_names_follow_the_path_and_stay_below_the_root(tmp_path):
    def name(path, *taken):
        place = choose_place(tmp_path, Path(path), [tmp_path / t for t in taken])
        assert place.parent == tmp_path
        return place.name

    assert name("/images") == "images"
    assert name("/") == "images"
    assert name("/set/val/images") == "val"
    assert name("/set/val/images", "val") == "set_val"
    assert name("/a b/ç\n\udcff") == "ç\n\udcff"
    image = tmp_path / "x" / "a.jpg"
    image.parent.mkdir()
    image.touch()
    assert name(image) == "a"
    with pytest.raises(ExistingFileError, match="holds predictions of another input"):
        name("/images", "images")
    long = "n" * 250
    assert name(f"/{long}/{long}") == long
    with pytest.raises(ExistingFileError, match="another --output"):
        name(f"/{long}/{long}", long)
    write(tmp_path, f"/{long}", a="1")
    assert tree(tmp_path / long) == {"indices/sub/a": "1"}


def test_what_others_wrote_stays(tmp_path):
    # As an earlier version or the user left them.
    (tmp_path / "val" / "indices").mkdir(parents=True)
    (tmp_path / "val" / "indices" / "mine.png").write_text("mine")
    (tmp_path / "set_val").symlink_to(tmp_path / "nowhere")
    (tmp_path / "data_set_val").write_text("a file")
    assert write(tmp_path, "/x/data/set/val", a="1") == tmp_path / "x_data_set_val"
    assert (tmp_path / "val" / "indices" / "mine.png").read_text() == "mine"
    assert (tmp_path / "set_val").is_symlink()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda p: (p / "notes.txt").write_text("mine"), "notes.txt"),
        (lambda p: (p / "indices/sub/a").write_text("edited"), "indices/sub/a"),
        (lambda p: (p / "indices/sub/z").symlink_to(p), "indices/sub/z"),
        (
            lambda p: (p / "indices/sub/a").unlink() or (p / "b").write_text("mine"),
            r"since: b\.",
        ),
        (
            lambda p: (p / MANIFEST).write_text(
                (p / MANIFEST).read_text().partition("\n")[0] + "\n{"
            ),
            rf"{MANIFEST} \(is damaged",
        ),
    ],
    ids=["added", "edited", "link", "swapped", "damaged"],
)
def test_a_folder_with_files_of_others_is_not_replaced(tmp_path, change, named):
    place = write(tmp_path, "/set/val", a="1", c="2")
    change(place)
    before = tree(tmp_path)
    with pytest.raises(ExistingFileError, match=f"val is not replaced.*{named}"):
        choose_place(tmp_path, Path("/set/val"))
    assert tree(tmp_path) == before


def test_a_file_added_while_predicting_keeps_both_folders(tmp_path):
    place = write(tmp_path, "/set/val", a="old")
    folder, start = fill(place, lambda: (place / "notes.txt").write_text("mine"))
    with pytest.raises(ExistingFileError, match=r"notes\.txt"):
        start()
    assert tree(place) == {"indices/sub/a": "old", "notes.txt": "mine"}
    assert tree(folder.kept) == {"indices/a": "new"}


def test_predictions_that_were_removed_by_hand_are_replaced(tmp_path):
    place = write(tmp_path, "/set/val", a="1", b="2")
    (place / "indices/sub/a").unlink()
    (place / "empty").mkdir()
    write(tmp_path, "/set/val", c="3")
    assert tree(tmp_path) == {"val/indices/sub/c": "3"}
    assert [p.name for p in tmp_path.iterdir()] == ["val"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_keeps_the_old_and_what_is_new(tmp_path, error):
    place = write(tmp_path, "/set/val", a="old")
    folder = PredictionFolder(place, {}, input=Path("/set/val"))
    with pytest.raises(error), folder:
        raise error
    assert folder.kept is None
    assert [p.name for p in tmp_path.iterdir()] == ["val"]

    def fail():
        raise error

    folder, start = fill(place, fail)
    with pytest.raises(error):
        start()
    assert tree(place) == {"indices/sub/a": "old"}
    assert tree(folder.kept) == {"indices/a": "new"}
    assert folder.kept.name.startswith("val.unfinished-")


KILLED = """
import os, signal, sys
from pathlib import Path
from segloss.trained.prediction_folder import PredictionFolder, choose_place
source = Path("/set/val")
place = choose_place(Path(sys.argv[1]), source)
with PredictionFolder(place, {}, input=source) as folder:
    folder.path("indices", "a").write_text("new")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_full_disk_leaves_no_folder_without_predictions(tmp_path, full_disk):
    folder = PredictionFolder(tmp_path / "val", {"a": "b" * 9}, input=Path("/set/val"))
    with full_disk(9), pytest.raises(OSError, match="File too large"), folder:
        pass
    assert folder.kept is None
    assert list(tmp_path.iterdir()) == []


def test_a_killed_prediction_leaves_the_old_one(tmp_path):
    place = write(tmp_path, "/set/val", a="old")
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    assert tree(place) == {"indices/sub/a": "old"}
    # What the killed process left carries the mark by which it is not searched.
    (left,) = (p for p in tmp_path.iterdir() if p != place and p.is_dir())
    assert (left / MANIFEST).exists()
    assert write(tmp_path, "/set/val", a="newer") == place
    assert tree(place) == {"indices/sub/a": "newer"}
    assert list(tmp_path.iterdir()) == [place]


def test_a_copied_run_still_owns_its_predictions(tmp_path):
    place = write(tmp_path / "run", "/set/val", a="1")
    os.rename(tmp_path / "run", tmp_path / "moved")
    moved = tmp_path / "moved" / place.name
    assert write(tmp_path / "moved", "/set/val", a="2") == moved
    assert tree(moved) == {"indices/sub/a": "2"}

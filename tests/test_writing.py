"""Files that are replaced survive what goes wrong on the way."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from segloss.writing import (
    making_folder,
    on_disk,
    remove_folder,
    remove_unfinished,
    replacing,
    replacing_folder,
    write_json,
    write_text,
)

ROOT = Path(__file__).parents[1]


def test_what_is_written_replaces_what_was_there(tmp_path):
    path = tmp_path / "new" / "a.json"
    for tree in ({"a": 1.5}, {"b": [None, "c"]}):
        write_json(path, tree)
    assert path.read_text() == '{\n  "b": [\n    null,\n    "c"\n  ]\n}\n'
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_file(tmp_path, full_disk):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with full_disk(100), pytest.raises(OSError, match="File too large"):
        write_text(path, "new" * 100)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


KILLED = """
import os, signal, sys
from segloss.writing import replacing
with replacing(sys.argv[1]) as unfinished:
    unfinished.write_text("ne")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    done = subprocess.run([sys.executable, "-c", KILLED, path], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2
    with replacing(path) as living:
        living.write_text("newest")
        write_text(path, "new")
        remove_unfinished(path)
        assert sorted(tmp_path.iterdir()) == [living, path]
        assert path.read_text() == "new"
    assert path.read_text() == "newest"
    assert list(tmp_path.iterdir()) == [path]


def test_files_of_one_block_are_all_replaced_or_none(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    for path in (a, b):
        path.write_text("old")
    with (
        contextlib.suppress(KeyError),
        replacing(a) as unfinished_a,
        replacing(b) as unfinished_b,
    ):
        unfinished_a.write_text("new")
        unfinished_b.write_text("new")
        raise KeyError
    assert (a.read_text(), b.read_text()) == ("old", "old")


def test_links_and_pipes_stay_what_they_are(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "a")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "a").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_text(tmp_path / "pipe", "new")
    assert os.read(reader, 9) == b"new"
    os.close(reader)
    assert (tmp_path / "pipe").is_fifo()


def write_folder(path, **files):
    with replacing_folder(path) as unfinished:
        for name, text in files.items():
            (unfinished / name).write_text(text)


def test_a_file_in_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "exported").touch()
    message = "/exported must be a folder, got a file; move or delete it.$"
    with pytest.raises(FileExistsError, match=message):
        write_folder(tmp_path / "exported", a="1")
    assert [p.name for p in tmp_path.iterdir()] == ["exported"]


def test_a_folder_that_takes_no_files_is_named(tmp_path):
    # Not even root may make files there.
    for path in (Path("/proc/a"), Path("/proc/b/c")):
        with pytest.raises(FileNotFoundError) as refused, replacing(path):
            pass
        assert refused.value.filename == str(path)
    with pytest.raises(FileNotFoundError) as refused, making_folder(Path("/proc/a")):
        pass
    assert refused.value.filename == "/proc/a"


class Unraisable:
    """Raises an error where nothing can catch it."""

    def __init__(self, said):
        self.said = said

    def __del__(self):
        raise RuntimeError(self.said)


def test_what_follows_from_an_error_of_orbax_is_not_printed(tmp_path, monkeypatch):
    printed = []

    def hook(unraisable):
        printed.append(str(unraisable.exc_value))

    monkeypatch.setattr(sys, "unraisablehook", hook)
    with on_disk(tmp_path):
        Unraisable("Event loop is closed")
        Unraisable("other")
    Unraisable("Event loop is closed")
    assert printed == ["other", "Event loop is closed"]


def texts(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_folder_is_replaced_together_and_keeps_other_files(tmp_path):
    path = tmp_path / "made" / "exported"
    write_folder(path, a="1", b="1")
    (path / "own").mkdir()
    (path / "own" / "notes").write_text("mine")
    (path / "empty").mkdir()
    write_folder(path, a="2")
    assert texts(tmp_path) == {
        "made/exported/a": "2",
        "made/exported/b": "1",
        "made/exported/own/notes": "mine",
    }
    assert [p.name for p in path.parent.iterdir()] == ["exported"]
    assert (path / "empty").is_dir()


def test_an_error_leaves_the_old_folder(tmp_path, full_disk):
    path = tmp_path / "exported"
    write_folder(path, a="old", b="old")
    with full_disk(100), pytest.raises(OSError, match="File too large"):
        write_folder(path, a="new", b="new" * 100)
    assert texts(tmp_path) == {"exported/a": "old", "exported/b": "old"}


def test_the_target_of_a_link_to_a_folder_is_replaced(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "exported").symlink_to(tmp_path / "disk")
    write_folder(tmp_path / "exported", a="1")
    assert (tmp_path / "exported").is_symlink()
    assert texts(tmp_path / "disk") == {"a": "1"}


KILLED_FOLDER = """
import os, signal, sys
from segloss.writing import replacing_folder
with replacing_folder(sys.argv[1]) as unfinished:
    (unfinished / "a").write_text("ne")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_leaves_the_old_folder(tmp_path):
    path = tmp_path / "exported"
    write_folder(path, a="old", b="old")
    killed = subprocess.run([sys.executable, "-c", KILLED_FOLDER, path], cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL
    assert texts(path) == {"a": "old", "b": "old"}
    assert len(list(tmp_path.iterdir())) == 3
    with making_folder(path) as living:
        write_folder(path, a="new")
        assert living.is_dir()
        living.rmdir()
    assert texts(tmp_path) == {"exported/a": "new", "exported/b": "old"}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("new_is_there", [False, True])
def test_a_kill_between_two_renames_loses_no_file(tmp_path, new_is_there):
    path = tmp_path / "exported"
    write_folder(path, a="old", own="mine")
    path.rename(tmp_path / "exported.replaced-01234567")
    if new_is_there:
        write_folder(path, a="new")
    (tmp_path / ".exported.unfinished-01234567.lock").touch()
    with making_folder(path, keeps_others=True) as unfinished:
        assert texts(path) == {"a": "new" if new_is_there else "old", "own": "mine"}
        unfinished.rmdir()
    assert list(tmp_path.iterdir()) == [path]


def test_the_removal_of_a_large_folder_is_said(tmp_path):
    (tmp_path / "left").mkdir()
    with (tmp_path / "left" / "shard").open("wb") as file:
        file.truncate(2_400_000_000)
    message = r"removed .*/left, 2\.4 GB that a killed process left\."
    with pytest.warns(UserWarning, match=message):
        remove_folder(tmp_path / "left")
    assert list(tmp_path.iterdir()) == []

"""Files that are replaced survive what goes wrong on the way."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from segloss.writing import replacing, write_json, write_text

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

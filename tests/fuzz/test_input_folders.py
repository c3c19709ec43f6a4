"""Folders to predict that hold links, loops, pipes, sockets and strange names."""

import contextlib
import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from guarding import check_line, fuzzed, line_of, unharmed
from hypothesis import given
from hypothesis import strategies as st
from sound_files import GREY, RGB, npy, tiff

from segloss.data.datasets.folder import folder as make_builder
from segloss.data.decoding.opening import read_file
from segloss.errors import SeglossError
from segloss.trained.inputs import find_inputs

_NAMES = st.sampled_from(
    [
        *("a.png", "b.jpg", "images", "labels", "a\nb.png", "\x1b[31mred.png", "..png"),
        *("\udcff.png", "x" * 200 + ".tif", "classes.txt", "predictions.jsonl", "d"),
        *("train", "val", "~", "-rf.png", "$HOME.png", ".hidden.png", "\u202egnp.a"),
    ]
)
_KINDS = ["file", "file", "folder", "folder", "pipe", "socket", "link", "loop", "none"]
_TREES = st.lists(
    st.tuples(st.lists(_NAMES, min_size=1, max_size=4), st.sampled_from(_KINDS)),
    max_size=9,
)


def _make(root, canary, tree):
    for names, kind in tree:
        path = root.joinpath(*names)
        # A name may be there already, or be below a file or too long.
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == "file":
                path.write_bytes(npy(GREY) if "npy" in path.name else tiff(RGB))
            elif kind == "folder":
                path.mkdir()
            elif kind == "pipe":
                os.mkfifo(path)
            elif kind == "socket":
                with socket.socket(socket.AF_UNIX) as server:
                    server.bind(str(path))
            elif kind == "link":
                path.symlink_to(canary)
            elif kind == "loop":
                path.symlink_to(root)
            elif kind == "none":
                path.symlink_to("gone")


@given(tree=_TREES)
@fuzzed(150)
def test_an_input_is_searched_or_refused_in_a_line(tmp_path_factory, tree):
    base = tmp_path_factory.getbasetemp() / "input"
    root, canary = base / "root", base / "canary"
    canary.mkdir(parents=True)
    root.mkdir()
    (canary / "secret.png").write_bytes(npy(GREY))
    _make(root, canary, tree)
    try:
        with unharmed():
            try:
                for found, _, left_out in find_inputs([root]):
                    check_line(str(left_out))
                    for image in found.images():
                        assert ".." not in Path(image.name).parts
                        assert not Path(image.name).is_absolute()
                        with contextlib.suppress(SeglossError, OSError):
                            read_file(image.path, 4096)
            except SeglossError as error:
                line_of(error)
    finally:
        shutil.rmtree(base)


@given(tree=_TREES)
@fuzzed(60)
def test_a_dataset_is_listed_or_refused_in_lines(tmp_path_factory, tree):
    base = tmp_path_factory.getbasetemp() / "dataset"
    root, canary = base / "root", base / "canary"
    canary.mkdir(parents=True)
    (canary / "secret.png").write_bytes(npy(GREY))
    for part in ("images", "labels"):
        (root / "train" / part).mkdir(parents=True)
        _make(root / "train" / part, canary, tree)
    (root / "classes.txt").write_text("0 a\n1 b\n2 c\n3 d\n4 e\n")
    try:
        with unharmed(base / "prepared"):
            try:
                builder = make_builder(root=root, data_dir=base / "prepared")
                for fault in builder.builder_config.faults:
                    check_line(str(fault))
            except SeglossError as error:
                line_of(error, lines=9)
    finally:
        shutil.rmtree(base)


@pytest.mark.parametrize("depth", [1500])
def test_folders_in_folders_end(tmp_path, depth):
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=here)
        inner = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    try:
        with unharmed(), pytest.raises(SeglossError) as caught:
            find_inputs([tmp_path])
        assert "no image found" in line_of(caught.value)
    finally:
        # pytest cannot remove it: it recurses, and a later run would fail at its end.
        subprocess.run(["rm", "-r", tmp_path / "d"], check=True)


def test_a_file_of_terabytes_is_refused(tmp_path):
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(2**40)
    with unharmed(memory=2**28), pytest.raises(SeglossError) as caught:
        read_file(tmp_path / "a.png")
    assert line_of(caught.value) == (
        "must take at most 4,294,967,296 bytes, got 1,099,511,627,776; cut the image, "
        "or raise --config.data.max_image_pixels"
    )

"""Damaged and malicious checkpoints."""

import contextlib
import json
import os
import shutil
import warnings

import flax.struct
import numpy as np
import pytest
from guarding import check_line, fuzzed, line_of, mutated, unharmed
from hypothesis import given
from hypothesis import strategies as st

from segloss.errors import SeglossError, printable
from segloss.trained.checkpoints import Checkpoints

_WITH_DIGESTS = ("variables", "optimizer", "meta")
_META = {"class_names": ["a", "b"], "seconds": 1.0}


@flax.struct.dataclass
class _State:
    params: dict
    batch_stats: dict
    step: np.ndarray
    opt_state: dict
    key: np.ndarray
    loss_scale: dict


def _make(scale):
    array = np.arange(6, dtype=np.float32).reshape(2, 3) * np.float32(scale)
    return _State(
        {"a": array}, {"v": array[0]}, np.int32(scale), {}, np.ones(2, np.uint32), {}
    )


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sound") / "checkpoints"
    with contextlib.closing(Checkpoints(directory)) as checkpoints:
        for step in (1, 2):
            checkpoints.save(_make(step), mean_iou=step / 2, meta=_META)
    return directory


def _read(directory, which="newest"):
    with contextlib.closing(Checkpoints(directory, read_only=True)) as checkpoints:
        return checkpoints.read(which, items=("variables", "optimizer"))


def _check_read(directory, which):
    """Reads one of the two checkpoints, unchanged, or refuses both in a line."""
    with unharmed(memory=2**33), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            stored = _read(directory, which)
        except SeglossError as error:
            line_of(error)
            return None
    for warning in warned:
        check_line(str(warning.message))
    if stored is not None:
        assert stored.meta == _META
        stored.fit(_make(1))
        np.testing.assert_array_equal(
            stored.arrays["params/a"], _make(stored.step).params["a"]
        )
    return stored


def _mutate(path, how, draw):
    if how == "change" and path.is_file():
        path.write_bytes(draw(mutated([path.read_bytes()])))
    elif how == "add":
        folder = path if path.is_dir() else path.parent
        with contextlib.suppress(FileExistsError):
            (folder / draw(st.sampled_from(["state", "x", "3", "-1"]))).mkdir()
    else:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        if how == "pipe":
            os.mkfifo(path)
        elif how == "link":
            path.symlink_to(draw(st.sampled_from(["/dev/zero", ".", "/etc/passwd"])))
        elif how == "folder":
            path.mkdir()


@given(data=st.data())
@fuzzed(20)
def test_a_checkpoint_is_read_unchanged_or_passed_over(sound, tmp_path_factory, data):
    draw = data.draw
    base = tmp_path_factory.getbasetemp() / "mutated"
    directory = shutil.copytree(sound, base / "checkpoints")
    try:
        step = draw(st.sampled_from(["1", "2"]))
        path = draw(st.sampled_from(sorted((directory / step).rglob("*"))))
        hows = ["change", "change", "remove", "folder", "add"]
        # Orbax itself would wait for its other files.
        if path.relative_to(directory / step).parts[0] in _WITH_DIGESTS:
            hows += ["pipe", "link"]
        _mutate(path, draw(st.sampled_from(hows)), draw)
        before = {p: p.lstat().st_mtime_ns for p in base.rglob("*")}
        _check_read(directory, draw(st.sampled_from(["newest", "best"])))
        assert before == {p: p.lstat().st_mtime_ns for p in base.rglob("*")}
    finally:
        shutil.rmtree(base)


@pytest.mark.parametrize("name", ["../../x", "/dev/zero", "", ".", "a\n\x1b[31m" * 99])
def test_only_files_of_the_checkpoint_are_read(sound, tmp_path, name):
    directory = shutil.copytree(sound, tmp_path / "checkpoints")
    for step in ("1", "2"):
        digests = {name: "0" * 64}
        (directory / step / "meta" / "digests.json").write_text(json.dumps(digests))
    with unharmed(memory=2**33), pytest.raises(SeglossError) as caught:
        _read(directory)
    shown = printable(name[:100])
    line = line_of(caught.value)
    assert f"checkpoints/2 is damaged (meta/{shown} is missing); " in line
    assert len(line) < 2000


def test_json_of_many_brackets_is_damaged(sound, tmp_path):
    directory = shutil.copytree(sound, tmp_path / "checkpoints")
    (directory / "2" / "meta" / "digests.json").write_text("[" * 100_000)
    assert _check_read(directory, "newest").step == 1

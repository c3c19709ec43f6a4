"""Damaged and malicious `predictions.jsonl`, which names the files to replace."""

import json
import shutil

import pytest
from guarding import fuzzed, line_of, mutated, unharmed
from hypothesis import given
from hypothesis import strategies as st

from segloss.errors import SeglossError
from segloss.trained.prediction_folder import PredictionFolder, choose_place


def _predict(root, source):
    """Writes a prediction of `source`, over earlier ones."""
    place = choose_place(root, source)
    with PredictionFolder(place, {}, input=source) as folder:
        path = folder.path("indices", "a.png")
        path.write_bytes(b"new")
        folder.add([path], image="a.png")
    return place


def _stamp(path):
    about = path.stat()
    return [about.st_size, about.st_mtime_ns]


def _check_replaced_or_refused(base, root, source):
    try:
        with unharmed(base):
            _predict(root, source)
    except SeglossError as error:
        line_of(error)
    assert (base / "canary").read_text() == "not ours"


def test_no_list_deletes_what_predict_did_not_write(tmp_path_factory):
    @given(data=st.data())
    @fuzzed(40)
    def check(data):
        base = tmp_path_factory.getbasetemp() / "lists"
        root, source = base / "predictions", base / "photos"
        source.mkdir(parents=True)
        (base / "canary").write_text("not ours")
        try:
            listed = _predict(root, source) / "predictions.jsonl"
            foreign = listed.parent / "mine.txt"
            if data.draw(st.booleans()):
                foreign.write_text("not ours either")
            listed.write_bytes(data.draw(mutated([listed.read_bytes()])))
            had = foreign.exists()
            _check_replaced_or_refused(base, root, source)
            assert foreign.exists() == had
        finally:
            shutil.rmtree(base)

    check()


@pytest.mark.parametrize("name", ["../../canary", "indices/../../../canary", "{base}"])
def test_names_of_other_folders_are_not_deleted(tmp_path, name):
    root, source = tmp_path / "predictions", tmp_path / "photos"
    source.mkdir()
    canary = tmp_path / "canary"
    canary.write_text("not ours")
    name = name.replace("{base}", str(canary))
    place = _predict(root, source)
    files = {name: _stamp(canary)}
    with (place / "predictions.jsonl").open("a") as lines:
        lines.write(json.dumps({"files": files}) + "\n")
    _check_replaced_or_refused(tmp_path, root, source)
    # Nor do they hide a file that is not listed.
    place = _predict(root, source)
    with (place / "predictions.jsonl").open("a") as lines:
        lines.write(json.dumps({"files": files}) + "\n")
    (place / "mine.txt").write_text("not ours")
    _check_replaced_or_refused(tmp_path, root, source)
    assert (place / "mine.txt").read_text() == "not ours"

"""Damaged and malicious class indexes."""

import pickle

import numpy as np
import pytest
from guarding import fuzzed, line_of, mutated, unharmed
from hypothesis import given

from segloss.data import ClassIndex
from segloss.errors import SeglossError


def _index(folder):
    counts = np.arange(12, dtype=np.int32).reshape(4, 3)
    ClassIndex(counts, "toy").save(folder / "sound.npy")
    return (folder / "sound.npy").read_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("index")


def test_an_index_is_read_or_refused_in_a_line(folder):
    objects = folder / "objects.npy"
    np.save(objects, np.array([[print, 1]], object), allow_pickle=True)
    sound = [_index(folder), objects.read_bytes(), pickle.dumps({"a": 1}, 2)]

    @given(data=mutated(sound))
    @fuzzed(400)
    def check(data):
        path = folder / "index.npy"
        path.unlink(missing_ok=True)  # an earlier one may be mapped
        path.write_bytes(data)
        with unharmed():
            try:
                index = ClassIndex.load(path)
            except SeglossError as error:
                line_of(error)
                return
        assert index.pixel_counts.dtype == np.int32
        assert index.pixel_counts.nbytes <= len(data)

    check()

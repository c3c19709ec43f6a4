"""Damaged and malicious images and labels."""

import struct
from io import BytesIO

import numpy as np
import pytest
import scipy.io
from guarding import check_line, fuzzed, mutated, unharmed
from hypothesis import given
from hypothesis import strategies as st
from sound_files import FILES, GREY, RGB, tiff, with_png_checksums

from segloss.data.bands import DTYPES
from segloss.data.datasets.voc2012 import read_mat
from segloss.data.decoding.images import read_image
from segloss.data.decoding.label_values import LabelValues
from segloss.data.decoding.labels import read_labels
from segloss.data.decoding.opening import UnfitError

_MOST = 4096
_COLOURED = LabelValues(3, 255, {0: 0, 1: 1, 2: 2}, {0x000000: 0, 0x804080: 1})
_FILES = mutated(FILES) | mutated(FILES[:9]).map(with_png_checksums)


@given(data=_FILES, alpha=st.sampled_from(["drop", "band"]))
@fuzzed(400)
def test_an_image_is_read_or_refused_in_a_line(data, alpha):
    with unharmed():
        try:
            image = read_image(data, alpha=alpha, max_pixels=_MOST)
        except UnfitError as error:
            check_line(str(error))
            return
    h, w, n = image.pixels.shape
    assert 0 < h * w <= _MOST
    assert n >= 1
    assert image.pixels.dtype in DTYPES


@given(data=_FILES, values=st.sampled_from([None, _COLOURED]))
@fuzzed(400)
def test_labels_are_read_or_refused_in_a_line(data, values):
    with unharmed():
        try:
            labels = read_labels(data, values, max_pixels=_MOST)
        except UnfitError as error:
            check_line(str(error))
            return
    h, w = labels.ids.shape
    assert 0 < h * w <= _MOST
    assert labels.ids.dtype in ("uint8", "uint16")
    if values is not None:
        assert set(labels.ids.ravel().tolist()) <= {0, 1, 2, 255}


@pytest.mark.parametrize("place", range(len(FILES)))
def test_sound_files_pass_these_tests(place):
    with unharmed():
        assert read_image(FILES[place], max_pixels=_MOST).pixels.size


def _with_tag(data, tag, value):
    """Sets a field of a little-endian TIFF's first page."""
    data = bytearray(data)
    (start,) = struct.unpack_from("<I", data, 4)
    (number,) = struct.unpack_from("<H", data, start)
    for place in range(start + 2, start + 2 + 12 * number, 12):
        if struct.unpack_from("<H", data, place) == (tag,):
            struct.pack_into("<HII", data, place + 2, 4, 1, value)
            return bytes(data)
    raise AssertionError(f"no tag {tag}")


_WIDE = tiff(np.zeros((32, 48), np.uint16), compression="zstd", tile=(16, 16))


_FLOATS = tiff(RGB.astype(np.float32), photometric="rgb")


# Of a few kB each; the numbers are the tags of a tile's sides and of the bands.
@pytest.mark.parametrize(
    ("data", "num_bytes"),
    [
        (_with_tag(_with_tag(_WIDE, 322, 2**16), 323, 2**15), "4,294,967,296"),
        (_with_tag(_FLOATS, 277, 2**24), "8,053,063,680"),
    ],
    ids=["tiles", "bands"],
)
def test_a_bomb_is_refused_before_it_is_decoded(data, num_bytes):
    with unharmed(memory=2**28), pytest.raises(UnfitError) as caught:
        read_image(data, max_pixels=_MOST)
    assert str(caught.value) == (
        f"must take at most 65,536 bytes, got {num_bytes}; cut the image, or raise "
        "--config.data.max_image_pixels"
    )
    with unharmed(memory=2**28), pytest.raises(UnfitError):
        read_labels(data, max_pixels=_MOST)


def _mat(**how):
    buffer = BytesIO()
    scipy.io.savemat(
        buffer, {"GTcls": {"Boundaries": [1], "Segmentation": GREY}}, **how
    )
    return buffer.getvalue()


@given(data=mutated([_mat(), _mat(do_compression=True)]))
@fuzzed(200)
def test_labels_of_sbd_are_read_or_refused_in_a_line(data):
    with unharmed(memory=2**28):
        try:
            labels = read_mat(data)
        except UnfitError as error:
            check_line(str(error))
            return
    assert labels.ids.dtype == np.uint8
    assert labels.ids.ndim == 2

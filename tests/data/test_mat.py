"""MATLAB files as SciPy writes and reads them."""

import zlib
from io import BytesIO

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from segloss.data.decoding.mat import read_mat_image
from segloss.data.decoding.opening import UnfitError

LABELS = (np.arange(7 * 5) % 21).astype(np.uint8).reshape(7, 5)


def mat(compress=False, **variables):
    buffer = BytesIO()
    savemat(buffer, variables, do_compression=compress)
    return buffer.getvalue()


def of_sbd(labels=LABELS, **how):
    # SBD also has cells of sparse boundaries, and the classes of an image.
    boundaries = np.empty((2, 1), object)
    boundaries[:, 0] = [np.eye(7, 5, dtype=bool), np.zeros((7, 5), bool)]
    fields = {"Boundaries": boundaries, "Segmentation": labels, "Categories": [1, 20]}
    return mat(other=np.ones(3), GTcls=fields, **how)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("labels", [LABELS, LABELS[:1, :3], LABELS[:0]])
def test_labels_are_those_of_scipy(compress, labels):
    data = of_sbd(labels, compress=compress)
    by_scipy = loadmat(BytesIO(data))["GTcls"]["Segmentation"][0, 0]
    ours = read_mat_image(data, "GTcls", "Segmentation")
    np.testing.assert_array_equal(ours, by_scipy, strict=True)
    np.testing.assert_array_equal(ours, labels, strict=True)


def test_what_is_no_8_bit_image_is_none():
    assert read_mat_image(of_sbd(), "GTcls", "Boundaries") is None
    assert read_mat_image(of_sbd(), "GTcls", "Categories") is None
    assert read_mat_image(of_sbd(), "GTinst", "Segmentation") is None
    assert read_mat_image(of_sbd(LABELS.astype(np.uint16)), "GTcls", "x") is None


def words(*numbers):
    return np.array(numbers, ">u4").tobytes()


def test_files_of_big_endian_machines_are_read():
    # By hand, because SciPy writes the order of its machine.
    image = words(6, 8, 9, 0, 5, 8, 2, 1, 1 << 16 | 1, 0, 2 << 16 | 2) + b"\5\6\0\0"
    names = words(4 << 16 | 5, 2, 1, 2) + b"S".ljust(8, b"\0")
    struct = words(6, 8, 2, 0, 5, 8, 1, 1, 1 << 16 | 1) + b"G\0\0\0" + names
    struct += words(14, len(image)) + image
    data = b"MATLAB".ljust(124) + b"\1\0MI" + words(14, len(struct)) + struct
    np.testing.assert_array_equal(loadmat(BytesIO(data))["G"]["S"][0, 0], [[5], [6]])
    np.testing.assert_array_equal(read_mat_image(data, "G", "S"), [[5], [6]])


def refusal(data):
    with pytest.raises(UnfitError) as caught:
        read_mat_image(data, "GTcls", "Segmentation")
    return str(caught.value)


def test_files_that_are_damaged_or_of_another_version_are_refused():
    data = of_sbd()
    assert refusal(data[:-400]) == (
        "must be a sound file, got a damaged one (it ends too early); replace it"
    )
    compressed = of_sbd(compress=True)
    number, size = np.frombuffer(compressed[128:136], np.uint32)
    cut = np.array([number, size - 9], np.uint32).tobytes()
    assert "(it ends too early)" in refusal(compressed[:128] + cut + compressed[136:])
    assert refusal(b"\x89HDF\r\n\x1a\n" + bytes(200)) == (
        "must be a sound file, got a damaged one (it is not a MATLAB file of version 5 "
        "to 7); replace it"
    )


def test_a_bomb_is_not_inflated():
    body = zlib.compress(bytes(2**26 + 1))
    data = of_sbd()[:128] + np.array([15, len(body)], np.uint32).tobytes() + body
    assert "(a variable takes more than 67,108,864 bytes)" in refusal(data)

"""Files of torch before 1.6."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from segloss.models.pretrained import read_weights
from segloss.models.pretrained.old_torch import MAGIC

ORACLE = Path(__file__).parents[1] / "oracles" / "old_torch.pth"
ABOUT = pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
NUMBERS = np.arange(4, dtype="<f4").tobytes()


def old_file(
    *, length=4, offset=0, shape=2, stride=2, kind="FloatStorage", tail=NUMBERS
):
    """A file that holds the tensor `a`, of one axis; arguments are at most 255."""
    text = {
        k: b"X" + len(k).to_bytes(4, "little") + k.encode()
        for k in ("a", "storage", "0", "cpu")
    }
    storage = b"(%bctorch\n%b\n%b%bK%cNtQ" % (
        text["storage"],
        kind.encode(),
        text["0"],
        text["cpu"],
        length,
    )
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(%bK%cK%c\x85K%c\x85\x89}tR" % (
        storage,
        offset,
        shape,
        stride,
    )
    main = b"\x80\x02}%b%bs." % (text["a"], tensor)
    return (
        MAGIC
        + ABOUT
        + main
        + pickle.dumps(["0"], 2)
        + length.to_bytes(8, "little")
        + tail
    )


def read(path, content):
    path.write_bytes(content)
    return read_weights(path)


def test_arrays_are_those_that_torch_saved():
    arrays = read_weights(ORACLE)
    expected = {
        "transposed": np.arange(12, dtype=np.float32).reshape(3, 4).T,
        "part": np.float32([5, 6, 7]),
        "parameter": np.float32([0.5, -2]),
        "empty": np.zeros((0, 3), np.float32),
        "scalar": np.int64(7),
        "double": np.array([[1e300]]),
        "half": np.float16([1.5, -0.25]),
        "bfloat16": np.float32([1.5, -0.25]),
        "flags": np.array([True, False]),
    }
    assert list(arrays) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(arrays[name], array, strict=True)


def test_a_tensor_is_a_view_of_its_storage(tmp_path):
    content = old_file(offset=1)
    np.testing.assert_array_equal(read(tmp_path / "w.pth", content)["a"], [1, 3])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (old_file(offset=2), "a tensor lies outside of its storage"),
        (old_file(shape=3), "a tensor lies outside of its storage"),
        (old_file(tail=NUMBERS[:-1]), "buffer size must be a multiple of element size"),
        (old_file(tail=NUMBERS[:-4]), "it ends within a storage"),
        (old_file().replace(pickle.dumps(["0"], 2), pickle.dumps([], 2)), "has no sto"),
        (old_file(kind="QInt8Storage"), "more than tensors, .* refused: torch QInt8St"),
        (MAGIC + ABOUT, "pickle exhausted before seeing STOP"),
        (MAGIC + ABOUT + pickle.dumps([1], 2), "it contains a list; save a state dict"),
        (
            MAGIC + ABOUT + pickle.dumps({"a": 1}, 2),
            "its entry 'a' is a int, not a ten",
        ),
        (MAGIC + ABOUT + pickle.dumps({3: 1}, 2), "a key is not a string; save a stat"),
        (
            MAGIC + pickle.dumps(1000, 2) + pickle.dumps({}, 2),
            "another byte order or v",
        ),
    ],
)
def test_what_is_damaged_or_no_state_dict_is_named(tmp_path, content, message):
    with pytest.raises(ValueError, match=rf"w\.pth is not a valid .*{message}"):
        read(tmp_path / "w.pth", content)


def test_each_truncated_file_is_refused(tmp_path):
    content = ORACLE.read_bytes()
    for length in range(len(MAGIC), len(content), 7):
        with pytest.raises(ValueError, match=r"w\.pth is not a valid \.pth file"):
            read(tmp_path / "w.pth", content[:length])


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_never_runs(tmp_path):
    trace = tmp_path / "ran"
    content = MAGIC + ABOUT + pickle.dumps({"a": Malicious(trace)}, 2)
    with pytest.raises(ValueError, match=r"more than tensors, .*: posix mkdir"):
        read(tmp_path / "w.pth", content)
    assert not trace.exists()


def test_a_tensor_that_repeats_a_number_is_bounded(tmp_path):
    arrays = read(tmp_path / "w.pth", old_file(shape=200, stride=0))
    np.testing.assert_array_equal(arrays["a"], np.zeros(200))

"""Damaged and malicious files of pretrained weights."""

import importlib.util
import io
import os
import pickle
import struct
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from guarding import fuzzed, line_of, mutated, unharmed
from hypothesis import given
from hypothesis import strategies as st

from segloss.errors import SeglossError
from segloss.models.pretrained import load_weights
from segloss.models.pretrained.files import read_weights

_ARRAYS = {
    "params/conv1/kernel": np.arange(6, dtype=np.float32).reshape(1, 2, 3, 1),
    "batch_stats/norm1/var": np.array([0.5, 2.0], np.float32),
}


def _npz(compress):
    buffer = BytesIO()
    (np.savez_compressed if compress else np.savez)(buffer, **_ARRAYS)
    return buffer.getvalue()


_NPZ = [_npz(False), _npz(True)]
_SAFETENSORS = [safetensors.numpy.save(_ARRAYS, {"layout": "deeplab_v2"})]
_OLD_TORCH = [(Path(__file__).parents[1] / "oracles" / "old_torch.pth").read_bytes()]
_PICKLES = [pickle.dumps(_ARRAYS, protocol) for protocol in (2, 4)]


def refused(path, memory=2**28):
    with unharmed(memory=memory), pytest.raises(SeglossError) as caught:
        load_weights(path)
    return line_of(caught.value)


@given(
    data=mutated(_NPZ + _PICKLES).map(lambda data: (".npz", data))
    | mutated(_SAFETENSORS).map(lambda data: (".safetensors", data))
    | mutated(_OLD_TORCH).map(lambda data: (".pth", data))
)
@fuzzed(300)
def test_weights_are_read_or_refused_in_a_line(tmp_path_factory, data):
    suffix, content = data
    path = tmp_path_factory.getbasetemp() / f"weights{suffix}"
    path.write_bytes(content)
    with unharmed():
        try:
            weights = load_weights(path)
        except SeglossError as error:
            line_of(error)
            return
    assert all(array.dtype == np.float32 for array in weights.arrays.values())


def _bomb(path, names, num_bytes):
    """Writes an .npz that declares arrays of zeros, of `num_bytes` each."""
    header = io.BytesIO()
    about = {"descr": "<f4", "fortran_order": False, "shape": (num_bytes // 4,)}
    np.lib.format.write_array_header_1_0(header, about)
    block = b"\0" * (64 << 20)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                file.write(header.getvalue())
                for _ in range(num_bytes // len(block)):
                    file.write(block)


def test_names_are_refused_before_a_bomb_is_inflated(tmp_path):
    _bomb(tmp_path / "w.npz", ["a", "b"], 64 << 20)
    line = refused(tmp_path / "w.npz", memory=100 << 20)
    assert "w.npz: its arrays would take 134,217,984 bytes, but the file has 1" in line
    _bomb(tmp_path / "x.npz", ["a"], 0)
    assert "x.npz: its names (a) match no known layout" in refused(tmp_path / "x.npz")


@pytest.mark.slow
def test_a_bomb_of_six_gigabytes_is_not_inflated(tmp_path):
    _bomb(tmp_path / "w.npz", ["params/conv1/kernel", "params/conv2/kernel"], 3 << 30)
    line = refused(tmp_path / "w.npz", memory=100 << 20)
    assert "its arrays would take 6,442,451,200 bytes, but the file has 6," in line


def test_an_array_cannot_be_larger_than_its_archive_says(tmp_path):
    header = io.BytesIO()
    about = {"descr": "<f4", "fortran_order": False, "shape": (2**40,)}
    np.lib.format.write_array_header_1_0(header, about)
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        archive.writestr("params/a.npy", header.getvalue())
    line = refused(tmp_path / "w.npz")
    assert "its arrays would take 4,398,046,511,104 bytes, but the file has 2" in line


def test_a_sparse_file_is_refused_by_its_size(tmp_path):
    size = 2**40
    about = (
        f'{{"params/a":{{"dtype":"U8","shape":[{size}],"data_offsets":[0,{size}]}}}}'
    )
    with (tmp_path / "w.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(about)) + about.encode())
        file.truncate(8 + len(about) + size)
    line = refused(tmp_path / "w.safetensors", memory=2 * size)
    assert "its arrays would take 1,099,511,627,8" in line


def test_a_huge_header_is_refused(tmp_path):
    with (tmp_path / "w.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", 2**62) + b"{}")
    assert "is not a valid .safetensors file of weights" in refused(
        tmp_path / "w.safetensors"
    )


@pytest.mark.parametrize("name", ["../../out", "/tmp/out", "a\x1b[31m\nb", "x" * 9999])
def test_a_name_is_never_a_path(tmp_path, name):
    path = tmp_path / "w.npz"
    with zipfile.ZipFile(path, "w") as archive:
        array = io.BytesIO()
        np.save(array, np.zeros(2, np.float32))
        archive.writestr(f"params/{name}.npy", array.getvalue())
    with unharmed():
        assert list(read_weights(path)) == [f"params/{name}"]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, b"text")
    assert len(refused(path)) < 500


def test_a_pipe_is_no_file_of_weights(tmp_path):
    os.mkfifo(tmp_path / "w.npz")
    assert refused(tmp_path / "w.npz").endswith("w.npz: no such file.")


@pytest.mark.skipif(
    importlib.util.find_spec("torch") is None,
    reason="torch is not installed; it is the extra 'torch'",
)
@pytest.mark.parametrize("old_format", [False, True])
def test_a_tensor_that_repeats_a_number_is_refused(tmp_path, old_format):
    import torch

    tensor = torch.zeros(1).expand(2**36)
    torch.save(
        {"params/a": tensor},
        tmp_path / "w.pth",
        _use_new_zipfile_serialization=not old_format,
    )
    line = refused(tmp_path / "w.pth", memory=2**33)
    assert "w.pth: its arrays would take 274,877,906,944 bytes, but the file" in line


@pytest.mark.skipif(
    importlib.util.find_spec("torch") is None,
    reason="torch is not installed; it is the extra 'torch'",
)
@given(data=st.data())
@fuzzed(100)
def test_files_of_torch_are_read_or_refused(tmp_path_factory, data):
    import torch

    sound = []
    for new in (True, False):
        buffer = BytesIO()
        tensors = {k: torch.from_numpy(v) for k, v in _ARRAYS.items()}
        torch.save(tensors, buffer, _use_new_zipfile_serialization=new)
        sound.append(buffer.getvalue())
    path = tmp_path_factory.getbasetemp() / "weights.pth"
    path.write_bytes(data.draw(mutated(sound)))
    with unharmed(memory=2**34):
        try:
            load_weights(path)
        except SeglossError as error:
            line_of(error)

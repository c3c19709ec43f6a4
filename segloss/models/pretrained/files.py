"""Reads and writes weight files; never executes pickled code, writes atomically.

What a file declares is checked before any array is read: an archive of some kilobytes
may declare gigabytes.
"""

import functools
import hashlib
import math
import os
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy

from segloss.errors import (
    ExistingFileError,
    MissingFileError,
    SeglossError,
    printable,
)
from segloss.models.pretrained.old_torch import (
    MAGIC,
    Tensor,
    check_state_dict,
    read_old_torch,
)
from segloss.models.pretrained.rules import Shape

# VGG-16 with its classifier takes 0.6 GB.
_MAX_BYTES = 16 << 30
# Weights in 32 bits shrink by a tenth, and equal weights more.
_MAX_RATIO = 20
_FREE_BYTES = 64 << 20  # are read whatever the file's size
_MAX_REASON = 300  # characters of another package's message
# Judges the names and shapes of a file's arrays before one is read.
Check = Callable[[Mapping[str, Shape]], None]


def read_weights(
    path: str | Path, check: Check = lambda shapes: None
) -> dict[str, np.ndarray]:
    """Reads a `.safetensors`, `.npz`, `.pth` or `.pt` file into a dict of arrays.

    `.pth` and `.pt` files of torch since 1.6 need torch (the extra `torch`), which
    reads them with `weights_only=True`: only tensors are unpickled. Older ones are read
    without it.

    Args:
        path: the file.
        check: called with the shapes of the arrays by name, before one is read.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the suffix is another one, the content does not match it, the
            file declares more bytes than weights take, torch is needed and not
            installed, or `check` raises it; the message names the file.
    """
    path = Path(path)
    if path.suffix not in _READERS:
        raise SeglossError(
            f"{path}: the suffix must be one of {', '.join(_READERS)}, "
            f"got {path.suffix or 'none'}."
        )
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file.")
    if path.stat().st_size == 0:
        raise SeglossError(f"{path} is empty.")
    try:
        return _READERS[path.suffix](path, check)
    except ModuleNotFoundError as error:
        raise SeglossError(
            f"{path}: torch is needed to read it; pip install 'segloss[torch]', or "
            "convert it where torch is installed: python -m segloss.models.pretrained "
            f"{path.name} {path.stem}.safetensors"
        ) from error
    except _RefusedError as error:
        raise SeglossError(f"{path}: {printable(str(error))}") from error.__cause__
    # The readers raise many kinds of errors on broken files.
    except Exception as error:
        reason = printable(" ".join(str(error).split()))[:_MAX_REASON]
        raise SeglossError(
            f"{path} is not a valid {path.suffix} file of weights: {reason}"
        ) from error


def read_layout(path: str | Path) -> str | None:
    """Returns the layout that `write_weights` stored in a file, such as "deeplab_v2".

    None if the file is not a `.safetensors` file or does not record a layout.
    """
    if Path(path).suffix != ".safetensors":
        return None
    with safetensors.safe_open(path, "numpy") as file:
        return (file.metadata() or {}).get("layout")


def write_weights(path: Path, arrays: Mapping[str, np.ndarray], layout: str) -> None:
    """Writes arrays and the name of their layout to a `.safetensors` file, atomically.

    Args:
        path: the file to write; it must not exist.
        arrays: maps the name of each array to it.
        layout: name of the layout in which the weights were published, such as
            "deeplab_v2"; stored as metadata.

    Raises:
        FileExistsError: if the file already exists.
        OSError: if it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    # The writer copies raw memory and ignores strides.
    contiguous = {name: np.ascontiguousarray(a) for name, a in arrays.items()}
    try:
        safetensors.numpy.save_file(contiguous, partial, {"layout": layout})
        os.link(partial, path)  # unlike a rename, never replaces an existing file
    except FileExistsError as error:
        raise ExistingFileError(
            f"{path} already exists; choose another name."
        ) from error
    except safetensors.SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def sha256_of(path: str | Path) -> str:
    """Returns the SHA-256 digest of a file as a hexadecimal string."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _RefusedError(Exception):
    """The file is sound, but what it declares is refused."""


def _check(
    path: Path, shapes: Mapping[str, Shape], sizes: Iterable[int], check: Check
) -> None:
    """Checks the names, shapes and bytes that a file declares."""
    declared, size = sum(sizes), path.stat().st_size
    if declared > min(_MAX_BYTES, max(_FREE_BYTES, _MAX_RATIO * size)):
        raise _RefusedError(
            f"its arrays would take {declared:,} bytes, but the file has {size:,}; "
            f"weights take at most {_MAX_RATIO} times their file, and "
            f"{_MAX_BYTES:,} bytes."
        )
    try:
        check(shapes)
    except SeglossError as error:
        raise _RefusedError(str(error)) from error


def _read_npz(path: Path, check: Check) -> dict[str, np.ndarray]:
    if not zipfile.is_zipfile(path):  # numpy's message would advise unpickling
        raise SeglossError("it is not a complete zip archive.")
    with zipfile.ZipFile(path) as archive:
        shapes, sizes = {}, []
        for member in archive.infolist():
            shape, dtype = _declared(archive, member)
            shapes[member.filename.removesuffix(".npy")] = shape
            # NumPy allocates what the header says, and the archive holds what it says.
            sizes.append(max(math.prod(shape) * dtype.itemsize, member.file_size))
        _check(path, shapes, sizes, check)
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def _declared(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo
) -> tuple[Shape, np.dtype]:
    """Returns shape and type of an array in an archive, from its first bytes."""
    with archive.open(member) as file:
        if file.read(6) != np.lib.format.MAGIC_PREFIX:
            raise SeglossError(f"its member {member.filename!r} is not an array.")
        file.seek(0)
        version = np.lib.format.read_magic(file)
        shape, _, dtype = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version](file)
    if dtype.hasobject:
        raise SeglossError(
            f"its member {member.filename!r} holds Object arrays of Python, which are "
            "refused."
        )
    return shape, dtype


def _read_safetensors(path: Path, check: Check) -> dict[str, np.ndarray]:
    with safetensors.safe_open(path, "numpy") as file:
        names = file.keys()
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
        _check(path, shapes, [path.stat().st_size], check)
    return safetensors.numpy.load_file(path)


def _read_torch(path: Path, check: Check) -> dict[str, np.ndarray]:
    with path.open("rb") as file:
        if file.read(len(MAGIC)) == MAGIC:
            return read_old_torch(path, functools.partial(_check_old, path, check))
    import torch

    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            _check(path, {}, (x.file_size for x in archive.infolist()), lambda _: None)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    # torch raises many kinds of errors, and its messages advise unpickling.
    except Exception as error:
        raise SeglossError(
            "it is damaged, or its pickle contains more than tensors, which is refused."
        ) from error
    loaded = check_state_dict(loaded, torch.Tensor)
    shapes = {name: tuple(tensor.shape) for name, tensor in loaded.items()}
    # A few bytes can be a tensor of any shape that repeats them.
    sizes = (t.numel() * t.element_size() for t in loaded.values())
    _check(path, shapes, sizes, check)
    # NumPy has no bfloat16.
    return {
        name: (t.float() if t.dtype is torch.bfloat16 else t).detach().numpy()
        for name, t in loaded.items()
    }


def _check_old(path: Path, check: Check, tensors: Mapping[str, Tensor]) -> None:
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    _check(path, shapes, (tensor.num_bytes for tensor in tensors.values()), check)


_READERS: dict[str, Callable[[Path, Check], dict[str, np.ndarray]]] = {
    ".safetensors": _read_safetensors,
    ".npz": _read_npz,
    ".pth": _read_torch,
    ".pt": _read_torch,
}

"""Reads and writes weight files; never executes pickled code, writes atomically."""

import hashlib
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy

from segloss.errors import ExistingFileError, MissingFileError, SeglossError


def read_weights(path: str | Path) -> dict[str, np.ndarray]:
    """Reads a `.safetensors`, `.npz`, `.pth` or `.pt` file into a dict of arrays.

    `.pth` and `.pt` files need torch (the extra `torch`), which reads them with
    `weights_only=True`: only tensors are unpickled.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the suffix is another one, the content does not match it, or
            torch is needed and not installed; the message names the file.
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
        return _READERS[path.suffix](path)
    except ModuleNotFoundError as error:
        raise SeglossError(
            f"{path}: torch is needed to read it; pip install 'segloss[torch]', or "
            "convert it where torch is installed: python -m segloss.models.pretrained "
            f"{path.name} {path.stem}.safetensors"
        ) from error
    # The readers raise many kinds of errors on broken files.
    except Exception as error:
        raise SeglossError(
            f"{path} is not a valid {path.suffix} file of weights: {error}"
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


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    if not zipfile.is_zipfile(path):  # numpy's message would advise unpickling
        raise SeglossError("it is not a complete zip archive.")
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    if strays := [name for name, a in arrays.items() if not isinstance(a, np.ndarray)]:
        raise SeglossError(f"its member {strays[0]!r} is not an array.")
    return arrays


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    import torch

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    # torch raises many kinds of errors, and its messages advise unpickling.
    except Exception as error:
        raise SeglossError(
            "it is damaged, or its pickle contains more than tensors, which is refused."
        ) from error
    if not isinstance(loaded, Mapping):
        raise SeglossError(
            f"it contains a {type(loaded).__name__}; save a state dict, which maps "
            "names to tensors."
        )
    for name, value in loaded.items():
        if not isinstance(name, str):
            raise SeglossError(f"its key {name!r} is not a string; save a state dict.")
        if not isinstance(value, torch.Tensor):
            raise SeglossError(
                f"its entry {name!r} is a {type(value).__name__}, not a tensor; save "
                "only the state dict."
            )
    # NumPy has no bfloat16.
    return {
        name: (t.float() if t.dtype is torch.bfloat16 else t).detach().numpy()
        for name, t in loaded.items()
    }


_READERS: dict[str, Callable[[Path], dict[str, np.ndarray]]] = {
    ".safetensors": safetensors.numpy.load_file,
    ".npz": _read_npz,
    ".pth": _read_torch,
    ".pt": _read_torch,
}

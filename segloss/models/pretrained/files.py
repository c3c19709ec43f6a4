"""Files of weights: read without ever running what they hold, and written whole."""

import hashlib
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy


def read_weights(path: str | Path) -> dict[str, np.ndarray]:
    """Name to array of a `.safetensors`, `.npz`, `.pth` or `.pt` file.

    The last two are read by torch (extra `torch`) under `weights_only=True`: nothing
    is ever unpickled but tensors.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file, if it is not what its name says, or torch is
            needed and missing.
    """
    path = Path(path)
    if path.suffix not in _READERS:
        raise ValueError(
            f"{path}: weights are read from {', '.join(_READERS)}, "
            f"not from {path.suffix or 'a name without an ending'}."
        )
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file.")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty.")
    try:
        return _READERS[path.suffix](path)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{path}: torch is needed to read it; pip install 'segloss[torch]', or "
            "convert it where torch is: python -m segloss.models.pretrained "
            f"{path.name} {path.stem}.safetensors"
        ) from error
    # The readers raise nearly anything on broken bytes.
    except Exception as error:
        raise ValueError(
            f"{path} is no sound {path.suffix} file of weights: {error}"
        ) from error


def read_layout(path: str | Path) -> str | None:
    """The layout that `write_weights` noted; None where it did not."""
    if Path(path).suffix != ".safetensors":
        return None
    with safetensors.safe_open(path, "numpy") as file:
        return (file.metadata() or {}).get("layout")


def write_weights(path: Path, arrays: Mapping[str, np.ndarray], layout: str) -> None:
    """Writes a `.safetensors` file, of which a reader sees all or nothing.

    Args:
        path: of the file, which must not be there.
        arrays: name to array.
        layout: what the weights were published in, noted beside them.

    Raises:
        FileExistsError: if there is such a file already.
        OSError: if it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    # The writer takes the memory as it lies, strides or not.
    contiguous = {name: np.ascontiguousarray(a) for name, a in arrays.items()}
    try:
        safetensors.numpy.save_file(contiguous, partial, {"layout": layout})
        os.link(partial, path)  # unlike a rename, never in the place of another file
    except FileExistsError as error:
        raise FileExistsError(f"{path} is there already.") from error
    except safetensors.SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def sha256_of(path: str | Path) -> str:
    """The digest of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    if not zipfile.is_zipfile(path):  # numpy would go on to advise unpickling
        raise ValueError("it is no zip archive, or a part of one.")
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    if strays := [name for name, a in arrays.items() if not isinstance(a, np.ndarray)]:
        raise ValueError(f"its member {strays[0]!r} is no array.")
    return arrays


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    import torch

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    # torch raises nearly anything, and advises unpickling.
    except Exception as error:
        raise ValueError(
            "it is broken, or its pickle holds more than tensors, which is never read."
        ) from error
    if not isinstance(loaded, Mapping):
        raise ValueError(f"it holds a {type(loaded).__name__}, no names with tensors.")
    for name, value in loaded.items():
        if not isinstance(name, str):
            raise ValueError(f"its entry {name!r} has no string for a name.")
        if not isinstance(value, torch.Tensor):
            raise ValueError(
                f"its entry {name!r} is a {type(value).__name__}, not a tensor; save "
                "the state dict alone."
            )
    # numpy has no bfloat16.
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

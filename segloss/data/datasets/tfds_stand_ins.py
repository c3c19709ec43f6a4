"""What TFDS needs of packages that are not installed to prepare a dataset.

TFDS extracts archives and lists folders with TensorFlow's functions for files, and it
imports `importlib_resources` to find a builder's checksums. Both are imported when they
are first used; `stand_ins` gives TFDS functions of Python and Pillow instead.
"""

import contextlib
import functools
import glob
import importlib.resources.abc
import importlib.util
import io
import os
import shutil
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from tensorflow_datasets.core import dataset_builder
from tensorflow_datasets.core.utils import lazy_imports_utils

_lock = threading.Lock()


class _Module:
    """A module of TensorFlow of which only the `known` names exist."""

    def __init__(self, path: str, lacking: list[str], **known: Any):
        self._path, self._lacking = path, lacking
        vars(self).update(known)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self._lacking.append(f"{self._path}.{name}")
        raise NotImplementedError(f"{self._path}.{name} needs TensorFlow")


@contextlib.contextmanager
def stand_ins() -> Iterator[list[str]]:
    """Lets TFDS prepare datasets in the block without TensorFlow.

    A function of TensorFlow without a stand-in raises an error, which TFDS may wrap.
    Its name is then in the list that the context manager yields. Packages that are
    installed are not replaced.
    """
    lacking: list[str] = []
    modules = {
        "tensorflow": (lazy_imports_utils.tensorflow, _make_tensorflow(lacking)),
        "importlib_resources": (
            dataset_builder.importlib_resources,
            importlib.resources,
        ),
    }
    with _lock, contextlib.ExitStack() as stack:
        for name, (proxy, module) in modules.items():
            if importlib.util.find_spec(name) is None:
                # The proxy imports its module once, and keeps it here.
                vars(proxy)["_module"] = module
                stack.callback(vars(proxy).pop, "_module")
        yield lacking


def _make_tensorflow(lacking: list[str]) -> _Module:
    module = functools.partial(_Module, lacking=lacking)
    gfile = module(
        "tf.io.gfile",
        GFile=_open,
        copy=_copy,
        exists=os.path.exists,
        glob=_glob,
        isdir=os.path.isdir,
        listdir=os.listdir,
        makedirs=lambda path: os.makedirs(path, exist_ok=True),
        remove=os.remove,
        rmtree=shutil.rmtree,
        walk=os.walk,
    )
    errors = {
        name: type(name, (Exception,), {})
        for name in (
            *("AbortedError", "FailedPreconditionError", "ResourceExhaustedError"),
            "UnimplementedError",
        )
    }
    errors |= {
        "NotFoundError": FileNotFoundError,
        "PermissionDeniedError": PermissionError,
    }
    dtypes = ["bool", "uint8", "uint16", "int32", "int64", "float32", "float64"]
    return module(
        "tf",
        compat=module("tf.compat", as_bytes=_as_bytes, as_text=_as_text),
        errors=module("tf.errors", **errors),
        image=module("tf.image", decode_image=_decode_image),
        io=module("tf.io", encode_jpeg=_encode_jpeg, gfile=gfile),
        shape=np.shape,
        **{name: getattr(np, name) for name in dtypes},
    )


def _open(name: str | os.PathLike[str], mode: str = "r") -> io.IOBase:
    return open(name, mode, encoding=None if "b" in mode else "utf-8")


def _copy(
    src: str | os.PathLike[str], dst: str | os.PathLike[str], overwrite: bool = False
) -> None:
    if not overwrite and os.path.exists(dst):
        raise FileExistsError(f"{os.fspath(dst)} exists")
    shutil.copyfile(os.fspath(src).removeprefix("file://"), dst)


def _glob(pattern: str | os.PathLike[str]) -> list[str]:
    return sorted(glob.glob(os.fspath(pattern)))


def _as_bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


def _as_text(text: str | bytes) -> str:
    return text.decode() if isinstance(text, bytes) else text


def _decode_image(data: bytes) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes an image to RGB; TFDS repairs files that are no sound JPEG with it."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


class _Encoded(bytes):
    def numpy(self) -> bytes:
        return bytes(self)


def _encode_jpeg(pixels: UInt8[np.ndarray, "h w 3"]) -> _Encoded:
    buffer = io.BytesIO()
    # TensorFlow's defaults.
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return _Encoded(buffer.getvalue())

"""Reads state dicts that torch before 1.6 saved, without torch and without unpickling.

Such a file is four pickles, then the bytes of each storage. `pickletools` lists the
instructions of the pickles; the few that a state dict needs are followed here, and any
other is refused. No name in the file is ever imported or called.
"""

import dataclasses
import math
import mmap
import pickletools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from segloss.errors import SeglossError
from segloss.models.pretrained.rules import Shape

# The first pickle: a number by which torch knows its files.
MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_PROTOCOL = 1001
# By class in the file: the type of an element. NumPy has no bfloat16.
_STORAGES = {
    "torch DoubleStorage": "<f8",
    "torch FloatStorage": "<f4",
    "torch HalfStorage": "<f2",
    "torch BFloat16Storage": "<u2",
    "torch LongStorage": "<i8",
    "torch IntStorage": "<i4",
    "torch ShortStorage": "<i2",
    "torch CharStorage": "i1",
    "torch ByteStorage": "u1",
    "torch BoolStorage": "?",
}
_BFLOAT16 = "torch BFloat16Storage"
_DICT = "collections OrderedDict"
_TENSOR = "torch._utils _rebuild_tensor_v2"
_PARAMETER = "torch._utils _rebuild_parameter"


@dataclasses.dataclass(frozen=True)
class _Global:
    """A class or function that the file names."""

    name: str


@dataclasses.dataclass(frozen=True)
class _Storage:
    """Numbers in the file, of which tensors are views."""

    key: str
    kind: str
    length: int


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor that the file declares.

    Attributes:
        storage: where its numbers are.
        offset: index of its first number in the storage.
        shape: its shape.
        strides: distance of neighbours along each axis, in numbers.
    """

    storage: _Storage
    offset: int
    shape: Shape
    strides: Shape

    @property
    def num_bytes(self) -> int:
        """Bytes of all its numbers, also where several are one number of the file."""
        return math.prod(self.shape) * np.dtype(_STORAGES[self.storage.kind]).itemsize

    def check(self) -> None:
        """Raises SeglossError if the tensor is not within its storage."""
        numbers = (self.offset, *self.shape, *self.strides)
        sound = (
            all(type(n) is int and 0 <= n < 2**62 for n in numbers)
            and len(self.shape) == len(self.strides) <= 32
        )
        pairs = zip(self.shape, self.strides, strict=False)
        last = self.offset + sum((n - 1) * stride for n, stride in pairs)
        if not sound or (0 not in self.shape and last >= self.storage.length):
            raise SeglossError("it is damaged: a tensor lies outside of its storage.")

    def take(self, storage: np.ndarray) -> np.ndarray:
        """Copies the tensor out of the numbers of its storage."""
        if 0 in self.shape:
            return np.zeros(self.shape, storage.dtype)
        strides = [n * storage.itemsize for n in self.strides]
        view = np.lib.stride_tricks.as_strided(
            storage[self.offset :], self.shape, strides, writeable=False
        )
        return view.copy()


def read_old_torch(
    path: Path, check: Callable[[Mapping[str, Tensor]], None]
) -> dict[str, np.ndarray]:
    """Reads the arrays of a file that begins with `MAGIC`.

    Args:
        path: the file.
        check: called with the tensors that the file declares, before one is read.

    Raises:
        SeglossError: if the file is damaged or holds more than a state dict.
    """
    # A map never reads more than there is, whatever length the file declares.
    with (
        path.open("rb") as opened,
        mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as file,
    ):
        head = [_follow(file) for _ in range(3)]
        if head[1] != _PROTOCOL or not head[2]["little_endian"]:
            raise SeglossError("it is of another byte order or version of torch.")
        tensors = check_state_dict(_follow(file), Tensor)
        for tensor in tensors.values():
            tensor.check()
        check(tensors)
        storages = {t.storage.key: t.storage for t in tensors.values()}
        if any(storages[t.storage.key] != t.storage for t in tensors.values()):
            raise SeglossError("it is damaged: two storages have one name.")
        read = {}
        for key in _follow(file):
            if type(key) is not str or key not in storages:
                raise SeglossError("it is damaged: a storage belongs to no tensor.")
            read[key] = _read_storage(file, storages[key])
        if read.keys() != storages.keys():
            raise SeglossError("it is damaged: a tensor has no storage.")
    return {name: t.take(read[t.storage.key]) for name, t in tensors.items()}


def check_state_dict(loaded: Any, tensor: type) -> Mapping[str, Any]:
    """Returns `loaded` if it maps names to instances of `tensor`.

    Raises:
        SeglossError: if it does not; the message names the entry.
    """
    if not isinstance(loaded, Mapping):
        raise SeglossError(
            f"it contains a {type(loaded).__name__}; save a state dict, which maps "
            "names to tensors."
        )
    for name, value in loaded.items():
        if not isinstance(name, str):
            raise SeglossError(f"its key {name!r} is not a string; save a state dict.")
        if not isinstance(value, tensor):
            raise SeglossError(
                f"its entry {name!r} is a {type(value).__name__}, not a tensor; save "
                "only the state dict."
            )
    return loaded


def _read_storage(file: mmap.mmap, storage: _Storage) -> np.ndarray:
    """Reads the next storage of a file, with the number of its elements before it."""
    length = int.from_bytes(file.read(8), "little")
    if length != storage.length:
        raise SeglossError("it is damaged: a storage has another length than declared.")
    dtype = np.dtype(_STORAGES[storage.kind])
    numbers = np.frombuffer(file.read(length * dtype.itemsize), dtype)
    if len(numbers) != length:
        raise SeglossError("it is damaged: it ends within a storage.")
    if storage.kind == _BFLOAT16:  # the upper half of a float32
        return (numbers.astype(np.uint32) << 16).view(np.float32)
    return numbers


def _follow(file: mmap.mmap) -> Any:
    """Follows the next pickle of a file and returns what it describes."""
    stack: list[Any] = []
    below: list[list[Any]] = []  # of each mark, the values before it
    memo: dict[int, Any] = {}
    for opcode, argument, _ in pickletools.genops(file):
        match opcode.name:
            case "PROTO":
                pass
            case "STOP":
                return stack.pop()
            case "MARK":
                below.append(stack)
                stack = []
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True}.get(opcode.name, False))
            case "BINUNICODE" | "BININT" | "BININT1" | "BININT2" | "LONG1":
                stack.append(argument)
            case "EMPTY_DICT" | "EMPTY_LIST":
                stack.append({} if opcode.name == "EMPTY_DICT" else [])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE":
                stack, values = below.pop(), stack
                stack.append(tuple(values))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                n = int(opcode.name[-1])
                stack[-n:] = [tuple(stack[-n:])]
            case "APPENDS":
                stack, values = below.pop(), stack
                stack[-1].extend(values)
            case "APPEND":
                value = stack.pop()
                stack[-1].append(value)
            case "SETITEMS":
                stack, values = below.pop(), stack
                for key, value in zip(values[::2], values[1::2], strict=True):
                    stack[-1][_name(key)] = value
            case "SETITEM":
                key, value = stack[-2:]
                del stack[-2:]
                stack[-1][_name(key)] = value
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_Global(argument))
            case "BINPERSID":
                stack.append(_storage(*stack.pop()))
            case "REDUCE":
                arguments = stack.pop()
                stack.append(_call(stack.pop().name, *arguments))
            case "BUILD":  # attributes of a dict, such as `_metadata`
                stack.pop()
            case _:
                raise _refused(f"the instruction {opcode.name}")
    raise SeglossError("it is damaged: it ends within a pickle.")


def _name(key: Any) -> str:
    # Hashing tuples of tuples could take for ever.
    if type(key) is not str:
        raise SeglossError("a key is not a string; save a state dict.")
    return key


def _storage(
    kind: str, dtype: _Global, key: str, _: str, length: int, view: None = None
) -> _Storage:
    if kind != "storage" or view is not None or dtype.name not in _STORAGES:
        raise _refused(dtype.name)
    if type(key) is not str or type(length) is not int or length < 0:
        raise SeglossError("it is damaged: a storage has no name or length.")
    return _Storage(key, dtype.name, length)


def _call(name: str, *arguments: Any) -> Any:
    """Returns what a function that the file names would make of its arguments."""
    if name == _DICT and not arguments:
        return {}
    if name == _PARAMETER:
        return arguments[0]
    if name == _TENSOR:
        storage, offset, shape, strides, *_ = arguments
        if isinstance(storage, _Storage):
            return Tensor(storage, offset, tuple(shape), tuple(strides))
    raise _refused(name)


def _refused(what: str) -> SeglossError:
    return SeglossError(
        f"its pickle contains more than tensors, which is refused: {what}."
    )

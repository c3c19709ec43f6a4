"""Reads 8-bit images from structs in MATLAB files of version 5 to 7.

SciPy reads more, but some damaged files crash its reader, and with it the process, and
it allocates what a file declares. Here nothing is allocated but the decompressed bytes.
The format is in MathWorks' "MAT-File Format", 2020.
"""

import struct
import zlib
from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt8

from segloss.data.decoding.opening import damaged

_MOST_BYTES = 2**26  # of a decompressed variable; labels of SBD take 250 kB
_HEADER_BYTES = 128
_ORDERS = {b"IM": "<", b"MI": ">"}
_MATRIX, _COMPRESSED = 14, 15  # kinds of elements
_STRUCT, _UINT8 = 2, 9  # classes of matrices


def read_mat_image(
    data: bytes, variable: str, field: str
) -> UInt8[np.ndarray, "h w"] | None:
    """Returns the field of a variable that is a struct; None if it is no 8-bit image.

    Args:
        data: content of the file.
        variable: name of the struct.
        field: name of the field.

    Raises:
        UnfitError: if the file is of another format, or a variable before the field
            takes more than 64 MiB.
        Exception: of any kind, if the file is damaged in another way.
    """
    order = _ORDERS.get(data[126:128])
    if order is None:
        raise damaged("it is not a MATLAB file of version 5 to 7")
    for kind, content in _elements(data[_HEADER_BYTES:], order):
        if kind == _COMPRESSED:
            ((kind, content),) = _elements(_inflate(content), order)
        if kind != _MATRIX:
            continue
        number, _, name, parts = _open_matrix(content, order)
        if (number, name) == (_STRUCT, variable.encode()):
            return _find_image(parts, field.encode(), order)
    return None


def _find_image(
    parts: Iterator[tuple[int, bytes]], field: bytes, order: str
) -> UInt8[np.ndarray, "h w"] | None:
    size, names = _take(parts), _take(parts)
    (num_bytes,) = struct.unpack(f"{order}i", size)
    places = range(0, len(names), num_bytes)
    # A struct of several rows has more parts than names.
    for start, (_, content) in zip(places, parts, strict=False):
        if names[start : start + num_bytes].rstrip(b"\0") == field:
            number, hw, _, parts = _open_matrix(content, order)
            if number != _UINT8 or len(hw) != 2:
                return None
            return np.frombuffer(_take(parts), np.uint8).reshape(hw, order="F")
    return None


def _open_matrix(
    content: bytes, order: str
) -> tuple[int, tuple[int, ...], bytes, Iterator[tuple[int, bytes]]]:
    """Returns the class, the shape and the name of a matrix, and its other parts."""
    parts = _elements(content, order)
    flags, shape, name = _take(parts), _take(parts), _take(parts)
    number = struct.unpack(f"{order}II", flags)[0] & 0xFF
    return number, struct.unpack(f"{order}{len(shape) // 4}I", shape), name, parts


def _take(parts: Iterator[tuple[int, bytes]]) -> bytes:
    for _, content in parts:
        return content
    raise damaged("it ends too early")


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Yields the kind and the content of each element."""
    place = 0
    while place < len(data):
        kind, size = struct.unpack_from(f"{order}II", data, place)
        start = place + 8
        if small := kind >> 16:  # up to 4 bytes take the place of the size
            kind, size, start = kind & 0xFFFF, small, place + 4
        if start + size > len(data):
            raise damaged("it ends too early")
        yield kind, data[start : start + size]
        # Compressed elements are not padded to 8 bytes.
        place = start + size if kind == _COMPRESSED else -(-(start + size) // 8) * 8


def _inflate(content: bytes) -> bytes:
    stream = zlib.decompressobj()
    inflated = stream.decompress(content, _MOST_BYTES)
    if stream.unconsumed_tail:
        raise damaged(f"a variable takes more than {_MOST_BYTES:,} bytes")
    if not stream.eof:
        raise damaged("it ends too early")
    return inflated

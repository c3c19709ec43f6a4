"""What a weight file must hold, and where each of its arrays goes in our networks."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

Shape = tuple[int, ...]
# How many names a message shows of each kind.
_SHOWN = 5
_DTYPES = ("bfloat16", "float16", "float32", "float64")


@dataclasses.dataclass(frozen=True)
class Entry:
    """An array that a file must hold.

    Attributes:
        path: where it goes, "params/conv1/kernel".
        shape: in the file; a kernel's is out, in, height, width.
        dense_as: the shape of a kernel that the file flattens into a matrix.
    """

    path: str
    shape: Shape
    dense_as: Shape | None = None

    def place(self, name: str, array: Any) -> np.ndarray:
        """The array, in the file called `name`, as our networks hold it: kernels HWIO.

        Raises:
            ValueError: see `as_float32`.
        """
        array = as_float32(name, array, self.path)
        if self.dense_as is not None:
            array = array.reshape(self.dense_as)
        if array.ndim == 4:
            array = array.transpose(2, 3, 1, 0)
        return np.ascontiguousarray(array)


# What a file must hold: name to entry.
Entries = dict[str, Entry]


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a library names the arrays of a network.

    Attributes:
        name: ours, for messages.
        sign: regular expression that some name of the layout matches from its start,
            and no name of another layout.
        expect: what a file must hold; it is told the shapes that the file has, since
            they say how deep and wide the network is.
        set_aside: regular expression of the whole names that no network of ours needs.
        resnet: fields of the `ResNet` that the weights are of which leave shapes alone.
    """

    name: str
    sign: str
    expect: Callable[[Mapping[str, Shape]], Entries]
    set_aside: str
    resnet: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def recognizes(self, names: Iterable[str]) -> bool:
        """Whether names are of this layout, if of any."""
        return any(re.match(self.sign, name) for name in names)

    def arrange(self, state_dict: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Path to array, each name of the file used once.

        Raises:
            ValueError: naming what is left over, missing or of another shape, or see
                `as_float32`.
        """
        shapes = {
            name: tuple(np.shape(array))
            for name, array in state_dict.items()
            if not re.fullmatch(self.set_aside, name)
        }
        entries = self.expect(shapes)
        faults = [
            _list("left over", _named(shapes, shapes.keys() - entries.keys())),
            _list(
                "missing",
                _named(
                    {name: entry.shape for name, entry in entries.items()},
                    entries.keys() - shapes.keys(),
                ),
            ),
            _list(
                "of another shape",
                [
                    f"{name} {shapes[name]} must be {entry.shape}"
                    for name, entry in entries.items()
                    if name in shapes and shapes[name] != entry.shape
                ],
            ),
        ]
        if any(faults):
            raise ValueError(
                f"{self.name}: {'; '.join(filter(None, faults))}; the names must be "
                "those of one whole network."
            )
        return {
            entry.path: entry.place(name, state_dict[name])
            for name, entry in entries.items()
        }


def as_float32(name: str, array: Any, path: str) -> np.ndarray:
    """A float32 copy of real numbers.

    Args:
        name: of the array in its file, for messages.
        array: what `np.asarray` takes.
        path: where it goes, which tells a variance.

    Raises:
        ValueError: naming the array, if it is of another type, is not finite, or is a
            variance below 0.
    """
    array = np.asarray(array)
    if array.dtype.name not in _DTYPES:
        raise ValueError(
            f"{name} must be of {', '.join(_DTYPES)}, not of {array.dtype.name}."
        )
    with np.errstate(over="ignore"):  # becomes infinite
        array = np.array(array, np.float32)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds NaN, or numbers infinite as float32.")
    if path.endswith("/var") and (array < 0).any():
        raise ValueError(f"{name} holds variances below 0, as {array.min()}.")
    return array


def conv(name: str, path: str, shape: Shape, *, bias: bool = False) -> Entries:
    """A convolution; `shape` is out, in, height, width."""
    entries = {f"{name}.weight": Entry(f"params/{path}/kernel", shape)}
    if bias:
        entries[f"{name}.bias"] = Entry(f"params/{path}/bias", shape[:1])
    return entries


def dense(name: str, path: str, shape: Shape) -> Entries:
    """A dense layer that is a convolution of the whole map; `shape` as for `conv`."""
    out, *into = shape
    weight = Entry(f"params/{path}/kernel", (out, int(np.prod(into))), dense_as=shape)
    bias = Entry(f"params/{path}/bias", (out,))
    return {f"{name}.weight": weight, f"{name}.bias": bias}


def norm(name: str, path: str, features: int) -> Entries:
    """A batch normalisation."""
    paths = {
        "weight": f"params/{path}/scale",
        "bias": f"params/{path}/bias",
        "running_mean": f"batch_stats/{path}/mean",
        "running_var": f"batch_stats/{path}/var",
    }
    return {f"{name}.{k}": Entry(p, (features,)) for k, p in paths.items()}


def size_of(
    shapes: Mapping[str, Shape], name: str, default: int, *, axis: int = 0
) -> int:
    """How long an axis of an array is; `default` where the file lacks it."""
    shape = shapes.get(name, ())
    return shape[axis] if len(shape) > axis else default


def shown(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _named(shapes: Mapping[str, Shape], names: set[str]) -> list[str]:
    return [f"{name} {shape}" for name, shape in shapes.items() if name in names]


def _list(fault: str, names: Sequence[str]) -> str:
    return f"{len(names)} {fault} ({shown(names)})" if names else ""

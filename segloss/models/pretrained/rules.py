"""Rules for weight files: the arrays they must hold and their paths in our networks."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from segloss.errors import SeglossError

Shape = tuple[int, ...]
# Number of names of each kind that a message shows.
_SHOWN = 5
_DTYPES = ("bfloat16", "float16", "float32", "float64")


@dataclasses.dataclass(frozen=True)
class Entry:
    """An array that a weight file must hold.

    Attributes:
        path: path in our network, such as "params/conv1/kernel".
        shape: shape in the file; kernels are (out, in, height, width).
        dense_as: shape (out, in, height, width) of the kernel, if the file stores it as
            a matrix; else None.
    """

    path: str
    shape: Shape
    dense_as: Shape | None = None

    def place(self, name: str, array: Any) -> np.ndarray:
        """Converts the array called `name` in the file to our format, which it returns.

        The result is float32; kernels are (height, width, in, out).

        Raises:
            ValueError: see `as_float32`.
        """
        array = as_float32(name, array, self.path)
        if self.dense_as is not None:
            array = array.reshape(self.dense_as)
        if array.ndim == 4:
            array = array.transpose(2, 3, 1, 0)
        return np.ascontiguousarray(array)


# The arrays that a file must hold, by name in the file.
Entries = dict[str, Entry]


@dataclasses.dataclass(frozen=True)
class Layout:
    """A library's naming scheme for the arrays of a network.

    Attributes:
        name: our name of the layout, such as "deeplab_v2".
        sign: regular expression that identifies the layout: in each of its files, at
            least one name starts with a match; in files of other layouts, none does.
        expect: maps the shapes in a file, which determine depth and width, to the
            entries that the file must hold.
        set_aside: regular expression; names that it fully matches are ignored.
        resnet: `ResNet` fields that the weights require and shapes do not reveal.
        for_normalized_rgb: adapts arrays, by path in our network, to the images that
            `segloss.data.augment.normalize` returns; None if they need no change.
    """

    name: str
    sign: str
    expect: Callable[[Mapping[str, Shape]], Entries]
    set_aside: str
    resnet: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    for_normalized_rgb: (
        Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]] | None
    ) = None

    def recognizes(self, names: Iterable[str]) -> bool:
        """True if these names of arrays in a file belong to this layout."""
        return any(re.match(self.sign, name) for name in names)

    def arrange(
        self, state_dict: Mapping[str, Any], *, normalized_rgb: bool = False
    ) -> dict[str, np.ndarray]:
        """Converts the arrays of a file; returns them by their paths in our network.

        `normalized_rgb=True` also applies `for_normalized_rgb`.

        Raises:
            ValueError: see `check` and `as_float32`.
        """
        shapes = {name: tuple(np.shape(array)) for name, array in state_dict.items()}
        arrays = {
            entry.path: entry.place(name, state_dict[name])
            for name, entry in self.check(shapes).items()
        }
        if normalized_rgb and self.for_normalized_rgb is not None:
            return self.for_normalized_rgb(arrays)
        return arrays

    def check(self, shapes: Mapping[str, Shape]) -> Entries:
        """Returns the entries of a file, given the shapes of its arrays.

        Raises:
            ValueError: if an array is missing, unexpected or of the wrong shape; the
                message names it.
        """
        shapes = {
            name: shape
            for name, shape in shapes.items()
            if not re.fullmatch(self.set_aside, name)
        }
        entries = self.expect(shapes)
        faults = [
            _list("unexpected", _named(shapes, shapes.keys() - entries.keys())),
            _list(
                "missing",
                _named(
                    {name: entry.shape for name, entry in entries.items()},
                    entries.keys() - shapes.keys(),
                ),
            ),
            _list(
                "of the wrong shape",
                [
                    f"{name} {shapes[name]} must be {entry.shape}"
                    for name, entry in entries.items()
                    if name in shapes and shapes[name] != entry.shape
                ],
            ),
        ]
        if any(faults):
            raise SeglossError(
                f"{self.name}: {'; '.join(filter(None, faults))}; the names must be "
                "those of one whole network."
            )
        return entries


def as_float32(name: str, array: Any, path: str) -> np.ndarray:
    """Copies an array of real numbers to float32.

    Args:
        name: name in the file, for messages.
        array: anything that `np.asarray` accepts.
        path: path in our network; variances are recognised by it.

    Raises:
        ValueError: if the array is not floating-point, not finite in float32, or a
            variance below 0; the message names it.
    """
    array = np.asarray(array)
    if array.dtype.name not in _DTYPES:
        raise SeglossError(
            f"{name} must have dtype {', '.join(_DTYPES)}, got {array.dtype.name}."
        )
    with np.errstate(over="ignore"):  # overflow gives infinity, which is refused below
        array = np.array(array, np.float32)
    if not np.isfinite(array).all():
        raise SeglossError(
            f"{name} must be finite in float32, but has NaN or infinity."
        )
    if path.endswith("/var") and (array < 0).any():
        raise SeglossError(f"{name} must hold variances >= 0, got {array.min()}.")
    return array


def conv(name: str, path: str, shape: Shape, *, bias: bool = False) -> Entries:
    """Returns the `Entries` of a convolution.

    `name` is the layer's name in the file, `path` its path in our network and `shape`
    the kernel's, (out, in, height, width). `bias` is True if the layer has a bias.
    """
    entries = {f"{name}.weight": Entry(f"params/{path}/kernel", shape)}
    if bias:
        entries[f"{name}.bias"] = Entry(f"params/{path}/bias", shape[:1])
    return entries


def dense(name: str, path: str, shape: Shape) -> Entries:
    """Returns the `Entries` of a fully connected layer that becomes a convolution.

    `name` is the layer's name in the file, `path` its path in our network, and `shape`
    the kernel's, (out, in, height, width).
    """
    out, *into = shape
    weight = Entry(f"params/{path}/kernel", (out, int(np.prod(into))), dense_as=shape)
    bias = Entry(f"params/{path}/bias", (out,))
    return {f"{name}.weight": weight, f"{name}.bias": bias}


def norm(name: str, path: str, features: int) -> Entries:
    """Returns the `Entries` of a batch normalisation with `features` channels.

    `name` is the layer's name in the file, `path` its path in our network.
    """
    paths = {
        "weight": f"params/{path}/scale",
        "bias": f"params/{path}/bias",
        "running_mean": f"batch_stats/{path}/mean",
        "running_var": f"batch_stats/{path}/var",
    }
    return {f"{name}.{k}": Entry(p, (features,)) for k, p in paths.items()}


def conv_norm(names: tuple[str, str], paths: tuple[str, str], shape: Shape) -> Entries:
    """Returns the `Entries` of a convolution without bias and the norm after it.

    `names` are those of both in the file, `paths` those in our network, and `shape` is
    the kernel's, (out, in, height, width).
    """
    return conv(names[0], paths[0], shape) | norm(names[1], paths[1], shape[0])


def size_of(
    shapes: Mapping[str, Shape], name: str, default: int, *, axis: int = 0
) -> int:
    """Length of an axis of the array `name`, or `default` if `shapes` lacks it."""
    shape = shapes.get(name, ())
    return shape[axis] if len(shape) > axis else default


def shown(names: Sequence[str]) -> str:
    """Joins the first five names by commas, and adds "and n more" if there are more."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _named(shapes: Mapping[str, Shape], names: set[str]) -> list[str]:
    return [f"{name} {shape}" for name, shape in shapes.items() if name in names]


def _list(fault: str, names: Sequence[str]) -> str:
    return f"{len(names)} {fault} ({shown(names)})" if names else ""

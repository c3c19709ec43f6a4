"""Loads pretrained weights from a file into the variables of a network."""

import dataclasses
import re
import warnings
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import linen as nn
from flax import traverse_util

from segloss.errors import SeglossError
from segloss.models.multi_scale import MultiScale
from segloss.models.pretrained.files import read_layout, read_weights
from segloss.models.pretrained.layouts import (
    LAYOUTS,
    Variables,
    nest,
)
from segloss.models.pretrained.rules import Layout, Shape, as_float32, shown

# Where in a network the network of a file may be found.
_PLACES = ("", "network/", "backbone/", "network/backbone/")
_COLLECTIONS = ("params/", "batch_stats/")
_OTHER_INPUT = [True, True, False, True]
_CLASS_HEADS = ("params/head/kernel", "params/aspp/conv0/kernel")


@dataclasses.dataclass(frozen=True)
class Weights:
    """Weights with our array names, for images normalised by `augment.normalize`.

    Attributes:
        source: path of the file.
        layout: naming scheme in which the weights were published: "torchvision_resnet",
            "torchvision_deeplabv3", "torchvision_vgg16", "deeplab_v2",
            "efficientnet_lite", or "segloss" if the file uses our names and does not
            record another.
        arrays: maps an array's path, such as "params/conv1/kernel", to a float32 array.
        adapted: what `fit_bands` changed, for a message; "" if nothing.
    """

    source: str
    layout: str
    arrays: dict[str, np.ndarray]
    adapted: str = ""

    @property
    def num_parameters(self) -> int:
        """Number of elements of all parameters, without the running statistics."""
        return sum(
            array.size
            for path, array in self.arrays.items()
            if path.startswith("params/")
        )

    @property
    def num_classes(self) -> int | None:
        """Number of output channels of the layer that computes the class scores.

        None if the file has no such layer, as for a backbone.
        """
        heads = [self.arrays[path] for path in _CLASS_HEADS if path in self.arrays]
        return heads[0].shape[-1] if heads else None


def load_weights(path: str | Path) -> Weights:
    """Reads a weight file and converts its arrays to the names of our networks.

    The names in the file determine its layout, i.e. the naming scheme of a library.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the content does not match the suffix, the layout is unknown, the
            arrays are not those of a whole network, or a value cannot be a weight; the
            message names the file.
    """
    file = read_weights(path, _check)
    layout = _find_layout(file)
    try:
        if layout is None:
            arrays = {k: as_float32(k, v, k) for k, v in file.items()}
        else:
            arrays = layout.arrange(file, normalized_rgb=True)
    except SeglossError as error:
        raise SeglossError(f"{path}: {error}") from error
    name = layout.name if layout else read_layout(path) or "segloss"
    return Weights(source=str(path), layout=name, arrays=arrays)


def _check(shapes: Mapping[str, Shape]) -> None:
    """Checks the names and shapes of a file's arrays, before one is read."""
    if layout := _find_layout(shapes):
        layout.check(shapes)


def _find_layout(names: Collection[str]) -> Layout | None:
    """Returns the layout of a file with these names; None if they are ours."""
    if names and all(name.startswith(_COLLECTIONS) for name in names):
        return None
    for layout in LAYOUTS:
        if layout.recognizes(names):
            return layout
    raise SeglossError(
        f"its names ({shown(list(names))}) match no known layout; known are "
        f"{', '.join(layout.name for layout in LAYOUTS)}, and segloss, the layout that "
        "python -m segloss.models.pretrained writes."
    )


def put_into(
    variables: Mapping[str, Any], weights: Weights, *, num_classes: int
) -> Variables:
    """Returns the variables of a network with the values of a weight file.

    The file may hold the whole network, its `backbone`, or the `network` of a
    `MultiScale`. In two cases arrays keep their initial values, with a warning: if the
    file lacks all arrays of a module that is outside the backbone or whose name starts
    with `head` or `fc`, and if the file's layer of class scores has another number of
    classes. For a VGG-16 file, `fc6` and `fc7` are skipped if they do not fit. If the
    network has norms where VGG-16 has biases, the negated biases become running means
    and the other arrays of the norms keep their initial values.

    Args:
        variables: freshly initialised variables of the network,
            `{"params": ..., "batch_stats": ...}`.
        weights: result of `load_weights`.
        num_classes: number of classes of the network.

    Raises:
        ValueError: if any other array is missing or does not fit; the message gives
            both shapes.
    """
    fresh = traverse_util.flatten_dict(dict(variables), sep="/")
    shapes = {path: np.shape(array) for path, array in fresh.items()}
    place = _find_place(shapes, weights)
    arrays, left_out = _arrange_for(shapes, weights.arrays, place)
    heads = {
        path: classes
        for path, array in arrays.items()
        if (classes := _other_classes(array.shape, shapes.get(path), num_classes))
    }
    misfits = [
        f"{path} {array.shape} must be {shapes.get(path, 'absent')}"
        for path, array in arrays.items()
        if array.shape != shapes.get(path) and path not in heads
    ]
    if misfits or len({*heads.values()}) > 1:
        misfits += [f"{p} {arrays[p].shape} must be {shapes[p]}" for p in heads]
        raise SeglossError(
            f"{weights.source}: {len(misfits)} arrays do not fit the network: "
            f"{shown(misfits)}."
        )
    if gaps := _gaps(shapes, arrays, weights.arrays):
        raise SeglossError(
            f"{weights.source} must hold a whole network or backbone of this depth, "
            f"but it lacks {len(gaps)} arrays "
            f"({shown([f'{p} {shapes[p]}' for p in gaps])})."
        )
    if heads:
        changes = [f"{p} {arrays[p].shape} to {shapes[p]}" for p in heads]
        warnings.warn(
            f"{weights.source} has {min(heads.values())} classes, the network "
            f"{num_classes}; the class head is not loaded: {shown(changes)}.",
            stacklevel=2,
        )
    lacking = [f"{p} {shape}" for p, shape in shapes.items() if p not in arrays]
    if lacking:
        warnings.warn(
            f"{weights.source} lacks {len(lacking)} of {len(shapes)} arrays, which "
            f"keep their initial values: {shown(lacking)}.",
            stacklevel=2,
        )
    if left_out:
        warnings.warn(
            f"unused arrays in {weights.source}: {shown(left_out)}.",
            stacklevel=2,
        )
    replaced = {p: array for p, array in arrays.items() if p not in heads}
    return nest(fresh | replaced)


def fit_bands(weights: Weights, variables: Mapping[str, Any]) -> Weights:
    """Adapts the first convolution of weights for RGB to a network for other bands.

    Each band gets the mean of the kernel over red, green and blue, times 3 / n for n
    bands: images of equal bands give the same activations as grey RGB images. Weights
    for the number of bands of the network are returned unchanged.

    Args:
        weights: result of `load_weights`.
        variables: freshly initialised variables of the network.
    """
    fresh = traverse_util.flatten_dict(dict(variables), sep="/")
    shapes = {path: np.shape(array) for path, array in fresh.items()}
    place = _find_place(shapes, weights)
    # Kernels (height, width, in, out) that differ in their input channels only.
    misfits = [
        (path, ours[2], array)
        for path, array in weights.arrays.items()
        if len(ours := shapes.get(path.replace("/", f"/{place}", 1), ())) == 4
        and [a == b for a, b in zip(ours, array.shape, strict=True)] == _OTHER_INPUT
    ]
    if len(misfits) != 1:
        return weights
    path, channels, kernel = misfits[0]
    # Of an `input_stride` s, the channels are s x s pixels of 3 colours each.
    pixels, more = divmod(kernel.shape[2], 3)
    if more or channels % pixels:
        return weights
    n = channels // pixels
    h, w, _, out = kernel.shape
    mean = kernel.reshape(h, w, pixels, 3, out).mean(axis=3)
    adapted = np.repeat(mean * np.float32(3 / n), n, axis=2)
    return dataclasses.replace(
        weights,
        arrays=weights.arrays | {path: adapted},
        adapted=f"first convolution adapted from RGB to {n} bands",
    )


def _arrange_for(
    shapes: Mapping[str, Shape], arrays: Mapping[str, np.ndarray], place: str
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Renames a file's arrays to the network's paths; lists those that are not used.

    `shapes` are the network's by path, and `place` is the result of `_find_place`.
    Parameters come first.
    """
    ordered = sorted(arrays.items(), key=lambda item: not item[0].startswith("params/"))
    placed = {path.replace("/", f"/{place}", 1): array for path, array in ordered}
    if f"params/{place}conv1_1/kernel" not in placed:
        return placed, []
    # A VGG-16 classifier: its fully connected layers are used only if all of them fit.
    above = [p for p in placed if p.startswith(f"params/{place}fc")]
    if all(placed[p].shape == shapes.get(p) for p in above):
        above = []
    trunk = {}
    for path, array in placed.items():
        mean = re.sub(r"^params(.*)conv(._.)/bias$", r"batch_stats\1norm\2/mean", path)
        if path not in shapes and mean in shapes:
            # A fresh norm follows: subtracting the mean equals adding the bias.
            trunk[mean] = -array
        elif path not in above:
            trunk[path] = array
    return trunk, [f"{p} {placed[p].shape}" for p in above]


def warn_of_another_resnet(network: nn.Module, weights: Weights) -> None:
    """Warns if weights were trained with another ResNet variant than the network's.

    The variant is `version` and `ceil_pool`. Both change what a ResNet computes but not
    its shapes, so such weights fit all the same.

    Args:
        network: instance of one of `MODELS`.
        weights: result of `load_weights`.
    """
    field = "model."
    if isinstance(network, MultiScale):
        network, field = network.network, "model.network."
    theirs = {
        k: v
        for layout in LAYOUTS
        if layout.name == weights.layout
        for k, v in layout.resnet.items()
    }
    changes = [
        f"{field}{name}={value!r} (is {getattr(network, name)!r})"
        for name, value in theirs.items()
        if getattr(network, name, value) != value
    ]
    if changes:
        warnings.warn(
            f"{weights.source} ({weights.layout}) fits the network, but was trained "
            f"with another variant of it; set {', '.join(changes)}.",
            stacklevel=2,
        )


def _gaps(
    shapes: Mapping[str, Shape], arrays: Mapping[str, np.ndarray], file: Iterable[str]
) -> list[str]:
    """Lists the network's paths that a weight file must hold but lacks.

    Args:
        shapes: path to shape of the network's arrays.
        arrays: arrays taken from the file, by path in the network.
        file: paths in the file itself.
    """
    has_backbone = any("/backbone/" in path for path in shapes)
    held = {_optional_module(path, has_backbone) for path in arrays} | {None}
    gaps = [
        p
        for p in shapes.keys() - arrays.keys()
        if _optional_module(p, has_backbone) in held
    ]
    if not any("/norm" in path for path in file):
        # Only VGG-16 files have no norms.
        gaps = [p for p in gaps if not re.search(r"/norm._./(scale|bias|var)$", p)]
    return sorted(gaps)


def _optional_module(path: str, has_backbone: bool) -> str | None:
    """Returns the module that holds `path` if a file may lack it, else None.

    A file may lack the modules outside the backbone, if `has_backbone`, and those with
    names that start with "head" or "fc".
    """
    name, *inner = path.split("/", 1)[1].removeprefix("network/").split("/")
    if name == "backbone":
        name = inner[0]
    elif has_backbone:
        return name
    return name if re.match("head|fc", name) else None


def _find_place(shapes: Mapping[str, Shape], weights: Weights) -> str:
    """Returns the prefix of the network's paths at which the file's arrays belong.

    It is one of `_PLACES`; "" if both are the same kind of network. Raises ValueError
    if none matches.
    """
    params = (path for path in weights.arrays if path.startswith("params/"))
    names = {path.split("/")[1] for path in params}
    for place in _PLACES:
        root = f"params/{place}"
        there = {p[len(root) :].split("/")[0] for p in shapes if p.startswith(root)}
        if names & there:
            return place
    raise SeglossError(
        f"{weights.source} belongs to another network: it has {shown(sorted(names))}, "
        f"the network {shown(sorted({path.split('/')[1] for path in shapes}))}."
    )


def _other_classes(theirs: Shape, ours: Shape | None, num_classes: int) -> int | None:
    """Returns the file's number of classes if two shapes differ only in it, else None.

    `theirs` is the shape in the file, `ours` that in the network.
    """
    if ours is None or len(theirs) != len(ours):
        return None
    differing = {(a, b) for a, b in zip(theirs, ours, strict=True) if a != b}
    if len(differing) == 1 and {b for _, b in differing} == {num_classes}:
        return differing.pop()[0]
    return None

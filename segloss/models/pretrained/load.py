"""Weights of a file, put into a network."""

import dataclasses
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import linen as nn
from flax import traverse_util

from segloss.models.multi_scale import MultiScale
from segloss.models.pretrained.files import read_layout, read_weights
from segloss.models.pretrained.layouts import (
    DEEPLAB_V2,
    LAYOUTS,
    Variables,
    for_normalized_rgb,
    nest,
)
from segloss.models.pretrained.rules import Shape, as_float32, shown

# Where a network may keep the one that a file is of.
_PLACES = ("", "network/", "backbone/", "network/backbone/")
_COLLECTIONS = ("params/", "batch_stats/")
_CLASS_HEADS = ("params/head/kernel", "params/aspp/conv0/kernel")


@dataclasses.dataclass(frozen=True)
class Weights:
    """Weights of a file, under our names and for the colours of `augment.normalize`.

    Attributes:
        source: the file.
        layout: name of the layout that the weights were published in; "segloss" where
            the file has our names and does not say.
        arrays: path ("params/conv1/kernel") to float32 array.
    """

    source: str
    layout: str
    arrays: dict[str, np.ndarray]

    @property
    def num_parameters(self) -> int:
        """Numbers in all arrays but the running statistics."""
        return sum(
            array.size
            for path, array in self.arrays.items()
            if path.startswith("params/")
        )

    @property
    def num_classes(self) -> int | None:
        """Classes that the head tells apart; None where there is no head."""
        heads = [self.arrays[path] for path in _CLASS_HEADS if path in self.arrays]
        return heads[0].shape[-1] if heads else None


def load_weights(path: str | Path) -> Weights:
    """Reads a file of any known layout, which its names tell.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file, if it is not what its name says, its layout is
            unknown, its arrays are not those of a whole network, or their values
            cannot be weights.
    """
    file = read_weights(path)
    try:
        layout, arrays = _arrange(file)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if layout == "segloss":
        layout = read_layout(path) or layout
    return Weights(source=str(path), layout=layout, arrays=arrays)


def _arrange(file: Mapping[str, np.ndarray]) -> tuple[str, dict[str, np.ndarray]]:
    if file and all(name.startswith(_COLLECTIONS) for name in file):
        return "segloss", {k: as_float32(k, v, k) for k, v in file.items()}
    for layout in LAYOUTS:
        if layout.recognizes(file):
            arrays = layout.arrange(file)
            if layout is DEEPLAB_V2:
                arrays = for_normalized_rgb(arrays)
            return layout.name, arrays
    raise ValueError(
        f"its names ({shown(list(file))}) are of no layout known; known are "
        f"{', '.join(layout.name for layout in LAYOUTS)}, and segloss, which is what "
        "python -m segloss.models.pretrained writes."
    )


def put_into(
    variables: Mapping[str, Any], weights: Weights, *, num_classes: int
) -> Variables:
    """Variables of a network, those that a file holds replaced by the file's.

    The file may be of the whole network, of its `backbone`, or of the `network` of a
    `MultiScale`. Modules above the backbone, or a head, that it lacks as a whole stay
    as they are, and so does a class head of another number of classes; warnings list
    both. Of a VGG-16, `fc6` and `fc7` are left out where they do not fit, and biases
    become running means where a norm follows, whose other arrays stay as they are.

    Args:
        variables: `{"params", "batch_stats"}` of the network, fresh.
        weights: what `load_weights` read.
        num_classes: of the network.

    Raises:
        ValueError: if anything else of the file does not fit, which gives both shapes,
            or anything else is lacking.
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
        f"{path} {array.shape} must be {shapes.get(path, 'left out')}"
        for path, array in arrays.items()
        if array.shape != shapes.get(path) and path not in heads
    ]
    if misfits or len({*heads.values()}) > 1:
        misfits += [f"{p} {arrays[p].shape} must be {shapes[p]}" for p in heads]
        raise ValueError(
            f"{weights.source}: {len(misfits)} arrays do not fit the network: "
            f"{shown(misfits)}."
        )
    if gaps := _gaps(shapes, arrays, weights.arrays):
        raise ValueError(
            f"{weights.source} is no whole network or backbone of this depth: it lacks "
            f"{len(gaps)} arrays ({shown([f'{p} {shapes[p]}' for p in gaps])}) of what "
            "it must hold whole."
        )
    if heads:
        changes = [f"{p} {arrays[p].shape} to {shapes[p]}" for p in heads]
        warnings.warn(
            f"{weights.source} tells {min(heads.values())} classes apart, not "
            f"{num_classes}; its class head begins afresh: {shown(changes)}.",
            stacklevel=2,
        )
    lacking = [f"{p} {shape}" for p, shape in shapes.items() if p not in arrays]
    if lacking:
        warnings.warn(
            f"{weights.source} lacks {len(lacking)} of {len(shapes)} arrays, which "
            f"begin afresh: {shown(lacking)}.",
            stacklevel=2,
        )
    if left_out:
        warnings.warn(
            f"of {weights.source}, the network does without {shown(left_out)}.",
            stacklevel=2,
        )
    replaced = {p: array for p, array in arrays.items() if p not in heads}
    return nest(fresh | replaced)


def _arrange_for(
    shapes: Mapping[str, Shape], arrays: Mapping[str, np.ndarray], place: str
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Arrays under the network's names, parameters first, and what is left out."""
    ordered = sorted(arrays.items(), key=lambda item: not item[0].startswith("params/"))
    placed = {path.replace("/", f"/{place}", 1): array for path, array in ordered}
    if f"params/{place}conv1_1/kernel" not in placed:
        return placed, []
    # The file is VGG-16, a classifier; what it has above its trunk may serve or not.
    above = [p for p in placed if p.startswith(f"params/{place}fc")]
    if all(placed[p].shape == shapes.get(p) for p in above):
        above = []
    trunk = {}
    for path, array in placed.items():
        mean = re.sub(r"^params(.*)conv(._.)/bias$", r"batch_stats\1norm\2/mean", path)
        if path not in shapes and mean in shapes:
            # A fresh norm follows: it subtracts what the bias would have added.
            trunk[mean] = -array
        elif path not in above:
            trunk[path] = array
    return trunk, [f"{p} {placed[p].shape}" for p in above]


def warn_of_another_resnet(network: nn.Module, weights: Weights) -> None:
    """Warns where weights fit a network, but are of a ResNet of another function.

    Args:
        network: one of `MODELS`.
        weights: what `load_weights` read.
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
            f"{weights.source} ({weights.layout}) fits the network but is of another "
            f"function; for that of its weights, set {', '.join(changes)}.",
            stacklevel=2,
        )


def _gaps(
    shapes: Mapping[str, Shape], arrays: Mapping[str, np.ndarray], file: Iterable[str]
) -> list[str]:
    """Paths that a file must hold and lacks.

    Args:
        shapes: of the network.
        arrays: what is taken from the file.
        file: paths of the file itself.
    """
    has_backbone = any("/backbone/" in path for path in shapes)
    held = {_optional_module(path, has_backbone) for path in arrays} | {None}
    gaps = [
        p
        for p in shapes.keys() - arrays.keys()
        if _optional_module(p, has_backbone) in held
    ]
    if not any("/norm" in path for path in file):
        # Only a VGG-16 goes without norms.
        gaps = [p for p in gaps if not re.search(r"/norm._./(scale|bias|var)$", p)]
    return sorted(gaps)


def _optional_module(path: str, has_backbone: bool) -> str | None:
    """The module, lacking as a whole in some files, that a path is in; None if none."""
    name, *inner = path.split("/", 1)[1].removeprefix("network/").split("/")
    if name == "backbone":
        name = inner[0]
    elif has_backbone:
        return name
    return name if re.match("head|fc", name) else None


def _find_place(shapes: Mapping[str, Shape], weights: Weights) -> str:
    """Where in the network the one lies that the file is of."""
    params = (path for path in weights.arrays if path.startswith("params/"))
    names = {path.split("/")[1] for path in params}
    for place in _PLACES:
        root = f"params/{place}"
        there = {p[len(root) :].split("/")[0] for p in shapes if p.startswith(root)}
        if names & there:
            return place
    raise ValueError(
        f"{weights.source} is of another network: it holds {shown(sorted(names))}, "
        f"the network {shown(sorted({path.split('/')[1] for path in shapes}))}."
    )


def _other_classes(theirs: Shape, ours: Shape | None, num_classes: int) -> int | None:
    """Number of classes, where that alone sets the shapes of a class head apart."""
    if ours is None or len(theirs) != len(ours):
        return None
    differing = {(a, b) for a, b in zip(theirs, ours, strict=True) if a != b}
    if len(differing) == 1 and {b for _, b in differing} == {num_classes}:
        return differing.pop()[0]
    return None

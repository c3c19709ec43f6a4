"""Reads every file of a dataset before anything is written, and judges them."""

import collections
import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Int64

from segloss.console import make_progress
from segloss.data.bands import is_rgb
from segloss.data.datasets.faults import Fault, abridge
from segloss.data.datasets.pairs import Pair, relative
from segloss.data.datasets.rules import Rules, is_nodata, with_void
from segloss.data.decoding.images import DecodedImage
from segloss.data.decoding.labels import DecodedLabels
from segloss.data.decoding.opening import UnfitError, damaged, read_file

_AHEAD = 64  # number of files that wait to be read
_Item, _Result = TypeVar("_Item"), TypeVar("_Result")


@dataclasses.dataclass
class Findings:
    """What the files of a dataset hold.

    Attributes:
        faults: what makes the dataset unusable.
        notes: what the user should know, each in one line.
        content: SHA-256 of the names and contents of all files.
    """

    faults: list[Fault]
    notes: list[str]
    content: str


@dataclasses.dataclass
class _Found:
    """What one pair holds."""

    faults: list[Fault]
    digest: bytes = b""
    # Pixels of each label value; empty if the label cannot be read.
    pixels: Int64[np.ndarray, " n"] = dataclasses.field(
        default_factory=lambda: np.zeros(0, np.int64)
    )
    palette: dict[int, tuple[int, int, int]] | None = None
    has_alpha: bool = False


def check(rules: Rules, pairs: Mapping[str, list[Pair]]) -> Findings:
    """Reads every image and label file, with a progress bar; a few wait in memory.

    Args:
        rules: what the files must be.
        pairs: the files of each split. A pair may be in two splits.
    """
    splits = collections.defaultdict(list)
    for split, of_split in pairs.items():
        for pair in of_split:
            splits[pair].append(split)
    pixels = {split: np.zeros(2**16, np.int64) for split in pairs}
    faults, alphas, palettes = [], [], _Palettes()
    content = hashlib.sha256()
    with (
        make_progress(transient=True) as bar,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        found = map_ahead(pool, functools.partial(_inspect, rules), splits)
        found = bar.track(found, total=len(splits), description="Checking files")
        for pair, of_pair in zip(splits, found, strict=True):
            faults += of_pair.faults
            content.update(of_pair.digest)
            for split in splits[pair]:
                pixels[split][: len(of_pair.pixels)] += of_pair.pixels
            label = relative(rules.root, pair.labels)
            palettes.add(label, of_pair.palette)
            if of_pair.has_alpha:
                alphas.append(relative(rules.root, pair.image))
    notes = []
    if alphas:
        notes.append(
            f"{len(alphas):,} images have an opacity (alpha) that is not used: "
            f"{abridge(alphas)}; --config.data.alpha=void makes transparent pixels "
            "void, and alpha=band makes it a band of the images"
        )
    notes += palettes.describe()
    if not faults:
        faults = judge_classes(rules, pixels)
    return Findings(faults, notes, content.hexdigest())


def map_ahead(
    pool: ThreadPoolExecutor,
    function: Callable[[_Item], _Result],
    items: Iterable[_Item],
) -> Iterator[_Result]:
    """Yields `function(item)` in order, computing at most `_AHEAD` items ahead."""
    waiting: collections.deque[Future[_Result]] = collections.deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > _AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def digest_of(root: Path, path: Path) -> bytes:
    """Returns a hash of a file's content, after its name relative to `root`."""
    return _digest(relative(root, path), path.read_bytes())


def _digest(name: str, data: bytes) -> bytes:
    return f"{name}\0".encode() + hashlib.sha256(data).digest()


def _inspect(rules: Rules, pair: Pair) -> _Found:
    found = _Found([])
    image_name = relative(rules.root, pair.image)
    label_name = relative(rules.root, pair.labels)
    image = _try(pair.image, rules.read_image, rules, found)
    labels = _try(pair.labels, pair.read_labels, rules, found)
    if labels is not None and image is not None:
        if labels.ids.shape != image.pixels.shape[:2]:
            # The label's size decides whether an image is turned.
            read = functools.partial(rules.read_image, label_hw=labels.ids.shape)
            image = read(pair.image.read_bytes())
        found.faults += _misfits(rules, image_name, label_name, image, labels)
        labels = with_void(rules, labels, image)
        alpha = image.alpha if rules.alpha == "drop" else None
        found.has_alpha = alpha is not None and bool((alpha != alpha.max()).any())
    if labels is not None:
        found.pixels = np.bincount(labels.ids.ravel()).astype(np.int64)
        found.palette = labels.palette
        if rules.class_names:
            found.faults += _stray(label_name, found.pixels, rules)
    return found


def _misfits(
    rules: Rules,
    image_name: str,
    label_name: str,
    image: DecodedImage,
    labels: DecodedLabels,
) -> list[Fault]:
    """Finds what is wrong between an image, its label and the rules."""
    faults = []
    h, w, num_bands = image.pixels.shape
    got = num_bands, str(image.pixels.dtype)
    if got != (rules.num_bands, rules.image_dtype):
        expected = _describe(rules.num_bands, rules.image_dtype)
        rule = f"must be {expected}, as {rules.first} is"
        remedy = "convert it, or remove its sample"
        faults.append(Fault(image_name, rule, remedy, _describe(*got)))
    if labels.ids.shape != (h, w):
        rule = "must have the size of its image"
        sizes = "{} x {}, but the image has {} x {} (height x width)"
        sizes = sizes.format(*labels.ids.shape, h, w)
        faults.append(Fault(label_name, rule, "resize one of them", sizes))
    if image.pixels.dtype.kind == "f":
        bad = ~np.isfinite(image.pixels).all(axis=-1)
        if rules.nodata is not None:
            bad &= ~is_nodata(image.pixels, rules.nodata)
        if bad.any():
            remedy = "replace them, or make them void with --config.data.nodata=nan"
            got_bad = f"{bad.sum():,} pixels that are NaN or infinite"
            faults.append(Fault(image_name, "must be finite", remedy, got_bad))
    return faults


def _describe(num_bands: int, dtype: str) -> str:
    if is_rgb(num_bands, dtype):
        return "RGB"
    return f"{num_bands} band{'s' * (num_bands > 1)} of {dtype}"


def _try(
    path: Path, read: Callable[[bytes], _Result], rules: Rules, found: _Found
) -> _Result | None:
    """Returns what `read` makes of a file's content.

    If that fails, adds a fault to `found` and returns None.
    """
    name = relative(rules.root, path)
    try:
        data = read_file(path, rules.max_pixels)
        found.digest += _digest(name, data)
        return read(data)
    except UnfitError as error:
        fault = error
    # Decoders raise many kinds of errors on broken files.
    except Exception as error:
        fault = damaged(error)
    found.faults.append(Fault(name, fault.rule, fault.remedy, fault.got))
    return None


def _stray(name: str, pixels: Int64[np.ndarray, " n"], rules: Rules) -> list[Fault]:
    """Finds values that are neither a class nor void, where no `LabelValues` did."""
    last = len(rules.class_names) - 1
    stray = [
        f"{value} ({pixels[value]} px)"
        for value in np.flatnonzero(pixels)
        if value > last and value != rules.ignore_label
    ]
    if not stray:
        return []
    rule = f"values must be 0..{last} or ignore_label {rules.ignore_label}"
    return [Fault(name, rule, "correct the label or the classes", ", ".join(stray))]


class _Palettes:
    """Compares the palettes of label files, where values are taken as class ids."""

    def __init__(self) -> None:
        self._colours: dict[int, tuple[int, int, int]] = {}
        self._differing: list[str] = []

    def add(self, name: str, palette: dict[int, tuple[int, int, int]] | None) -> None:
        if palette is None:
            return
        if any(self._colours.setdefault(k, rgb) != rgb for k, rgb in palette.items()):
            self._differing.append(name)

    def describe(self) -> list[str]:
        """Returns a line if palettes differ."""
        if not self._differing:
            return []
        return [
            "palettes differ: the same index has another colour in "
            f"{len(self._differing):,} label images: {abridge(self._differing)}; if "
            "colours say the class, list them in classes.txt, as in `1 road #804080`"
        ]


def judge_classes(
    rules: Rules, pixels: Mapping[str, Int64[np.ndarray, " n"]]
) -> list[Fault]:
    """Returns a fault if training labels hold void pixels, but at most one class.

    Nothing can be learned then. The usual cause is masks of 0 and 255.

    Args:
        rules: what the files must be.
        pixels: number of pixels of each label in each split.
    """
    counts, names = pixels.get("train"), rules.class_names
    if counts is None or not names or not counts[rules.ignore_label]:
        return []
    absent = [k for k in range(len(names)) if not counts[k]]
    if not absent or len(names) - len(absent) > 1:
        return []
    listed = abridge([f"{k} {names[k]!r}" for k in absent], in_order=True)
    void = counts[rules.ignore_label] / counts.sum()
    rule = (
        f"no training label holds class {listed}, while {rules.ignore_label}, the "
        f"ignore_label, is {void:.0%} of the pixels"
    )
    remedy = (
        "if the labels are masks of 0 and 255, write `1 NAME values=255` in "
        "classes.txt; otherwise correct the labels or the list of classes"
    )
    return [Fault("train", rule, remedy)]

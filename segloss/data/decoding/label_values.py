"""What the values and colours of label files mean."""

import dataclasses
import functools
from collections.abc import Mapping

import numpy as np
from jaxtyping import Integer, UInt8

from segloss.data.bands import label_dtype
from segloss.data.decoding.opening import UnfitError

MAX_CLASSES = 65_534
MAX_VALUE = 65_535  # of labels with 16 bits


@dataclasses.dataclass(frozen=True)
class LabelValues:
    """What the values and colours of label files mean.

    Attributes:
        num_classes: class ids are in `[0, num_classes)`.
        ignore_label: id of pixels that do not count.
        values: maps a grey value or palette index to a class id or `ignore_label`.
        colours: maps an RGB colour, as an integer 0xRRGGBB, to the same.
        listed_in: where values and colours are listed, for messages.
        remedy: what to do about others, for messages.
    """

    num_classes: int
    ignore_label: int
    values: Mapping[int, int]
    colours: Mapping[int, int] = dataclasses.field(default_factory=dict)
    listed_in: str = "classes.txt"
    remedy: str = "add each to its class, or to a line `void values=... #rrggbb`"

    @classmethod
    def plain(cls, num_classes: int, ignore_label: int) -> "LabelValues":
        """Values that are class ids or `ignore_label`; no colours."""
        values = {k: k for k in range(num_classes)} | {ignore_label: ignore_label}
        return cls(num_classes, ignore_label, values)

    @property
    def is_plain(self) -> bool:
        """True if every value means the class of that id."""
        return all(value == id for value, id in self.values.items())

    def of_values(
        self, values: Integer[np.ndarray, "h w"]
    ) -> Integer[np.ndarray, "h w"]:
        """Converts the values of a label image, uint8 or uint16, to ids.

        Raises:
            UnfitError: if a value means nothing; it names the values.
        """
        table, means = self._table
        if not means[values].all():
            found, pixels = np.unique(values[~means[values]], return_counts=True)
            raise self._stray([str(value) for value in found], pixels)
        return table[values]

    def of_colours(self, rgb: UInt8[np.ndarray, "h w 3"]) -> Integer[np.ndarray, "h w"]:
        """Converts the colours of a label image to ids.

        Raises:
            UnfitError: if a colour means nothing; it names the colours.
        """
        packed = pack_colours(rgb)
        known, ids = self._sorted_colours
        place = np.minimum(np.searchsorted(known, packed), len(known) - 1)
        stray = known[place] != packed
        if stray.any():
            found, pixels = np.unique(packed[stray], return_counts=True)
            raise self._stray([f"#{colour:06x}" for colour in found], pixels)
        return ids[place]

    def check_grey(self, values: Integer[np.ndarray, "h w"]) -> None:
        """Checks that grey values do not mean something else as colours.

        Editors save RGB images that hold only greys as grey.

        Raises:
            UnfitError: if all values are grey colours of the list, and one of them
                means something else as a value.
        """
        if not (self.colours and self.is_plain):
            return
        found = np.unique(values).tolist()
        as_colours = [self.colours.get(value * 0x010101) for value in found]
        differ = [
            value
            for value, id in zip(found, as_colours, strict=True)
            if self.values.get(value) != id
        ]
        if differ and None not in as_colours:
            raise UnfitError(
                "grey labels must mean the same as values and as colours",
                f"value {differ[0]}, colour #{differ[0] * 0x010101:06x}",
                "save them as RGB, or give each class its values, as in `values=255`",
            )

    @functools.cached_property
    def _table(self) -> tuple[np.ndarray, np.ndarray]:
        dtype = label_dtype(self.num_classes, self.ignore_label)
        table, means = np.zeros(65_536, dtype), np.zeros(65_536, bool)
        for value, id in self.values.items():
            table[value], means[value] = id, True
        return table, means

    @functools.cached_property
    def _sorted_colours(self) -> tuple[np.ndarray, np.ndarray]:
        dtype = label_dtype(self.num_classes, self.ignore_label)
        known = np.array(sorted(self.colours), np.uint32)
        return known, np.array([self.colours[int(k)] for k in known], dtype)

    def _stray(self, found: list[str], pixels: np.ndarray) -> UnfitError:
        most = np.argsort(-pixels, kind="stable")[:5]
        got = ", ".join(f"{found[i]} ({pixels[i]:,} px)" for i in sorted(most))
        if len(found) > len(most):
            got += f" and {len(found) - len(most):,} more"
        if self.is_plain and self.ignore_label in self.values and not self.colours:
            last = self.num_classes - 1
            return UnfitError(
                f"values must be 0..{last} or ignore_label {self.ignore_label}",
                got,
                "correct the label, or say in classes.txt what they mean",
            )
        return UnfitError(
            f"values and colours must be those of {self.listed_in}", got, self.remedy
        )


def pack_colours(rgb: UInt8[np.ndarray, "*hw 3"]) -> Integer[np.ndarray, "*hw"]:
    """Packs RGB colours to integers 0xRRGGBB."""
    r, g, b = np.moveaxis(rgb.astype(np.uint32), -1, 0)
    return (r << 16) | (g << 8) | b


def as_values(values: np.ndarray) -> Integer[np.ndarray, "h w"]:
    """Checks that numbers can be labels, and returns them as uint8 or uint16.

    Raises:
        UnfitError: if they are not integers `[h, w]` in 0..65535.
    """
    if values.ndim != 2 or values.dtype.kind not in "bui":
        raise UnfitError(
            "labels must be integers [height, width]",
            f"{values.dtype} {list(values.shape)}",
            "save one class id per pixel",
        )
    if values.dtype == bool:
        return values.astype(np.uint8)
    if values.dtype in (np.uint8, np.uint16):
        return values.astype(values.dtype.newbyteorder("="), copy=False)
    if values.size and not 0 <= values.min() <= values.max() <= MAX_VALUE:
        got = f"{values.min()}..{values.max()}"
        raise UnfitError("labels must be in 0..65535", got, "convert them")
    return values.astype(np.uint16)

"""Draws windows: the parts of images that random scaling and cropping need.

Windows are drawn on the host, so that a batch holds no more of an image than its crop
needs, and so that a crop keeps the classes for which its image was sampled. Images are
scaled later, on the device; the host computes exactly which labels the device picks.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32, UInt

from segloss.data.loading.window import (
    SCALE_ONE,
    Window,
    in_units,
    interpolation_margin,
    nearest_source,
    scaled_size,
)
from segloss.data.loading.window_grid import count_in_grid, grid_positions, most_kept
from segloss.errors import SeglossError

# Windows to draw at random, first anywhere and then around a pixel of a class, before
# all windows of a grid are examined.
_TRIES = 10
# Changes whenever `keepable` returns other counts, as these are stored.
_KEEPABLE = 2
# Number of scales in the grid if `scale_range` is continuous.
_GRID_SCALES = 5


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Windows:
    """Draws a random scale and crop of each image, and the window that it needs.

    The window is the part of the unscaled image that the crop shows, with a margin for
    interpolation. Draws depend only on the seed, the batch, the row and the sample.

    A scale is drawn, then one of the possible positions of the crop, with equal
    probability. A scaled image that is smaller than the crop is placed at random in it.

    With `keep_classes`, a crop must hold at least `min_pixels` pixels, counted after
    scaling, of each owed class. These are the classes for which the sampler chose the
    sample; see `EpochSampler.owed`. Crops are drawn in three stages until one does:

    1. Ten crops as above. If one of them is accepted, its distribution is that of all
       crops, restricted to those that hold the owed classes.
    2. Ten crops at a random scale and position around a random pixel of the rarest
       owed class. Crops with more pixels of that class are more likely.
    3. A crop from a grid of scales and positions, with equal probability for each
       scale and then for each position that holds the owed classes. If there is none,
       owed classes are given up, the most frequent first.

    Attributes:
        crop_hw: height and width of the crop, in pixels after scaling.
        scale_range: smallest and largest scale factor; factors are drawn uniformly.
        scales: scale factors to choose from with equal probability; None uses
            `scale_range`. Factors are rounded to multiples of 1 / 4096.
        keep_classes: True makes crops keep the owed classes.
        min_pixels: number of pixels that must be kept of a class, at least 1.
        rare_first: all class ids in the order of priority in which they are kept; None
            means 0, 1, ...
        together: False makes `keepable` find each class that some crop holds, for
            samplers that choose a sample for one class; True only those that one crop
            holds together.
        seed: seed of the draws, at least 0.

    Raises:
        ValueError: at construction, if an attribute is out of range.

    >>> import numpy as np
    >>> windows = Windows(crop_hw=(4, 4), scales=(0.5,), keep_classes=True)
    >>> labels = np.zeros((64, 64), np.uint8)
    >>> labels[40:44, 20:24] = 1  # 2 x 2 pixels at scale 0.5
    >>> owed = np.array([False, True])
    >>> window, tries = windows.draw(labels, owed, batch=0, row=0)
    >>> int(windows.crop(labels, window).sum()) >= 1
    True
    """

    crop_hw: tuple[int, int]
    # Checked below, since they come from a config as they are.
    scale_range: Any = (0.5, 1.5)
    scales: Any = None
    keep_classes: Any = False
    min_pixels: int = 1
    rare_first: tuple[int, ...] | None = None
    together: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        ends = self.scale_range
        if not (_are_scales(ends) and len(ends) == 2 and ends[0] <= ends[1]):
            raise SeglossError(
                f"augment: scale_range must be 0 < low <= high, got {ends}."
            )
        if self.scales is not None and not (_are_scales(self.scales) and self.scales):
            raise SeglossError(
                "augment: scales must be one or more numbers > 0, or None, "
                f"got {self.scales}."
            )
        if not isinstance(self.keep_classes, bool):
            raise SeglossError(
                f"augment: keep_classes must be True or False, got {self.keep_classes}."
            )
        if self.min_pixels < 1:
            raise SeglossError(
                f"Windows: min_pixels must be >= 1, got {self.min_pixels}."
            )
        order = self.rare_first or ()
        if sorted(order) != list(range(len(order))):
            raise SeglossError(
                f"Windows: rare_first must have every class once, got {order}."
            )
        h, w = self.crop_hw
        if self.keep_classes and self.min_pixels > h * w:
            raise SeglossError(
                f"augment: keep_classes needs min_pixels <= {h * w}, the pixels of a "
                f"crop of {h}x{w}, got {self.min_pixels}; lower min_pixels or use "
                "keep_classes=False."
            )

    def canvas_hw(self, max_hw: tuple[int, int]) -> tuple[int, int]:
        """Returns a height and width that hold every window of images up to `max_hw`.

        >>> Windows(crop_hw=(4, 8), scales=(0.5, 1.0)).canvas_hw((1_000, 15))
        (12, 15)
        """
        scale = min(self._grid_scales)
        # From the first pixel of the crop to the last, and the interpolation's margin.
        sizes = [
            (2 * n - 2) * (SCALE_ONE // 2) // scale
            + 2
            + 2 * interpolation_margin(scale)
            for n in self.crop_hw
        ]
        return min(sizes[0], max_hw[0]), min(sizes[1], max_hw[1])

    def draw(
        self,
        labels: UInt[np.ndarray, "h w"],
        owed: Bool[np.ndarray, " c"],
        *,
        batch: int,
        row: int,
    ) -> tuple[Window, int]:
        """Draws the scale, crop and window of a sample.

        Args:
            labels: class ids of the whole image; labels from `len(owed)` on are void.
            owed: True for the classes that the crop must keep; ignored unless
                `keep_classes` is True.
            batch: index of the batch.
            row: row of the sample in the batch of all processes.

        Returns:
            The window, and the number of windows that were drawn to find it.
        """
        # The samplers' keys are `[seed, epoch]`, which NumPy fills up with zeros.
        rng = np.random.default_rng([self.seed, batch, row, 1])
        if not (self.keep_classes and owed.any()):
            return self._anywhere(labels.shape, rng), 1
        chosen = [c for c in self._order(len(owed)) if owed[c]]
        tries = 0
        for window in self._candidates(labels, chosen[0], rng):
            tries += 1
            if self._keeps(labels, window, chosen):
                return window, tries
        return self._from_grid(labels, chosen, rng), tries + 1

    def crop(
        self, labels: UInt[np.ndarray, "h w"], window: Window
    ) -> UInt[np.ndarray, "_ _"]:
        """Returns the scaled labels in the crop of `window`, without padding.

        `labels` are those of the whole image.
        """
        lines = []
        for size, crop, offset in zip(
            labels.shape, self.crop_hw, window.offset, strict=True
        ):
            line = nearest_source(np.arange(offset, offset + crop), window.scale)
            lines.append(line[(line >= 0) & (line < size)])
        return labels[lines[0][:, None], lines[1]]

    def keepable(
        self, labels: UInt[np.ndarray, "h w"], num_classes: int, ignore_label: int
    ) -> Int32[np.ndarray, " c"]:
        """Finds classes of an image that one crop can hold together.

        Examines crops on a grid. The first class of `rare_first` is chosen first, then
        the next one that fits into a crop with it, and so on. Larger scales are tried
        only if a class is too small at the smallest one; the scale with the most
        classes is used, and among equals the one with the rarest classes.

        Args:
            labels: class ids of the whole image.
            num_classes: class ids are in `[0, num_classes)`.
            ignore_label: label of pixels that do not count.

        Returns:
            The number of pixels of each chosen class, after scaling, in a crop that
            holds all of them; 0 for other classes. `draw` keeps every subset of the
            chosen classes. With `together=False`, the number of pixels of each class
            in the crop with the most of them; `draw` keeps each of the classes alone.
        """
        best, best_held = np.zeros(num_classes, np.int32), (0, [])
        order = [c for c in self._order(num_classes) if c != ignore_label]
        present = {*order} & {*np.unique(labels).tolist()}
        for scale in self._grid_scales:
            counts = count_in_grid(labels, self.crop_hw, scale, num_classes)
            enough = counts >= self.min_pixels
            kept, alive = most_kept(enough, order)
            if not self.together:
                alone = [c for c in order if enough[..., c].any()]
                best[alone] = np.maximum(best, counts.max(axis=(0, 1)))[alone]
            elif (held := (len(kept), [c in kept for c in order])) > best_held:
                best_held = held
                best[:] = 0
                best[kept] = counts[tuple(np.argwhere(alive)[0])][kept]
            # A larger scale shows less of the image; it helps only small regions.
            if present <= {*np.flatnonzero(enough.any(axis=(0, 1))).tolist()}:
                break
        return best

    @property
    def digest(self) -> str:
        """Hash of the attributes that affect what `keepable` returns; 16 hex digits."""
        order = None if self.rare_first is None else list(self.rare_first)
        chosen = [self._grid_scales, self.min_pixels, order, self.together]
        identity = [_KEEPABLE, self.crop_hw, *chosen]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]

    def __str__(self) -> str:
        scales = self.scales or self.scale_range
        low, high = min(scales), max(scales)
        size = "x".join(map(str, self.crop_hw))
        return f"crops of {size} at scales {low:g} to {high:g}"

    @functools.cached_property
    def _grid_scales(self) -> list[int]:
        scales = self.scales
        if scales is None:
            scales = np.linspace(*self.scale_range, _GRID_SCALES)
        return sorted({in_units(scale) for scale in scales})

    def _order(self, num_classes: int) -> Sequence[int]:
        if self.rare_first is None:
            return range(num_classes)
        if len(self.rare_first) != num_classes:
            raise SeglossError(
                f"Windows: rare_first must have {num_classes} classes, "
                f"got {len(self.rare_first)}."
            )
        return self.rare_first

    def _candidates(
        self, labels: UInt[np.ndarray, "h w"], rarest: int, rng: np.random.Generator
    ) -> Iterator[Window]:
        for _ in range(_TRIES):
            yield self._anywhere(labels.shape, rng)
        pixels = np.flatnonzero(labels == rarest)
        for _ in range(_TRIES if len(pixels) else 0):
            pixel = divmod(int(rng.choice(pixels)), labels.shape[1])
            yield self._around(pixel, labels.shape, rng)

    def _draw_scale(self, rng: np.random.Generator) -> int:
        if self.scales is not None:
            return in_units(self.scales[rng.integers(len(self.scales))])
        return in_units(rng.uniform(*self.scale_range))

    def _anywhere(self, hw: tuple[int, ...], rng: np.random.Generator) -> Window:
        scale = self._draw_scale(rng)
        offset = []
        for size, crop in zip(hw, self.crop_hw, strict=True):
            first, last = _offsets(size, crop, scale)
            offset.append(int(rng.integers(first, last + 1)))
        return self._at(scale, offset, hw)

    def _around(
        self, pixel: tuple[int, int], hw: tuple[int, ...], rng: np.random.Generator
    ) -> Window:
        scale = self._draw_scale(rng)
        offset = []
        for place, size, crop in zip(pixel, hw, self.crop_hw, strict=True):
            first, last = _offsets(size, crop, scale)
            scaled = place * scale // SCALE_ONE
            first = min(max(first, scaled - crop + 1), last)
            last = max(min(last, scaled), first)
            offset.append(int(rng.integers(first, last + 1)))
        return self._at(scale, offset, hw)

    def _at(self, scale: int, offset: list[int], hw: tuple[int, ...]) -> Window:
        start, window_hw = [], []
        for size, crop, first in zip(hw, self.crop_hw, offset, strict=True):
            top = nearest_source(first, scale) - interpolation_margin(scale)
            end = (
                nearest_source(first + crop - 1, scale)
                + interpolation_margin(scale)
                + 1
            )
            top = min(max(top, 0), size - 1)
            start.append(top)
            window_hw.append(max(min(end, size), top + 1) - top)
        return Window(scale, tuple(offset), tuple(start), tuple(window_hw))

    def _keeps(
        self, labels: UInt[np.ndarray, "h w"], window: Window, owed: list[int]
    ) -> bool:
        # Imported here, since importing numba takes most of a second.
        from segloss.data.loading import kernels

        place = self.crop_hw, window.scale, window.offset
        return kernels.holds(labels, *place, np.array(owed), self.min_pixels)

    def _from_grid(
        self,
        labels: UInt[np.ndarray, "h w"],
        owed: list[int],
        rng: np.random.Generator,
    ) -> Window:
        best: list[bool] = []
        for each in rng.permutation(self._grid_scales).tolist():
            counts = count_in_grid(labels, self.crop_hw, each, 1 + max(owed))
            enough = counts >= self.min_pixels
            kept, alive = most_kept(enough, owed)
            held = [c in kept for c in owed]
            if held > best:  # the first class that only one of them holds decides
                best, scale, places = held, each, np.argwhere(alive)
            if all(held):
                break
        place = places[rng.integers(len(places))]
        offset = [
            int(grid_positions(size, crop, scale)[i])
            for size, crop, i in zip(labels.shape, self.crop_hw, place, strict=True)
        ]
        return self._at(scale, offset, labels.shape)


def _are_scales(values: Any) -> bool:
    """Whether `values` is a tuple or list of finite numbers greater than 0."""
    return isinstance(values, tuple | list) and all(
        isinstance(x, int | float | np.number) and 0 < x < np.inf for x in values
    )


def _offsets(size: int, crop: int, scale: int) -> tuple[int, int]:
    """Returns the first and the last possible position of a crop along one side.

    `size` is the side of the unscaled image; `scale` is in units of 1 / `SCALE_ONE`.
    """
    slack = scaled_size(size, scale) - crop
    return min(0, slack), max(0, slack)

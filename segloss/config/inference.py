"""The fields of a config that control how images are predicted."""

import dataclasses
import math
from typing import Any

from segloss.errors import SeglossError

# An image of Cityscapes: 1024x2048 pixels.
MAX_PIXELS = 2**21
# XLA ends the process at an array with more elements than 64 bits can count.
LARGEST_SIDE = 2**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inference:
    """How images are predicted; the attributes are fields of `config.evaluate`.

    With several `scales`, or `flip`, the softmax probabilities of all predictions are
    averaged at the size of the image. The public code of DeepLabV3
    (`predict_labels_multi_scale`) and mmsegmentation (`SegTTAModel`) do the same. Where
    windows overlap, their probabilities are averaged too, like in the public code of
    PSPNet (hszhao/semseg); mmsegmentation (`slide_inference`) averages the logits.

    Attributes:
        scales: factors of the image size; resizing is bilinear without antialiasing.
        flip: True also predicts the image mirrored left to right at each scale.
        window_hw: height and width in pixels of sliding windows, used if the scaled
            image is larger; the last window ends at the border. None predicts the whole
            image at once.
        window_stride: distance between windows as a share of their size, in (0, 1].
            PSPNet and mmsegmentation use 2 / 3 (341 pixels for windows of 512).
        size_multiple: both sides are padded to a multiple of this number of pixels.
        max_pixels: images with more pixels, after padding at scale 1, are cut into
            overlapping tiles to limit memory. Each tile is predicted as an image, with
            all of the settings above, and each pixel takes the prediction of one tile.
            See `segloss.trained.tiles.plan_tiles`.

    Raises:
        ValueError: at construction, if a field is out of range.
    """

    scales: Any = (1.0,)
    flip: Any = False
    window_hw: Any = None
    window_stride: Any = 2 / 3
    size_multiple: Any = 1
    max_pixels: Any = MAX_PIXELS

    def __post_init__(self):
        if not _are_numbers(self.scales) or not self.scales or min(self.scales) <= 0:
            _refuse("scales", "numbers > 0 such as (0.75, 1.0, 1.25)", self.scales)
        if not isinstance(self.flip, bool):
            _refuse("flip", "True or False", self.flip)
        if self.window_hw is not None and not is_size(self.window_hw):
            _refuse("window_hw", "None, or height and width in pixels", self.window_hw)
        if not _are_numbers((self.window_stride,)) or not 0 < self.window_stride <= 1:
            _refuse("window_stride", "in (0, 1]", self.window_stride)
        for field in ("size_multiple", "max_pixels"):
            value = getattr(self, field)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                _refuse(field, "an integer >= 1", value)

    @property
    def name(self) -> str:
        """The fields that differ from the defaults, as part of a file name.

        For example "scales_0.5_1_flip"; empty if none differs. `size_multiple` is left
        out.
        """
        looks = [f"{scale:g}" for scale in self.scales]
        parts = [f"scales_{'_'.join(looks)}"] if looks != ["1"] else []
        parts += ["flip"] if self.flip else []
        if self.window_hw is not None:
            windows = "x".join(map(str, self.window_hw))
            parts.append(f"windows_{windows}_{self.window_stride:.3g}")
        if self.max_pixels != MAX_PIXELS:
            parts.append(f"max_pixels_{self.max_pixels}")
        return "_".join(parts)

    @property
    def in_one_look(self) -> "Inference":
        """A faster copy of these settings: only the scale nearest to 1, and no flip."""
        nearest = min(self.scales, key=lambda scale: abs(math.log(scale)))
        return dataclasses.replace(self, scales=(nearest,), flip=False)


def is_size(hw: Any) -> bool:
    """Whether `hw` is a tuple of two integers in `[1, LARGEST_SIDE]`."""
    return (
        isinstance(hw, tuple)
        and len(hw) == 2
        and all(isinstance(n, int) and 0 < n <= LARGEST_SIDE for n in hw)
    )


def _are_numbers(values: Any) -> bool:
    return isinstance(values, tuple) and all(
        isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)
        for v in values
    )


def _refuse(field: str, rule: str, value: Any) -> None:
    raise SeglossError(f"config.evaluate.{field} must be {rule}, got {value!r}.")

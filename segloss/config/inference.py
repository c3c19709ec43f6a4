"""The part of a config that controls how images are predicted."""

import dataclasses
import math
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inference:
    """How images are predicted; the attributes are fields of `config.evaluate`.

    With several `scales` or `flip`, the softmax probabilities at the size of the image
    are averaged, as in the public code of DeepLabV3 (`predict_labels_multi_scale`) and
    in mmsegmentation (`SegTTAModel`). Where windows overlap, their probabilities are
    averaged, as in the public code of PSPNet (hszhao/semseg); mmsegmentation
    (`slide_inference`) averages the logits.

    Attributes:
        scales: factors of the image size; resizing is bilinear without antialiasing.
        flip: whether to also predict the mirrored image at each scale.
        window_hw: height and width in pixels of the windows for images that are larger
            after scaling; the last window is aligned with the border. None predicts
            the whole image at once.
        window_stride: distance between windows as a share of their size, in (0, 1].
            PSPNet and mmsegmentation use 2 / 3 (341 pixels for windows of 512).
        size_multiple: both sides are padded to a multiple of this number of pixels.

    Raises:
        ValueError: at construction, if a field is out of range.
    """

    scales: Any = (1.0,)
    flip: Any = False
    window_hw: Any = None
    window_stride: Any = 2 / 3
    size_multiple: Any = 1

    def __post_init__(self):
        if not _are_numbers(self.scales) or not self.scales or min(self.scales) <= 0:
            _refuse("scales", "numbers > 0 such as (0.75, 1.0, 1.25)", self.scales)
        if not isinstance(self.flip, bool):
            _refuse("flip", "True or False", self.flip)
        if self.window_hw is not None and not is_size(self.window_hw):
            _refuse("window_hw", "None, or height and width in pixels", self.window_hw)
        if not _are_numbers((self.window_stride,)) or not 0 < self.window_stride <= 1:
            _refuse("window_stride", "in (0, 1]", self.window_stride)
        if not isinstance(self.size_multiple, int) or self.size_multiple < 1:
            _refuse("size_multiple", "an integer >= 1", self.size_multiple)

    @property
    def name(self) -> str:
        """The scales, flip and windows as part of a file name; empty by default."""
        looks = [f"{scale:g}" for scale in self.scales]
        parts = [f"scales_{'_'.join(looks)}"] if looks != ["1"] else []
        parts += ["flip"] if self.flip else []
        if self.window_hw is not None:
            windows = "x".join(map(str, self.window_hw))
            parts.append(f"windows_{windows}_{self.window_stride:.3g}")
        return "_".join(parts)

    @property
    def in_one_look(self) -> "Inference":
        """The same, but faster: only the scale nearest to 1, and no flip.

        If all scales are reduced, such as `(0.5,)`, images are still predicted reduced.
        """
        nearest = min(self.scales, key=lambda scale: abs(math.log(scale)))
        return dataclasses.replace(self, scales=(nearest,), flip=False)


def is_size(hw: Any) -> bool:
    """Whether `hw` is a tuple of two positive integers."""
    return (
        isinstance(hw, tuple)
        and len(hw) == 2
        and all(isinstance(n, int) and n > 0 for n in hw)
    )


def _are_numbers(values: Any) -> bool:
    return isinstance(values, tuple) and all(
        isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)
        for v in values
    )


def _refuse(field: str, rule: str, value: Any) -> None:
    raise ValueError(f"config.evaluate.{field} must be {rule}, got {value!r}.")

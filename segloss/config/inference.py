"""The part of a config that says how a trained model looks at images."""

import dataclasses
import math
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inference:
    """How images are predicted: fields of `config.evaluate`.

    An image that is seen at several `scales`, or mirrored too, gets the mean of the
    softmax probabilities at its own size, as in the public code of DeepLabV3
    (`predict_labels_multi_scale`) and in mmsegmentation (`SegTTAModel`). Where windows
    overlap it gets the mean of their probabilities, as in the public code of PSPNet
    (hszhao/semseg); mmsegmentation (`slide_inference`) takes the mean of the logits.

    Attributes:
        scales: factors of the image's size, resized bilinearly without antialiasing.
        flip: sees each scale of the mirrored image, too.
        window_hw: an image that is larger at a scale is seen in windows of so many
            pixels, the last of them aligned with the border; None is the whole image.
        window_stride: share of the window by which the next one lies further, in
            (0, 1]; 2 / 3 in PSPNet and mmsegmentation (341 pixels for windows of 512).
        size_multiple: the sides are padded to a multiple of so many pixels.

    Raises:
        ValueError: at construction, if a field is out of its range.
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
        """Tells apart what is predicted in other ways; empty where it is plain."""
        looks = [f"{scale:g}" for scale in self.scales]
        parts = [f"scales_{'_'.join(looks)}"] if looks != ["1"] else []
        parts += ["flip"] if self.flip else []
        if self.window_hw is not None:
            windows = "x".join(map(str, self.window_hw))
            parts.append(f"windows_{windows}_{self.window_stride:.3g}")
        return "_".join(parts)

    @property
    def in_one_look(self) -> "Inference":
        """The same at the scale nearest 1 alone, which costs a part of the time.

        A network that sees reduced images alone is so seen by them here, too.
        """
        nearest = min(self.scales, key=lambda scale: abs(math.log(scale)))
        return dataclasses.replace(self, scales=(nearest,), flip=False)


def is_size(hw: Any) -> bool:
    """Whether it is two positive integers."""
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

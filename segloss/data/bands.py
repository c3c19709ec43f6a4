"""The bands of a dataset's images: their number, type, mean and deviation."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float64, Shaped, UInt8

from segloss.data.colours import MEAN_RGB, STDDEV_RGB
from segloss.errors import SeglossError

DTYPES = ("uint8", "uint16", "int16", "float32")
_STRETCH = 2  # pictures show the mean plus and minus this number of deviations
_ROWS = 64  # rows of an image that are added up at a time


def is_rgb(num_bands: int, dtype: str) -> bool:
    """Whether images are RGB pictures, which are stored as JPEG or PNG."""
    return (num_bands, dtype) == (3, "uint8")


def check_bands(num_bands: int, dtype: str) -> None:
    """Checks the number and the type of bands.

    Raises:
        ValueError: if there are less than one, or the type is not one of `DTYPES`.
    """
    if num_bands < 1 or dtype not in DTYPES:
        raise SeglossError(
            f"bands: images must have 1 or more bands of {', '.join(DTYPES)}, "
            f"got {num_bands} of {dtype}."
        )


@dataclasses.dataclass(frozen=True)
class Bands:
    """The bands (channels) of images, and how they are normalised.

    Hashable, so it can be a static argument of a compiled function.

    Attributes:
        num_bands: number of bands.
        dtype: type of the stored values, one of `DTYPES`.
        mean: mean of each band over the training images, in units of the stored values.
        deviation: standard deviation of each band in the same units, greater than 0.

    Raises:
        ValueError: at construction, if an attribute breaks its rule.

    >>> from segloss.data import RGB
    >>> Bands.from_json(RGB.to_json()) == RGB
    True
    """

    num_bands: int = 3
    dtype: str = "uint8"
    mean: tuple[float, ...] = tuple(255 * x for x in MEAN_RGB)
    deviation: tuple[float, ...] = tuple(255 * x for x in STDDEV_RGB)

    def __post_init__(self) -> None:
        check_bands(self.num_bands, self.dtype)
        if not len(self.mean) == len(self.deviation) == self.num_bands:
            raise SeglossError(
                f"Bands: mean and deviation must have {self.num_bands} values, got "
                f"{len(self.mean)} and {len(self.deviation)}."
            )
        if not (np.isfinite(self.mean).all() and np.all(np.array(self.deviation) > 0)):
            raise SeglossError(
                "Bands: means must be finite and deviations > 0, got "
                f"{self.mean} and {self.deviation}."
            )

    @property
    def is_rgb(self) -> bool:
        """Whether these are the three bands of an RGB picture."""
        return is_rgb(self.num_bands, self.dtype)

    @property
    def unit(self) -> int:
        """Divisor of the stored values before augmentation: 255 for RGB, else 1."""
        return 255 if self.is_rgb else 1

    @property
    def pad(self) -> Shaped[np.ndarray, " n"]:
        """The value of padding: the mean, rounded to the type of the stored values."""
        mean = np.array(self.mean)
        if np.dtype(self.dtype).kind != "f":
            mean = np.rint(mean)
        return mean.astype(self.dtype)

    def __str__(self) -> str:
        if self.is_rgb:
            return "RGB"
        return f"{self.num_bands} band{'s' * (self.num_bands > 1)} of {self.dtype}"

    def are_like(self, other: "Bands") -> bool:
        """Whether number and type of the bands are those of `other`."""
        return (self.num_bands, self.dtype) == (other.num_bands, other.dtype)

    def check_image(self, image: Shaped[np.ndarray, "..."]) -> None:
        """Checks that an array is an image `[h, w, num_bands]` of the stored type.

        Raises:
            ValueError: if it has another number of bands or another type.
        """
        fits = image.ndim == 3 and image.shape[2] == self.num_bands
        if not fits or image.dtype != self.dtype:
            raise SeglossError(
                f"the image must be {self} like the training images, got {image.dtype} "
                f"{list(image.shape)} (height, width, bands); choose an image of that "
                "kind, or convert it."
            )

    def to_json(self) -> dict[str, Any]:
        """Returns the attributes as values that can be written as JSON."""
        return dataclasses.asdict(self) | {
            "mean": list(self.mean),
            "deviation": list(self.deviation),
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Bands":
        """Makes the bands whose `to_json` returned `stored`."""
        return cls(
            num_bands=int(stored["num_bands"]),
            dtype=stored["dtype"],
            mean=tuple(map(float, stored["mean"])),
            deviation=tuple(map(float, stored["deviation"])),
        )


RGB = Bands()


def label_dtype(num_classes: int, ignore_label: int) -> str:
    """Returns the type of stored labels: "uint8", or "uint16" if that cannot hold them.

    >>> label_dtype(150, 255), label_dtype(300, 65535), label_dtype(2, 1000)
    ('uint8', 'uint16', 'uint16')
    """
    return "uint16" if num_classes > 255 or ignore_label > 255 else "uint8"


def class_dtype(num_classes: int) -> str:
    """Returns the type of predicted class ids: "uint8", or "uint16" if they need it.

    >>> class_dtype(256), class_dtype(257)
    ('uint8', 'uint16')
    """
    return "uint16" if num_classes > 256 else "uint8"


def to_rgb(
    image: Shaped[np.ndarray, "h w n"], bands: Bands
) -> UInt8[np.ndarray, "h w 3"]:
    """Makes a picture of an image: its first three bands, or grey of the first.

    Each band is stretched linearly: its mean minus two deviations becomes 0, its mean
    plus two deviations 255. RGB images are returned unchanged.

    >>> import numpy as np
    >>> from segloss.data import Bands
    >>> bands = Bands(1, "float32", mean=(10.0,), deviation=(2.0,))
    >>> to_rgb(np.array([[[6.0], [10.0], [99.0]]], np.float32), bands)[0, :, 0].tolist()
    [0, 128, 255]
    """
    if bands.is_rgb:
        return image
    shown = slice(0, 3 if bands.num_bands >= 3 else 1)
    mean, deviation = (
        np.array(values[shown]) for values in (bands.mean, bands.deviation)
    )
    low, width = mean - _STRETCH * deviation, 2 * _STRETCH * deviation
    share = np.nan_to_num((image[..., shown] - low) / width)
    pixels = np.rint(255 * np.clip(share, 0, 1)).astype(np.uint8)
    return np.broadcast_to(pixels, (*image.shape[:2], 3)).copy()


@dataclasses.dataclass(frozen=True, eq=False)
class BandMoments:
    """Count, mean and sum of squared differences from the mean of each band.

    Values that are not finite do not count. Parts are merged as in Chan et al. 1983
    (doi:10.1080/00031305.1983.10483115), which loses no digits where the mean is large
    and the deviation small.

    >>> import numpy as np
    >>> image = np.array([[[1], [5]]], np.uint16)
    >>> bands = BandMoments.empty(1).add(image).add(image + 2).to_bands("uint16")
    >>> bands.mean, bands.deviation == (5**0.5,)
    ((4.0,), True)
    """

    count: Float64[np.ndarray, " n"]
    mean: Float64[np.ndarray, " n"]
    squares: Float64[np.ndarray, " n"]

    @classmethod
    def empty(cls, num_bands: int) -> "BandMoments":
        """Returns the moments of no image."""
        return cls(*np.zeros((3, num_bands)))

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "BandMoments":
        """Makes the moments whose `to_json` returned `stored`."""
        return cls(**{name: np.array(values) for name, values in stored.items()})

    def to_json(self) -> dict[str, list[float]]:
        """Returns the attributes as values that can be written as JSON."""
        return {name: x.tolist() for name, x in dataclasses.asdict(self).items()}

    def add(self, image: Shaped[np.ndarray, "h w n"]) -> "BandMoments":
        """Returns these moments together with those of an image."""
        moments = self
        for start in range(0, len(image), _ROWS):
            values = image[start : start + _ROWS].astype(np.float64)
            finite = np.isfinite(values)
            count = finite.sum(axis=(0, 1)).astype(np.float64)
            total = np.where(finite, values, 0).sum(axis=(0, 1))
            mean = total / np.maximum(count, 1)
            squares = np.where(finite, (values - mean) ** 2, 0).sum(axis=(0, 1))
            moments = moments.merge(BandMoments(count, mean, squares))
        return moments

    def merge(self, other: "BandMoments") -> "BandMoments":
        """Returns the moments of all values that these and the others count."""
        count = self.count + other.count
        share = other.count / np.maximum(count, 1)
        apart = other.mean - self.mean
        return BandMoments(
            count,
            self.mean + share * apart,
            self.squares + other.squares + apart**2 * self.count * share,
        )

    def to_bands(self, dtype: str) -> Bands:
        """Returns the bands with these means and deviations.

        The deviation of a constant band is 1. So is one that is less than the rounding
        of float32 numbers of that size, which dividing by it would enlarge to noise.
        """
        deviation = np.sqrt(self.squares / np.maximum(self.count, 1))
        rounding = np.finfo(np.float32).eps * np.abs(self.mean)
        deviation[deviation <= rounding] = 1
        mean, deviation = self.mean.tolist(), deviation.tolist()
        return Bands(len(mean), dtype, tuple(mean), tuple(deviation))

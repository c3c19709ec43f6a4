"""How the files of a dataset are read, and what they must be."""

import contextlib
import dataclasses
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from segloss.data.bands import label_dtype
from segloss.data.datasets.pairs import Pair, relative
from segloss.data.decoding.images import DecodedImage, read_image
from segloss.data.decoding.labels import DecodedLabels
from segloss.data.decoding.opening import MAX_IMAGE_PIXELS, read_file
from segloss.errors import SeglossError

# Images that are tried for one that can be read.
_TRIED = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
    """What the files of a dataset must be, and how images are read.

    Attributes:
        root: folder of the dataset.
        class_names: names of the class ids; empty if they are not known.
        ignore_label: label of pixels that do not count.
        num_bands: number of bands of each image.
        image_dtype: type of the images.
        alpha: an element of `ALPHA`: what happens to the opacity of images.
        nodata: pixels with this value in all bands are void; None means none.
        max_pixels: largest number of pixels of an image.
        first: name of the image whose bands the others must have.
    """

    root: Path
    class_names: tuple[str, ...]
    ignore_label: int
    num_bands: int = 3
    image_dtype: str = "uint8"
    alpha: str = "drop"
    nodata: float | None = None
    max_pixels: int = MAX_IMAGE_PIXELS
    first: str = "every image"

    @classmethod
    def of_first(cls, pairs: Iterable[Pair], **fields: Any) -> "Rules":
        """Makes rules with the bands of the first image that can be read, or RGB."""
        rules = cls(**fields)
        for pair in itertools.islice(pairs, _TRIED):
            # A file that cannot be read is reported with all others.
            with contextlib.suppress(Exception):
                pixels = rules.read_image(
                    read_file(pair.image, rules.max_pixels)
                ).pixels
                return dataclasses.replace(
                    rules,
                    num_bands=pixels.shape[-1],
                    image_dtype=str(pixels.dtype),
                    first=relative(rules.root, pair.image),
                )
        return rules

    def read_image(
        self, data: bytes, label_hw: tuple[int, int] | None = None
    ) -> DecodedImage:
        """Decodes an image; `label_hw` is the size of its label, if it is known."""
        reading = dict(alpha=self.alpha, max_pixels=self.max_pixels)
        return read_image(data, label_hw, **reading)


def read_pair(
    rules: Rules, pair: Pair, labels: bytes, image: bytes
) -> tuple[DecodedLabels, DecodedImage]:
    """Decodes the files of a pair; void pixels of the image become void labels.

    Args:
        rules: how images are read.
        pair: the pair, which reads its labels.
        labels: content of the label file.
        image: content of the image file.

    Raises:
        UnfitError: if a file cannot be used.
    """
    decoded = pair.read_labels(labels)
    picture = rules.read_image(image, decoded.ids.shape)
    decoded = with_void(rules, decoded, picture)
    if rules.nodata is None:
        return decoded, picture
    missing = is_nodata(picture.pixels, rules.nodata)
    pixels = fill_nodata(picture.pixels, rules.nodata)
    picture = picture._replace(pixels=pixels, unchanged=False, nodata=missing)
    return decoded, picture


def with_void(
    rules: Rules, labels: DecodedLabels, image: DecodedImage
) -> DecodedLabels:
    """Makes pixels void that are transparent, or have no data."""
    void = np.zeros((), bool)
    if rules.alpha == "void" and image.alpha is not None:
        void = image.alpha == 0
    if rules.nodata is not None:
        void = void | is_nodata(image.pixels, rules.nodata)
    if not void.any() or void.shape != labels.ids.shape:
        return labels
    dtype = label_dtype(len(rules.class_names), rules.ignore_label)
    ids = np.where(void, rules.ignore_label, labels.ids).astype(dtype)
    return labels._replace(ids=ids, unchanged=False)


def parse_nodata(nodata: float | str | None) -> float | None:
    """Converts the field `nodata` of a config, where "nan" stands for NaN.

    Raises:
        SeglossError: if it is neither a number nor "nan".
    """
    try:
        return None if nodata is None else float(nodata)
    except ValueError:
        raise SeglossError(
            f"config.data.nodata must be a number or 'nan', got {nodata!r}."
        ) from None


def is_nodata(pixels: np.ndarray, nodata: float) -> Bool[np.ndarray, "h w"]:
    """True where all bands of `[h, w, bands]` have the value `nodata`, or are NaN."""
    same = pixels == nodata
    if pixels.dtype.kind == "f":
        same |= np.isnan(pixels)
    return same.all(axis=-1)


def fill_nodata(pixels: np.ndarray, nodata: float) -> np.ndarray:
    """Replaces pixels without data by the mean of the others, band by band.

    All are 0 if there are no others.
    """
    missing = is_nodata(pixels, nodata)
    if missing.all():
        return np.zeros_like(pixels)
    filled = pixels.copy()
    filled[missing] = pixels[~missing].mean(axis=0, dtype=np.float64)
    return filled

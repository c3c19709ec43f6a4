"""Class weights from how often the classes occur, for `class_weights` of the losses.

All take the pixel counts of each image, `pixel_counts` of a
`segloss.data.ClassIndex`, on the host, once before training. A class that no image
holds gets weight 0.
"""

import numpy as np
from jaxtyping import Float, Integer

PixelCounts = Integer[np.ndarray, "n c"]


def median_frequency(pixel_counts: PixelCounts) -> Float[np.ndarray, " c"]:
    """Median frequency balancing: Eigen and Fergus 2015 (arXiv:1411.4734).

    `median(freq) / freq(c)`, where freq(c) is the share of class c in the labelled
    pixels of the images that hold c, and the median is over the classes that occur. The
    class in the middle gets weight 1.

    Args:
        pixel_counts: labelled pixels of class c in image n.

    Raises:
        ValueError: if the counts are not `[n, c]`, not integers, negative or all 0.
    """
    freq, seen = _frequency("median_frequency", pixel_counts)
    return _divide(np.median(freq[seen]), freq)


def inverse_frequency(pixel_counts: PixelCounts) -> Float[np.ndarray, " c"]:
    """`1 / freq(c)` with the freq(c) of `median_frequency`, its mean made 1.

    The mean is that over the classes that occur. So this is `median_frequency` times a
    factor: another step size for SGD, another balance for neither.

    Args:
        pixel_counts: labelled pixels of class c in image n.

    Raises:
        ValueError: if the counts are not `[n, c]`, not integers, negative or all 0.
    """
    freq, seen = _frequency("inverse_frequency", pixel_counts)
    weights = _divide(1.0, freq)
    return weights / weights[seen].mean()


def effective_number(
    pixel_counts: PixelCounts, *, beta: float | int = 0.9999
) -> Float[np.ndarray, " c"]:
    """Class-balanced weights: Cui et al. 2019 (arXiv:1901.05555), Eq. 2.

    `(1 - beta) / (1 - beta^n_c)`, where n_c is the number of images that hold class c:
    samples of a class, as in the paper, and not its pixels, of which every class has so
    many that all weights would be equal. The mean over the classes that occur is 1,
    which is the paper's sum of C.

    Args:
        pixel_counts: labelled pixels of class c in image n.
        beta: in `[0, 1)`; 0 weighs all classes alike, near 1 each by `1 / n_c`. Images
            past about `1 / (1 - beta)` hardly count.

    Raises:
        ValueError: if the counts are not `[n, c]`, not integers, negative or all 0, or
            `beta` is out of range.
    """
    _check("effective_number", pixel_counts)
    if not 0 <= beta < 1:
        raise ValueError(f"effective_number: beta must be in [0, 1), got {beta}.")
    images = (pixel_counts > 0).sum(axis=0)
    weights = _divide(1.0, 1.0 - np.power(float(beta), images))
    return weights / weights[images > 0].mean()


# By the names that configs use.
CLASS_WEIGHTS = {
    "effective_number": effective_number,
    "inverse_frequency": inverse_frequency,
    "median_frequency": median_frequency,
}


def _frequency(name: str, pixel_counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of each class in the pixels of the images that hold it; which have any."""
    _check(name, pixel_counts)
    counts = np.asarray(pixel_counts, np.int64)
    in_its_images = ((counts > 0) * counts.sum(axis=1, keepdims=True)).sum(axis=0)
    seen = in_its_images > 0
    freq = np.zeros(len(seen))
    freq[seen] = counts.sum(axis=0)[seen] / in_its_images[seen]
    return freq, seen


def _divide(numerator: float, divisor: np.ndarray) -> np.ndarray:
    """The quotient, and 0 where the divisor is 0."""
    quotient = np.zeros_like(divisor)
    return np.divide(numerator, divisor, out=quotient, where=divisor > 0)


def _check(name: str, pixel_counts: np.ndarray) -> None:
    if np.ndim(pixel_counts) != 2:
        raise ValueError(
            f"{name}: pixel_counts must be [images, classes], "
            f"got shape {np.shape(pixel_counts)}."
        )
    if not np.issubdtype(pixel_counts.dtype, np.integer):
        raise ValueError(
            f"{name}: pixel_counts must be integers, got {pixel_counts.dtype}."
        )
    least = pixel_counts.min(initial=0)
    if least < 0:
        raise ValueError(f"{name}: pixel_counts must be >= 0, got {least}.")
    if not pixel_counts.any():
        raise ValueError(
            f"{name}: pixel_counts must hold a labelled pixel, "
            f"got none in {len(pixel_counts)} images."
        )

"""Class weights computed from class frequencies, for `class_weights` of the losses.

Compute them once on the host, before training, from `segloss.data.ClassIndex`: its
`pixel_counts` holds the pixel counts of each image. A class that occurs in no image
gets weight 0.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Integer

from segloss.errors import SeglossError

PixelCounts = Integer[np.ndarray, "n c"]
_CHUNK = 1 << 16  # images


def median_frequency(pixel_counts: PixelCounts) -> Float[np.ndarray, " c"]:
    """Median frequency balancing: Eigen and Fergus 2015 (arXiv:1411.4734).

    `median(freq) / freq(c)`, where freq(c) is the share of class c among the labelled
    pixels of the images that contain c. The median is taken over the classes that
    occur, so the class of median frequency gets weight 1.

    >>> import numpy as np
    >>> counts = np.array([[50, 50], [100, 0]])  # freq is 150/200 and 50/100
    >>> median_frequency(counts).round(4).tolist()  # 0.625 / freq
    [0.8333, 1.25]

    Args:
        pixel_counts: `[n, c]`, the number of pixels of class c in image n.

    Raises:
        ValueError: if the counts are not integers of shape `[n, c]`, or are negative or
            all 0.
    """
    freq, seen = _frequency("median_frequency", pixel_counts)
    return _divide(np.median(freq[seen]), freq)


def inverse_frequency(pixel_counts: PixelCounts) -> Float[np.ndarray, " c"]:
    """Inverse frequency weights: `1 / freq(c)`, scaled so that the mean weight is 1.

    freq(c) is the share of class c among the labelled pixels of the images that contain
    c; the mean is over the classes that occur. The weights equal those of
    `median_frequency` up to a constant factor, which scales the loss but does not
    change the balance between classes.

    >>> import numpy as np
    >>> counts = np.array([[50, 50], [100, 0]])  # freq is 150/200 and 50/100
    >>> inverse_frequency(counts).round(4).tolist()  # (4/3, 2) over their mean 5/3
    [0.8, 1.2]

    Args:
        pixel_counts: `[n, c]`, the number of pixels of class c in image n.

    Raises:
        ValueError: if the counts are not integers of shape `[n, c]`, or are negative or
            all 0.
    """
    freq, seen = _frequency("inverse_frequency", pixel_counts)
    weights = _divide(1.0, freq)
    return weights / weights[seen].mean()


def effective_number(
    pixel_counts: PixelCounts, *, beta: float | int = 0.9999
) -> Float[np.ndarray, " c"]:
    """Class-balanced weights: Cui et al. 2019 (arXiv:1901.05555), Eq. 2.

    `(1 - beta) / (1 - beta^n_c)`, where n_c is the number of images that contain class
    c. As in the paper, n_c counts samples; pixel counts are so large that all weights
    would be equal. The weights are scaled to a mean of 1 over the classes that occur,
    as the paper scales its C weights to a sum of C.

    >>> import numpy as np
    >>> counts = np.array([[50, 50], [100, 0]])  # n is 2 and 1
    >>> weights = effective_number(counts, beta=0.5)
    >>> weights.round(4).tolist()  # (1/0.75, 1/0.5) over their mean 5/3
    [0.8, 1.2]

    Args:
        pixel_counts: `[n, c]`, the number of pixels of class c in image n.
        beta: in `[0, 1)`. 0 gives equal weights; near 1 they are proportional to
            `1 / n_c`. A weight hardly changes once n_c exceeds about `1 / (1 - beta)`.

    Raises:
        ValueError: if the counts are not integers of shape `[n, c]`, or are negative or
            all 0, or if `beta` is out of range.
    """
    _check("effective_number", pixel_counts)
    if not 0 <= beta < 1:
        raise SeglossError(f"effective_number: beta must be in [0, 1), got {beta}.")
    images = sum((rows > 0).sum(axis=0) for rows in _chunks(pixel_counts))
    weights = _divide(1.0, 1.0 - np.power(float(beta), images))
    return weights / weights[images > 0].mean()


# Keyed by the names used in configs.
CLASS_WEIGHTS = {
    "effective_number": effective_number,
    "inverse_frequency": inverse_frequency,
    "median_frequency": median_frequency,
}


def _frequency(name: str, pixel_counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns freq(c) of `median_frequency`, and whether class c occurs, per class.

    freq(c) is 0 for a class that does not occur. `name` is the caller, for messages.
    """
    _check(name, pixel_counts)
    pixels, in_its_images = np.zeros((2, pixel_counts.shape[1]), np.int64)
    for rows in _chunks(pixel_counts):
        pixels += rows.sum(axis=0)
        in_its_images += ((rows > 0) * rows.sum(axis=1, keepdims=True)).sum(axis=0)
    seen = in_its_images > 0
    freq = np.zeros(len(seen))
    freq[seen] = pixels[seen] / in_its_images[seen]
    return freq, seen


def _chunks(pixel_counts: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the rows as int64, some at a time: a mapped file may exceed the memory."""
    for start in range(0, len(pixel_counts), _CHUNK):
        yield np.asarray(pixel_counts[start : start + _CHUNK], np.int64)


def _divide(numerator: float, divisor: np.ndarray) -> np.ndarray:
    """Returns `numerator / divisor`, and 0 where the divisor is 0."""
    quotient = np.zeros_like(divisor)
    return np.divide(numerator, divisor, out=quotient, where=divisor > 0)


def _check(name: str, pixel_counts: np.ndarray) -> None:
    if np.ndim(pixel_counts) != 2:
        raise SeglossError(
            f"{name}: pixel_counts must be [images, classes], "
            f"got shape {np.shape(pixel_counts)}."
        )
    if not np.issubdtype(pixel_counts.dtype, np.integer):
        raise SeglossError(
            f"{name}: pixel_counts must be integers, got {pixel_counts.dtype}."
        )
    least = pixel_counts.min(initial=0)
    if least < 0:
        raise SeglossError(f"{name}: pixel_counts must be >= 0, got {least}.")
    if not pixel_counts.any():
        raise SeglossError(
            f"{name}: pixel_counts must hold a labelled pixel, "
            f"got none in {len(pixel_counts)} images."
        )

"""Folds other normalisations of images into the first layer of a network."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

# ImageNet's statistics, copied from `augment.normalize`: models do not import data.
MEAN = 255 * np.array((0.485, 0.456, 0.406))
STDDEV = 255 * np.array((0.229, 0.224, 0.225))


def fold_colours(
    arrays: Mapping[str, np.ndarray],
    conv: str,
    norm: str,
    *,
    mean: Float[np.ndarray, "3"],
    stddev: Float[np.ndarray, "3"],
) -> dict[str, np.ndarray]:
    """Adapts weights for other colours to images of `augment.normalize`.

    If `x` is the image from `augment.normalize`, the network's former input,
    `(rgb - mean) / stddev` for RGB in [0, 255], is `(STDDEV x + MEAN - mean) / stddev`.
    The factor is folded into the first kernel, and the constant into the running mean
    of the norm that follows. This is exact except where a window of the convolution
    crosses the edge of the image: zeros are padded to other colours.

    Args:
        arrays: maps paths in our network to arrays, with the channels of the first
            kernel in the order RGB.
        conv: path of the first convolution, without the collection.
        norm: path of its batch normalisation, without the collection.
        mean: what the network's former images were reduced by, for RGB in [0, 255].
        stddev: what they were divided by.

    Returns:
        `arrays` with two arrays changed.
    """
    kernel_at, mean_at = f"params/{conv}/kernel", f"batch_stats/{norm}/mean"
    kernel = arrays[kernel_at].astype(np.float64)
    shift = np.einsum("hwio,i->o", kernel, (MEAN - mean) / stddev)
    scaled = np.einsum("hwio,i->hwio", kernel, STDDEV / stddev)
    return {
        **arrays,
        kernel_at: scaled.astype(np.float32),
        mean_at: (arrays[mean_at] - shift).astype(np.float32),
    }

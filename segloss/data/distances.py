"""Signed distances to the boundaries of labelled regions, made on the host."""

import numpy as np
from jaxtyping import Bool, Float16, Integer
from scipy import ndimage


def signed_distances(
    labels: Integer[np.ndarray, "*spatial"],
    valid: Bool[np.ndarray, "*spatial"] | None = None,
    *,
    num_classes: int,
) -> Float16[np.ndarray, "*spatial {num_classes}"]:
    """Distance of each pixel to the boundary of each class's region, in pixels.

    A boundary runs midway between pixels: outside of a region it is half a pixel less
    than the distance to the region's nearest pixel, inside minus half a pixel less than
    the distance to the nearest pixel of another class. So the distances of an image
    that is scaled are scaled by the same factor. Kervadec et al. 2019
    (arXiv:1812.07032) have it half a pixel further in, 0 at the region's rim; where all
    classes are there, the boundary loss is the same.

    Void is no class, and the border of the image is no boundary: distances lead past
    either, to the nearest valid pixel of the other side.

    Args:
        labels: class ids of one image or volume.
        valid: True where a pixel counts; None is all. Other pixels may hold anything,
            and get 0.
        num_classes: how many classes there are.

    Returns:
        Negative inside, positive outside, and 0 throughout for a class that holds none
        of the valid pixels or all of them.
    """
    valid = np.ones(labels.shape, bool) if valid is None else valid
    distances = np.zeros((*labels.shape, num_classes), np.float16)
    present = [c for c in range(num_classes) if (valid & (labels == c)).any()]
    if len(present) < 2:
        return distances
    to_class = np.stack(
        [ndimage.distance_transform_edt(~(valid & (labels == c))) for c in present]
    )
    # A pixel's own class is the only one at distance 0.
    to_others = np.where(to_class > 0, to_class, np.inf).min(axis=0)
    signed = np.where(to_class > 0, to_class - 0.5, 0.5 - to_others)
    distances[..., present] = np.moveaxis(np.where(valid, signed, 0), 0, -1)
    return distances

"""Signed distances to the boundaries of labelled regions, computed on the host."""

import numpy as np
from jaxtyping import Bool, Float16, Integer
from scipy import ndimage


def signed_distances(
    labels: Integer[np.ndarray, "*spatial"],
    valid: Bool[np.ndarray, "*spatial"] | None = None,
    *,
    num_classes: int,
) -> Float16[np.ndarray, "*spatial {num_classes}"]:
    """Signed distance of each pixel to the boundary of each class, in pixels.

    Boundaries run midway between pixels. Outside a region the distance is that to the
    nearest pixel of the region, minus 0.5. Inside it is the negated distance to the
    nearest pixel of another class, plus 0.5. Scaling an image thus scales its distances
    by the same factor. Kervadec et al. 2019 (arXiv:1812.07032) place the boundary half
    a pixel further inside, on the outermost pixels of the region; if all classes are
    present, the boundary loss is the same.

    Invalid pixels belong to no class, and neither they nor the image border are a
    boundary: distances refer to the nearest valid pixel beyond them.

    Args:
        labels: class ids of one image or volume.
        valid: True where a pixel counts; None means everywhere. The labels of invalid
            pixels are ignored and their distances are 0.
        num_classes: number of classes.

    Returns:
        Distances that are negative inside and positive outside a class, float16. They
        are all 0 for a class that covers none or all of the valid pixels.

    >>> import numpy as np
    >>> signed_distances(np.array([[0, 0, 0, 1]]), num_classes=2)[..., 1]
    array([[ 2.5,  1.5,  0.5, -0.5]], dtype=float16)
    """
    valid = np.ones(labels.shape, bool) if valid is None else valid
    distances = np.zeros((*labels.shape, num_classes), np.float16)
    present = [c for c in range(num_classes) if (valid & (labels == c)).any()]
    if len(present) < 2:
        return distances
    to_class = np.stack(
        [ndimage.distance_transform_edt(~(valid & (labels == c))) for c in present]
    )
    # Only the class of the pixel itself is at distance 0.
    to_others = np.where(to_class > 0, to_class, np.inf).min(axis=0)
    signed = np.where(to_class > 0, to_class - 0.5, 0.5 - to_others)
    distances[..., present] = np.moveaxis(np.where(valid, signed, 0), 0, -1)
    return distances

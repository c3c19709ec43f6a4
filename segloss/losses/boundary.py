"""A loss that weighs an error by its distance from the boundary."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from segloss.jitting import jit
from segloss.losses.check import PixelWeights, check_arrays
from segloss.losses.reduce import mean_over_pixels, valid_or_all
from segloss.losses.softmax import at_label, softmax


@jit("axis_name")
def boundary_loss(
    logits: Float[Array, "b *spatial c"],
    labels: Integer[Array, " b *spatial"],
    valid: Bool[Array, "..."] | None = None,
    *,
    distances: Float[Array, "b *spatial c"],
    pixel_weights: PixelWeights | None = None,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """How far from the boundaries the probability lies that is on the wrong side.

    `sum_c phi_c (p_c - t_c)` in pixels, mean over valid pixels, where phi is the signed
    distance and t is 1 on the class and 0 elsewhere: Kervadec et al. 2019
    (arXiv:1812.07032), eq. 5, for every class. Their eq. 6 leaves out the constant
    `sum_c phi_c t_c`: the same gradient, but negative at its best, where this is 0.

    It says nothing of classes that are not in the image, and little near boundaries, so
    add it to a loss that does. It starts at tens of pixels: weigh it accordingly.

    Args:
        logits: unnormalised class scores.
        labels: class ids in `[0, c)`; a pixel that is not valid may hold anything. A
            valid pixel whose label is no class makes the loss NaN.
        valid: True where a pixel counts, broadcastable to `labels`; None is all.
        distances: from the pixel to the boundary of each class's region in the labels,
            in pixels: at most 0 inside, at least 0 outside, and 0 throughout where a
            class has no boundary. `segloss.data.signed_distances` makes them.
        pixel_weights: a factor of at least 0 per pixel, as in `softmax_cross_entropy`.
        axis_name: mapped device axis whose devices share one mean.

    Raises:
        ValueError: if an array's shape or type does not fit `logits`.
    """
    name = "boundary_loss"
    check_arrays(name, logits, labels, valid, pixel_weights=pixel_weights)
    if distances.shape != logits.shape:
        raise ValueError(
            f"{name}: distances must have the shape of logits {logits.shape}, "
            f"got {distances.shape}."
        )
    if not jnp.issubdtype(distances.dtype, jnp.floating):
        raise ValueError(f"{name}: distances must be float, got {distances.dtype}.")

    parts = softmax(logits, labels, valid_or_all(labels.shape, valid))
    distances = distances.astype(parts.scores.dtype)
    # sum_c (phi_c - phi_y) p_c: no term is below 0, so the sum keeps its digits.
    farther = distances - at_label(distances, parts.labels)[..., None]
    loss = (farther * parts.probs()).sum(axis=-1)
    return mean_over_pixels(
        loss, valid, pixel_weights=pixel_weights, axis_name=axis_name
    )

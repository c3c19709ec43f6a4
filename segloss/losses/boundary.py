"""Boundary loss: errors weighted by their distance to the labelled boundary."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from segloss.errors import SeglossError
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
    """Boundary loss: misplaced probability weighted by its distance to the boundary.

    `sum_c phi_c (p_c - t_c)` in pixels, mean over valid pixels, where phi is
    `distances`, `p = softmax(logits)`, and t is 1 for the labelled class and 0
    otherwise: Kervadec et al. 2019 (arXiv:1812.07032), eq. 5, summed over the classes.
    Their eq. 6 drops the constant `sum_c phi_c t_c`; the gradient is the same, but the
    minimum is negative. Here it is 0.

    The loss ignores classes that are absent from the image and is weak near boundaries,
    so combine it with a region loss such as Dice. Its initial values are tens of
    pixels, so give it a small weight.

    >>> import jax.numpy as jnp
    >>> logits = jnp.log(jnp.array([[[0.5, 0.5], [0.25, 0.75]]]))  # [1, 2 pixels, 2]
    >>> labels = jnp.array([[0, 1]])
    >>> distances = jnp.array([[[-1.0, 1.0], [1.0, -1.0]]])
    >>> print(f"{boundary_loss(logits, labels, distances=distances):.4f}")  # (1+1/2)/2
    0.7500

    Args:
        logits: unnormalised class scores.
        labels: class ids in `[0, c)`, ignored where not valid. A valid pixel with a
            label outside this range makes the loss NaN.
        valid: True where a pixel counts, broadcastable to `labels`; None means all.
        distances: signed distance, in pixels, from each pixel to the boundary of each
            class's labelled region: at most 0 inside, at least 0 outside, and 0
            everywhere if the class has no boundary. See
            `segloss.data.signed_distances`.
        pixel_weights: factor >= 0 on each pixel's loss, broadcastable to `labels`; the
            divisor stays the number of valid pixels.
        axis_name: name of a pmap or shard_map axis; the mean is over the pixels of all
            its devices.

    Raises:
        ValueError: if an array's shape or type does not match `logits`.
    """
    name = "boundary_loss"
    check_arrays(name, logits, labels, valid, pixel_weights=pixel_weights)
    if distances.shape != logits.shape:
        raise SeglossError(
            f"{name}: distances must have the shape of logits {logits.shape}, "
            f"got {distances.shape}."
        )
    if not jnp.issubdtype(distances.dtype, jnp.floating):
        raise SeglossError(f"{name}: distances must be float, got {distances.dtype}.")

    parts = softmax(logits, labels, valid_or_all(labels.shape, valid))
    distances = distances.astype(parts.scores.dtype)
    # The loss as sum_c (phi_c - phi_y) p_c: no term is negative, so nothing cancels.
    farther = distances - at_label(distances, parts.labels)[..., None]
    loss = (farther * parts.probs()).sum(axis=-1)
    return mean_over_pixels(
        loss, valid, pixel_weights=pixel_weights, axis_name=axis_name
    )

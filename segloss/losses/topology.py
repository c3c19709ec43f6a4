"""Centreline Dice (clDice), a loss for the topology of thin structures."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Integer

from segloss.jitting import jit
from segloss.losses.check import (
    ClassWeights,
    Scalar,
    check_arrays,
    check_choice,
    check_range,
    check_smooth,
    check_weights,
)
from segloss.losses.numerics import SMALLEST_DIVISOR, safe_divide
from segloss.losses.reduce import (
    count_samples,
    mean_over_classes,
    sum_over_devices,
    valid_or_all,
)
from segloss.losses.softmax import softmax


@jit(
    "iterations",
    "classes",
    "axis_name",
    scalars=["smooth"],
    checks={"class_weights": check_weights},
)
def soft_cldice(
    logits: Float[Array, "b *spatial c"],
    labels: Integer[Array, " b *spatial"],
    valid: Bool[Array, "..."] | None = None,
    *,
    iterations: int = 3,
    smooth: Scalar = 0.0,
    classes: str = "present",
    class_weights: ClassWeights | None = None,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Soft centreline Dice (clDice) loss, for connected thin structures.

    `1 - 2 T_prec T_sens / (T_prec + T_sens)` per class, then the mean over classes,
    with `T_prec = sum(S_P V_L) / sum(S_P)` and `T_sens = sum(S_L V_P) / sum(S_L)` over
    the whole batch: Shit et al. 2021 (arXiv:2003.07311), eq. 1 and 2. V_P is the
    softmax probability of the class and V_L is 1 where it is labelled, else 0; S_P and
    S_L are their soft skeletons. A skeleton is the soft union, over 0 to `iterations`
    erosions, of what an opening removes from the eroded region: algorithm 1. The ratio
    of an empty skeleton is 1. If both ratios are 0, the class's loss is 1.

    A region more than `2 * iterations + 2` pixels wide has hardly any skeleton, because
    all erosions leave it thicker than a line. So combine this loss with one that
    compares areas, such as Dice.

    >>> import jax, jax.numpy as jnp
    >>> labels = jnp.zeros((1, 4, 3), int).at[..., 1].set(1)  # a line of 4 pixels
    >>> predicted = labels.at[:, 2:].set(0)  # half of it
    >>> logits = 20 * jax.nn.one_hot(predicted, 2)
    >>> loss = soft_cldice(logits, labels, class_weights=(0, 1))
    >>> print(f"{loss:.4f}")  # T_prec 1, T_sens 1/2: 1 - 1 / 1.5
    0.3333

    Args:
        logits: unnormalised class scores.
        labels: class ids in `[0, c)`, ignored where not valid. A valid pixel with a
            label outside this range makes the loss NaN.
        valid: True where a pixel counts, broadcastable to `labels`; None means all.
            Elsewhere V_P and V_L are 0, so invalid pixels erode the regions next to
            them. The border of the array does not.
        iterations: number of erosions by one pixel, k of algorithm 1, at least 0.
        smooth: epsilon of algorithm 2, in pixels: added to numerator and denominator of
            both ratios; 0, or at least 1e-18 so that float32 can square it.
        classes: "present" averages over the classes that occur in the labels; "all"
            averages over all. With `smooth=0` an absent class then costs 1, although
            its S_L is empty, and has no gradient.
        class_weights: nonnegative weights of the mean over classes; None means all
            ones. Use 0 for the background: its skeleton has little meaning.
        axis_name: name of a pmap or shard_map axis; the loss covers the pixels of all
            its devices.

    Raises:
        ValueError: if a hyperparameter is invalid, or an array's shape or
            type does not match `logits`.
    """
    name = "soft_cldice"
    check_choice(name, "classes", classes, ("all", "present"))
    check_range(name, "iterations", iterations, 0, whole=True)
    check_smooth(name, smooth)
    check_arrays(name, logits, labels, valid, class_weights)

    valid = valid_or_all(labels.shape, valid)
    parts = softmax(logits, labels, valid)

    # One class at a time, because each erosion step needs a temporary array. The
    # backward pass recomputes the skeletons.
    @jax.checkpoint
    def sums_of(class_and_probs):
        c, predicted = class_and_probs
        labelled = jnp.where(valid & (labels == c), 1.0, 0.0)
        sums = [labelled.sum()]
        for region, other in ((predicted, labelled), (labelled, predicted)):
            skeleton = _soft_skeleton(region, iterations)
            sums += [(skeleton * (1 - other)).sum(), skeleton.sum()]
        return jnp.stack(sums)

    ids = jnp.arange(logits.shape[-1])
    sums = lax.map(sums_of, (ids, jnp.moveaxis(parts.probs(), -1, 0)))
    pixels, wrong, predicted, missed, labelled = sum_over_devices(sums, axis_name).T
    cost = _one_less_harmonic_mean(
        safe_divide(wrong, predicted + smooth), safe_divide(missed, labelled + smooth)
    )
    # A class with NaN logits must not be treated as absent.
    absent = (pixels == 0) & ~jnp.isnan(cost)
    if isinstance(smooth, Array) or smooth == 0:
        cost = jnp.where(absent & (smooth == 0), 1.0, cost)
    counted = count_samples(valid, axis_name) > 0
    takes_part = ~absent if classes == "present" else jnp.repeat(counted, absent.size)
    return mean_over_classes(
        cost[None],
        takes_part[None],
        valid,
        class_weights=class_weights,
        per_image=False,
        normalize_by="classes",
        axis_name=axis_name,
    )


def _one_less_harmonic_mean(
    p_miss: Float[Array, " c"], q_miss: Float[Array, " c"]
) -> Float[Array, " c"]:
    """`1 - 2 p q / (p + q)`, given `1 - p` and `1 - q`; 1 if p and q are both 0."""
    p, q = 1 - p_miss, 1 - q_miss
    cost = safe_divide(p_miss * q + q_miss * p, p + q)
    return jnp.where(p + q < SMALLEST_DIVISOR, 1.0, cost)


def _soft_skeleton(
    region: Float[Array, " b *spatial"], iterations: int
) -> Float[Array, " b *spatial"]:
    """Soft skeleton of a region of values in `[0, 1]`: Shit et al. 2021, algorithm 1.

    The union over 0 to `iterations` erosions of what an opening removes.
    """

    @jax.checkpoint
    def step(carry, _):
        region, skeleton = carry
        eroded = _erode(region)
        ridge = jax.nn.relu(region - _dilate(eroded))
        return (eroded, skeleton + (1 - skeleton) * ridge), None

    start = (region, jnp.zeros_like(region))
    (_, skeleton), _ = lax.scan(step, start, length=iterations + 1)
    return skeleton


def _erode(region: Float[Array, " b *spatial"]) -> Float[Array, " b *spatial"]:
    """Minimum over each pixel and its neighbours along the axes."""
    lines = [_least_of_three(region, axis) for axis in range(1, region.ndim)]
    return functools.reduce(jnp.minimum, lines)


def _dilate(region: Float[Array, " b *spatial"]) -> Float[Array, " b *spatial"]:
    """Maximum over each pixel and its neighbours, diagonal neighbours included."""
    for axis in range(1, region.ndim):
        region = -_least_of_three(-region, axis)
    return region


def _least_of_three(
    region: Float[Array, " b *spatial"], axis: int
) -> Float[Array, " b *spatial"]:
    """Minimum over each pixel and its two neighbours along an axis, inside the array.

    `lax.reduce_window` is not used: its gradient is slower, and XLA computes it wrongly
    if the axis is sharded (jaxlib 0.10.2, float32).
    """

    def shift(by):
        padding = [(0, 0, 0)] * region.ndim
        padding[axis] = (by, -by, 0)
        return lax.pad(region, jnp.array(jnp.inf, region.dtype), padding)

    return jnp.minimum(jnp.minimum(shift(1), region), shift(-1))

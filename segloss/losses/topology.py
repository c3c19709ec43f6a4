"""A loss that asks for the right centre lines: what is connected, and what is not."""

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
)
from segloss.losses.numerics import SMALLEST_DIVISOR, safe_divide
from segloss.losses.reduce import (
    count_samples,
    mean_over_classes,
    sum_over_devices,
    valid_or_all,
)
from segloss.losses.softmax import softmax


@jit("iterations", "classes", "axis_name", scalars=["smooth"])
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
    """Centreline Dice loss: each region should cover the other's soft skeleton.

    `1 - 2 T_prec T_sens / (T_prec + T_sens)` per class, each summed over the whole
    batch, with `T_prec = sum(S_P V_L) / sum(S_P)`, `T_sens = sum(S_L V_P) / sum(S_L)`,
    V the predicted and labelled regions and S their skeletons: Shit et al. 2021
    (arXiv:2003.07311), eq. 1 and 2, with `smooth` the epsilon of their algorithm 2. A
    skeleton is what the openings of the ever more eroded region leave out: algorithm 1.

    Of a region more than `2 iterations + 2` pixels wide hardly any skeleton is found,
    so add a loss that knows of areas. Where a skeleton is empty its ratio is 1.

    Args:
        logits: unnormalised class scores.
        labels: class ids in `[0, c)`; a pixel that is not valid may hold anything. A
            valid pixel whose label is no class makes the loss NaN.
        valid: True where a pixel counts, broadcastable to `labels`; None is all. Other
            pixels lie outside of all regions, while beyond the border of the array
            there is nothing to erode a region.
        iterations: erosions between openings, in pixels: k of algorithm 1, at least 0.
        smooth: added to numerator and denominator of both ratios, in pixels; 0, or at
            least 1e-18, which float32 can square.
        classes: "present" averages the classes that the labels hold; "all" also the
            others, which with `smooth=0` cost 1 and send no gradient.
        class_weights: of at least 0, for the mean over the classes; None is ones. A 0
            leaves out the background, whose skeleton means little.
        axis_name: mapped device axis whose devices share one loss.

    Raises:
        ValueError: if a hyperparameter is none of the above, or an array's shape or
            type does not fit `logits`.
    """
    name = "soft_cldice"
    check_choice(name, "classes", classes, ("all", "present"))
    check_range(name, "iterations", iterations, 0, whole=True)
    check_smooth(name, smooth)
    check_arrays(name, logits, labels, valid, class_weights)

    valid = valid_or_all(labels.shape, valid)
    parts = softmax(logits, labels, valid)

    # Class by class, for the skeletons take an array's memory per step. The gradient
    # computes them anew.
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
    # Logits gone NaN must not pass for a class that is absent.
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
    """`1 - 2 p q / (p + q)` of ratios given as `1 - p` and `1 - q`; 1 if both are 0."""
    p, q = 1 - p_miss, 1 - q_miss
    cost = safe_divide(p_miss * q + q_miss * p, p + q)
    return jnp.where(p + q < SMALLEST_DIVISOR, 1.0, cost)


def _soft_skeleton(
    region: Float[Array, " b *spatial"], iterations: int
) -> Float[Array, " b *spatial"]:
    """Algorithm 1: what each opening leaves out, as far as it is not there yet."""

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
    """The least of each pixel and its neighbours along the axes."""
    lines = [_least_of_three(region, axis) for axis in range(1, region.ndim)]
    return functools.reduce(jnp.minimum, lines)


def _dilate(region: Float[Array, " b *spatial"]) -> Float[Array, " b *spatial"]:
    """The largest of each pixel and its neighbours, those at the corners included."""
    for axis in range(1, region.ndim):
        region = -_least_of_three(-region, axis)
    return region


def _least_of_three(
    region: Float[Array, " b *spatial"], axis: int
) -> Float[Array, " b *spatial"]:
    """The least of each pixel and the two beside it along an axis.

    Not by `lax.reduce_window`: its gradient is slower, and where the axis is sharded
    XLA computes a wrong one (jaxlib 0.10.2, float32).
    """

    def shift(by):
        padding = [(0, 0, 0)] * region.ndim
        padding[axis] = (by, -by, 0)
        return lax.pad(region, jnp.array(jnp.inf, region.dtype), padding)

    return jnp.minimum(jnp.minimum(shift(1), region), shift(-1))

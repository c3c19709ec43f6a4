"""Losses that compare, class by class, the predicted region with the labelled one.

All are `1 - score` written as `error / size`, each summed over the pixels first. The
two are equal, but a difference of large sums rounds to values below 0 where the
prediction is almost perfect.

Their derivatives are for reverse mode: `jax.grad`, `jax.vjp` and gradients of gradients
work, `jax.jvp` and `jax.jacfwd` do not.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from segloss.losses.check import (
    ClassWeights,
    Labels,
    check_arrays,
    check_choice,
    check_smooth,
)
from segloss.losses.reduce import (
    mean_over_classes,
    sum_over_devices,
    valid_or_all,
)
from segloss.losses.regions import RegionSums, region_sums

# Arguments that all of these losses take and that are no arrays.
STATIC = (
    "smooth",
    "classes",
    "per_image",
    "normalize_by",
    "multi_label",
    "axis_name",
)

# From the sums of each class, and `smooth`, its cost.
Cost = Callable[[RegionSums, float | int], Float[Array, "rows c"]]


def overlap_loss(
    name: str,
    cost: Cost,
    logits: Float[Array, "b *spatial c"],
    labels: Labels,
    valid: Bool[Array, "..."] | None,
    *,
    power: int = 1,
    smooth: float | int,
    classes: str,
    class_weights: ClassWeights | None,
    per_image: bool,
    normalize_by: str,
    multi_label: bool,
    axis_name: str | None,
) -> Float[Array, ""]:
    """The mean over classes of what `cost` makes of their sums."""
    check_choice(name, "classes", classes, ("all", "present"))
    check_choice(name, "normalize_by", normalize_by, ("classes", "samples"))
    check_choice(name, "per_image", per_image, (True, False))
    check_choice(name, "multi_label", multi_label, (True, False))
    check_smooth(name, smooth)
    check_arrays(name, logits, labels, valid, class_weights, multi_label=multi_label)

    valid = valid_or_all(labels, valid)
    sums = region_sums(
        logits,
        labels,
        valid,
        power=power,
        per_image=per_image,
        multi_label=multi_label,
    )
    counted = valid if multi_label else valid[..., None]
    counted = counted.any(range(1 if per_image else 0, valid.ndim - multi_label))
    counted = jnp.atleast_2d(counted).astype(jnp.float32)
    if not per_image:
        sums, counted = sum_over_devices((sums, counted), axis_name)

    costs = cost(sums, smooth)
    if smooth == 0:
        # Without gradient, also where the probability underflows to 0/0. Logits gone
        # NaN must not pass for a class that is absent.
        absent = (sums.labelled == 0) & ~jnp.isnan(sums.over)
        costs = jnp.where(absent, 1.0, costs)
    takes_part = counted > 0
    if classes == "present":
        takes_part &= (sums.labelled != 0) | jnp.isnan(sums.over)
    return mean_over_classes(
        costs,
        jnp.broadcast_to(takes_part, costs.shape),
        valid,
        class_weights=class_weights,
        per_image=per_image,
        normalize_by=normalize_by,
        axis_name=axis_name,
    )

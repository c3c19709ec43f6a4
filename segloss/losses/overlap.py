"""Shared parts of the overlap losses: their options, and the mean over classes.

An overlap loss, such as Dice, compares the predicted and the labelled region of each
class. It is computed as `error / size`, a quotient of sums over pixels. This equals
`1 - score`, but near a perfect prediction `1 - score` could round to below 0.

For class-id labels the derivative is defined for reverse mode only: `jax.grad`,
`jax.vjp` and their nesting work; `jax.jvp` and `jax.jacfwd` do not.
"""

import inspect
import textwrap
from collections.abc import Callable
from typing import Any, TypedDict, TypeVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from segloss.jitting import jit
from segloss.losses.check import (
    ClassWeights,
    Labels,
    PixelWeights,
    Scalar,
    check_arrays,
    check_choice,
    check_smooth,
    check_weights,
    takes_scalar,
)
from segloss.losses.reduce import (
    mean_over_classes,
    sum_over_devices,
    valid_or_all,
)
from segloss.losses.regions import RegionSums, region_sums

# Computes the cost of each class from its sums and `smooth`.
Cost = Callable[[RegionSums, Scalar], Float[Array, "rows c"]]
Loss = TypeVar("Loss", bound=Callable[..., Any])


class OverlapOptions(TypedDict, total=False):
    """Keyword arguments shared by all overlap losses; see `soft_dice`."""

    smooth: Scalar
    classes: str
    class_weights: ClassWeights | None
    pixel_weights: PixelWeights | None
    per_image: bool
    normalize_by: str
    multi_label: bool
    axis_name: str | None


_ARGS = """
    Args:
        logits: unnormalised class scores of a softmax (or see `multi_label`).
        labels: class ids in `[0, c)`, ignored where not valid; a valid pixel with a
            label outside this range makes the loss NaN. Or soft labels
            `[b, *spatial, c]`: the share, in `[0, 1]`, of the pixel that belongs to
            each class. A valid share outside this range, too, makes the loss NaN.
        valid: True where a pixel counts, broadcastable to `[b, *spatial]`, or with
            `multi_label` to `labels`; None means all.
"""

_OPTIONS = """\
        smooth: number of pixels added to numerator and denominator of the score, which
            is 1 minus the loss; 0, or at least 1e-18 so that float32 can square it.
        classes: "all" averages all classes; with `smooth=0` a class absent from the
            labels costs 1 and has no gradient. "present" leaves absent classes out.
        class_weights: nonnegative weights of the mean over classes; None means all
            ones.
        pixel_weights: nonnegative factor for each pixel's contribution to the sums,
            broadcastable like `valid`; None means all ones. No gradient flows to it.
            With `per_image`, a factor that is constant within an image cancels out;
            use `valid` to exclude an image.
        per_image: True computes the loss per image, then averages over the images with
            a valid pixel; "present" then refers to the classes of each image. False
            takes the sums over the whole batch.
        normalize_by: "classes" averages over classes; "samples" divides the sum over
            classes by m, the number of samples with a valid pixel.
        multi_label: True uses a sigmoid per class instead of the softmax; `labels` are
            then bools or floats in `[0, 1]` in the shape of `logits`. A class without a
            valid element is left out.
        axis_name: name of a pmap or shard_map axis; the loss covers the pixels of all
            its devices.

    Raises:
        ValueError: if a hyperparameter is invalid, or an array's shape or
            type does not match `logits`.
    """


def with_overlap_options(loss: Loss) -> Loss:
    """Decorator that compiles a loss and completes its signature and docstring.

    The loss must take `**options: Unpack[OverlapOptions]`. These options, and the
    sections Args and Raises, are added. If the loss has hyperparameters of its own, its
    docstring must end with a section "Hyperparameters:" for them.
    """
    shared = inspect.signature(mean_cost).parameters
    signature = inspect.signature(loss)
    parameters = [p for p in signature.parameters.values() if p.kind != p.VAR_KEYWORD]
    parameters += [shared[name] for name in OverlapOptions.__annotations__]
    # By `setattr`, because type checkers do not know this attribute.
    setattr(loss, "__signature__", signature.replace(parameters=parameters))  # noqa: B010
    # Python 3.13 takes the indentation out of docstrings, earlier ones do not.
    doc = inspect.cleandoc(loss.__doc__ or "")
    head, _, own = doc.partition("Hyperparameters:\n")
    own = textwrap.indent(own.rstrip() + "\n" if own else "", "    ")
    loss.__doc__ = head.rstrip() + "\n" + textwrap.dedent(_ARGS + own + _OPTIONS)
    arrays = {"logits", "labels", "valid", "class_weights", "pixel_weights"}
    scalars = [p.name for p in parameters if takes_scalar(p.annotation)]
    not_static = arrays.union(scalars)
    static = [p.name for p in parameters if p.name not in not_static]
    checks = {"class_weights": check_weights}
    return jit(*static, scalars=scalars, checks=checks)(loss)


def mean_cost(
    name: str,
    cost: Cost,
    power: int,
    logits: Float[Array, "b *spatial c"],
    labels: Labels,
    valid: Bool[Array, "..."] | None,
    /,
    *,
    smooth: Scalar = 0.0,
    classes: str = "all",
    class_weights: ClassWeights | None = None,
    pixel_weights: PixelWeights | None = None,
    per_image: bool = False,
    normalize_by: str = "classes",
    multi_label: bool = False,
    axis_name: str | None = None,
    **unknown: object,
) -> Float[Array, ""]:
    """Averages `cost`, computed from the region sums of each class, over the classes.

    `name` is the calling loss, for messages. `cost` maps the region sums and `smooth`
    to one cost per class; `power` is the exponent n of `RegionSums`. The options are
    those of `soft_dice`.
    """
    for argument in unknown:
        raise TypeError(f"{name}() got an unexpected keyword argument {argument!r}.")
    check_choice(name, "classes", classes, ("all", "present"))
    check_choice(name, "normalize_by", normalize_by, ("classes", "samples"))
    check_choice(name, "per_image", per_image, (True, False))
    check_choice(name, "multi_label", multi_label, (True, False))
    check_smooth(name, smooth)
    check_arrays(
        name,
        logits,
        labels,
        valid,
        class_weights,
        pixel_weights=pixel_weights,
        multi_label=multi_label,
        soft=True,
    )
    valid = valid_or_all(logits.shape if multi_label else logits.shape[:-1], valid)
    sums = region_sums(
        logits,
        labels,
        valid,
        pixel_weights=pixel_weights,
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
    # A class with NaN logits must not be treated as absent.
    absent = (sums.labelled == 0) & ~jnp.isnan(sums.over)
    if isinstance(smooth, Array) or smooth == 0:
        # An absent class costs 1 without gradient, even if its probability underflows
        # and the score is 0/0.
        costs = jnp.where(absent & (smooth == 0), 1.0, costs)
    takes_part = counted > 0
    if classes == "present":
        takes_part &= ~absent
    return mean_over_classes(
        costs,
        jnp.broadcast_to(takes_part, costs.shape),
        valid,
        class_weights=class_weights,
        per_image=per_image,
        normalize_by=normalize_by,
        axis_name=axis_name,
    )

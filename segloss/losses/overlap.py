"""What the overlap losses share: their options, and the mean over the classes.

Each compares, class by class, the predicted region with the labelled one. All are
`1 - score` written as `error / size`, each summed over the pixels first. The two are
equal, but a difference of large sums rounds to values below 0 where the prediction is
almost perfect.

The derivative for class ids is for reverse mode: `jax.grad`, `jax.vjp` and gradients of
gradients work, `jax.jvp` and `jax.jacfwd` do not.
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

# From the sums of each class, and `smooth`, its cost.
Cost = Callable[[RegionSums, float | int], Float[Array, "rows c"]]
Loss = TypeVar("Loss", bound=Callable[..., Any])


class OverlapOptions(TypedDict, total=False):
    """The keyword arguments that all overlap losses take; see `soft_dice`."""

    smooth: float | int
    classes: str
    class_weights: ClassWeights | None
    pixel_weights: PixelWeights | None
    per_image: bool
    normalize_by: str
    multi_label: bool
    axis_name: str | None


_ARGS = """
    Args:
        logits: unnormalised class scores, for a softmax (but see `multi_label`).
        labels: class ids in `[0, c)`, ignored where not valid; a valid pixel whose
            label is no class makes the loss NaN. Or soft labels `[b, *spatial, c]`:
            the share, in `[0, 1]`, of the pixel that belongs to each class.
        valid: True where a pixel counts, broadcastable to `[b, *spatial]`, or with
            `multi_label` to `labels`; None is all.
"""

_OPTIONS = """\
        smooth: added to numerator and denominator of the score, in pixels; 0, or at
            least 1e-18, which float32 can square.
        classes: "all", where with `smooth=0` a class that no label holds costs 1 and
            sends no gradient; "present" leaves such classes out.
        class_weights: of at least 0, for the mean over the classes; None is ones.
        pixel_weights: a factor of at least 0 for each pixel's part in the sums,
            broadcastable as `valid` is; None is ones. No gradient reaches it. With
            `per_image` a factor that is the same all over an image cancels out: leave
            images out with `valid`.
        per_image: sum over each image, then average the images that hold a valid
            pixel. Then "present" means in the image.
        normalize_by: "classes" averages the classes; "samples" divides their sum by
            the number m of samples that hold a valid pixel.
        multi_label: `labels` are floats in `[0, 1]` or bools in the shape of `logits`,
            and the classes have sigmoids. A class with no valid label is left out.
        axis_name: mapped device axis whose devices share one loss.

    Raises:
        ValueError: if a hyperparameter is none of the above, or an array's shape or
            type does not fit `logits`.
    """


def with_overlap_options(loss: Loss) -> Loss:
    """Compiles a loss and completes its signature and its docstring.

    The loss takes `**options: Unpack[OverlapOptions]`, and its docstring ends with its
    own hyperparameters, if it has any.
    """
    shared = inspect.signature(mean_cost).parameters
    signature = inspect.signature(loss)
    parameters = [p for p in signature.parameters.values() if p.kind != p.VAR_KEYWORD]
    parameters += [shared[name] for name in OverlapOptions.__annotations__]
    # `setattr`, because type checkers do not know this attribute.
    setattr(loss, "__signature__", signature.replace(parameters=parameters))  # noqa: B010
    # Python 3.13 takes the indentation out of docstrings, earlier ones do not.
    doc = inspect.cleandoc(loss.__doc__ or "")
    head, _, own = doc.partition("Hyperparameters:\n")
    own = textwrap.indent(own.rstrip() + "\n" if own else "", "    ")
    loss.__doc__ = head.rstrip() + "\n" + textwrap.dedent(_ARGS + own + _OPTIONS)
    arrays = {"logits", "labels", "valid", "class_weights", "pixel_weights"}
    return jit(*(p.name for p in parameters if p.name not in arrays))(loss)


def mean_cost(
    name: str,
    cost: Cost,
    power: int,
    logits: Float[Array, "b *spatial c"],
    labels: Labels,
    valid: Bool[Array, "..."] | None,
    /,
    *,
    smooth: float | int = 0.0,
    classes: str = "all",
    class_weights: ClassWeights | None = None,
    pixel_weights: PixelWeights | None = None,
    per_image: bool = False,
    normalize_by: str = "classes",
    multi_label: bool = False,
    axis_name: str | None = None,
    **unknown: object,
) -> Float[Array, ""]:
    """The mean over the classes of the `cost` of their sums, for the loss `name`.

    `power` is that of `RegionSums`; the options are those of `OverlapOptions`.
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

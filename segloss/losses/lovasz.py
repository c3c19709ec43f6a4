"""The Jaccard loss of a set of misclassified pixels, extended to errors of any size.

Berman et al. 2018 (arXiv:1705.08790), Def. 2: the Lovasz extension is `sum_i w_i e_i`,
where `w_i` is what pixel i adds to `1 - intersection / union` when the pixels are taken
to be wrong one by one, by decreasing error `e`. The weights change only where two
errors change places, so the derivatives of `w` are 0.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jaxtyping import Array, Bool, Float, Integer

from segloss.jitting import jit
from segloss.losses.check import check_arrays, check_choice, check_range
from segloss.losses.lovasz_weights import weights_and_total
from segloss.losses.numerics import widen
from segloss.losses.reduce import mean_over_classes, sum_over_devices, valid_or_all
from segloss.losses.softmax import one_hot, softmax


@jit("classes", "per_image", "bins", "axis_name")
def lovasz_softmax(
    logits: Float[Array, "b *spatial c"],
    labels: Integer[Array, " b *spatial"],
    valid: Bool[Array, "..."] | None = None,
    *,
    classes: str = "present",
    per_image: bool = False,
    bins: int | None = None,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Lovasz extension of the Jaccard loss of each class, averaged; from 0 to 1.

    The error of a pixel is `1 - p` in the class of its label and `p` in the others:
    Berman et al. 2018 (arXiv:1705.08790), Alg. 1 and its softmax.

    Pixels of equal error share their weights, so that the gradient does not depend on
    the order of the pixels. Of second derivatives only those of the softmax remain.

    Args:
        logits: unnormalised class scores.
        labels: class ids in `[0, c)`; a pixel that is not valid may hold anything. A
            valid pixel whose label is no class makes the loss NaN.
        valid: True where a pixel counts, broadcastable to `labels`; None is all.
        classes: "present" leaves out a class that no label holds; with "all" it costs
            its largest probability.
        per_image: the mean of the loss over the images that hold a valid pixel. Then
            "present" means in the image.
        bins: None sorts the errors. A number, at least 1, takes the errors within each
            of so many equal parts of `[0, 1]` for equal when it weighs them, which is
            much faster. Such weights are a mixture of other orders' weights. Since the
            right order's sum is the largest, and both give the same total weight to
            each part, `exact - 1 / bins <= loss <= exact`. The gradient is that of the
            errors, their weights held fixed.
        axis_name: mapped device axis whose devices share one loss. Without `bins` each
            sorts the errors of all, unless `per_image`.

    Raises:
        ValueError: if `classes` or `bins` is none of the above, or an array's shape or
            type does not fit `logits`.
    """
    name = "lovasz_softmax"
    check_choice(name, "classes", classes, ("all", "present"))
    if bins is not None:
        check_range(name, "bins", bins, 1, whole=True)
    check_arrays(name, logits, labels, valid)

    valid = valid_or_all(labels.shape, valid)
    probs = softmax(logits, labels, valid).probs()
    is_label = one_hot(labels, logits.shape[-1])
    return _mean_extension(
        jnp.where(is_label, 1.0 - probs, probs),
        is_label,
        valid,
        classes=classes,
        per_image=per_image,
        bins=bins,
        axis_name=axis_name,
    )


@jit("per_image", "axis_name")
def lovasz_hinge(
    logits: Float[Array, " b *pixels"],
    labels: Float[Array, " b *pixels"] | Bool[Array, " b *pixels"],
    valid: Bool[Array, "..."] | None = None,
    *,
    per_image: bool = True,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Lovasz extension of the Jaccard loss of the foreground, with hinge errors.

    The error of a pixel is `max(0, 1 - s)` in the foreground and `max(0, 1 + s)` in the
    background, where s is its logit: the Lovasz hinge of Berman et al. 2018
    (arXiv:1705.08790). Without foreground the loss is the largest error.

    Pixels of equal error share their weights. The second derivatives are 0.

    Args:
        logits: scores, positive where foreground is predicted. All axes but the first
            are pixels of one image.
        labels: True or 1 in the foreground, False or 0 elsewhere, in the shape of
            `logits`. A valid pixel with another label makes the loss NaN.
        valid: True where a pixel counts, broadcastable to `labels`; None is all.
        per_image: the mean of the loss over the images that hold a valid pixel; False
            takes the batch for one image.
        axis_name: mapped device axis whose devices share one loss. Each sorts the
            errors of all, unless `per_image`.

    Raises:
        ValueError: if an array's shape or type does not fit `logits`.
    """
    check_arrays("lovasz_hinge", logits, labels, valid, multi_label=True)

    valid = valid_or_all(labels.shape, valid)
    foreground = labels == 1
    scores = jnp.where(valid, widen(logits), 0.0)
    errors = jax.nn.relu(1.0 - jnp.where(foreground, scores, -scores))
    errors = jnp.where(foreground | (labels == 0), errors, jnp.nan)
    return _mean_extension(
        errors[..., None],
        foreground[..., None],
        valid,
        classes="all",
        per_image=per_image,
        bins=None,
        axis_name=axis_name,
    )


def _mean_extension(
    errors: Float[Array, "b *spatial c"],
    foreground: Bool[Array, "b *spatial c"],
    valid: Bool[Array, " b *spatial"],
    *,
    classes: str,
    per_image: bool,
    bins: int | None,
    axis_name: str | None,
) -> Float[Array, ""]:
    """The extension of each class, averaged as `mean_over_classes` does."""
    across = None if per_image else axis_name
    counted = valid[..., None]
    # An error of 0 in the background is last in order, and adds nothing.
    errors = jnp.where(counted, errors, 0.0)
    weigh = functools.partial(
        weights_and_total, per_image=per_image, bins=bins, axis_name=across
    )
    sharding = jax.typeof(errors).sharding
    if AxisType.Explicit in sharding.mesh.axis_types:
        # Such a mesh allows no sort of a sharded axis, and no reshape.
        whole = jax.NamedSharding(sharding.mesh, jax.P())
        weigh = jax.sharding.auto_axes(weigh, out_sharding=(sharding, whole))
    order = jax.lax.stop_gradient(errors).astype(jnp.float32)
    weights, total = weigh(order, foreground & counted, counted)
    cost = (weights * errors).sum(range(1 if per_image else 0, valid.ndim))
    cost = sum_over_devices(cost.reshape(total.shape), across)
    # Logits gone NaN must not pass for a class that is absent.
    takes_part = (classes == "all") | (total > 0) | jnp.isnan(cost)
    return mean_over_classes(
        cost,
        takes_part,
        valid,
        class_weights=None,
        per_image=per_image,
        normalize_by="classes",
        axis_name=axis_name,
    )

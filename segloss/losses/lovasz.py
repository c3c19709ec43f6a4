"""Lovasz losses: the Jaccard loss extended from wrong pixels to continuous errors.

Berman et al. 2018 (arXiv:1705.08790), Def. 2: the Lovasz extension is `sum_i w_i e_i`,
where e_i is the error of pixel i. Mark the pixels as wrong one at a time in order of
decreasing error; `w_i` is the increase in `1 - intersection / union` when pixel i is
marked. The weights are piecewise constant in the errors, so their derivatives are 0.
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
    """Lovasz-softmax loss: mean over classes of the Lovasz-extended Jaccard loss.

    `sum_i w_i e_i` over the pixels in order of decreasing error e_i, where w_i is the
    increase in `1 - IoU` when pixel i is counted as wrong after those before it. The
    error is `1 - p` for the labelled class and p for the others, where p is the softmax
    probability: Berman et al. 2018 (arXiv:1705.08790), Alg. 1. The loss lies between 0
    and 1.

    Pixels with equal errors share their weights equally, so the gradient does not
    depend on pixel order. Second derivatives treat the weights as constants.

    >>> import jax.numpy as jnp
    >>> logits = jnp.log(jnp.array([[[0.5, 0.5], [0.25, 0.75]]]))  # [1, 2 pixels, 2]
    >>> loss = lovasz_softmax(logits, jnp.array([[0, 1]]))
    >>> print(f"{loss:.4f}")  # (0.5 + (0.5 + 0.25) / 2) / 2
    0.4375

    Args:
        logits: unnormalised class scores.
        labels: class ids in `[0, c)`, ignored where not valid. A valid pixel with a
            label outside this range makes the loss NaN.
        valid: True where a pixel counts, broadcastable to `labels`; None means all.
        classes: "present" averages over the classes that occur in the labels; "all"
            averages over all classes, where an absent class costs its largest
            probability.
        per_image: True computes the loss per image, then averages over the images with
            a valid pixel; "present" then refers to the classes of each image.
        bins: None sorts the errors exactly. An integer n, at least 1, divides `[0, 1]`
            into n bins and computes the weights as if all errors in a bin were equal,
            which is much faster. The result satisfies `exact - 1 / n <= loss <= exact`:
            the sorted order maximises the sum, and each bin keeps its total weight.
            The gradient treats the weights as constants.
        axis_name: name of a pmap or shard_map axis; the loss covers the pixels of all
            its devices. Without `bins` and `per_image`, each device sorts the errors of
            all devices.

    Raises:
        ValueError: if `classes` or `bins` is invalid, or an array's shape or
            type does not match `logits`.
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
    """Lovasz hinge loss: Lovasz-extended Jaccard loss of the foreground.

    `sum_i w_i e_i` over the pixels in order of decreasing error e_i, where w_i is the
    increase in `1 - IoU` when pixel i is counted as wrong after those before it. The
    error of a pixel with logit s is `max(0, 1 - s)` for foreground and `max(0, 1 + s)`
    for background: Berman et al. 2018 (arXiv:1705.08790). If there is no foreground,
    the loss is the largest error.

    Pixels with equal errors share their weights equally. Second derivatives are 0.

    >>> import jax.numpy as jnp
    >>> logits, labels = jnp.array([[2.0, -0.5]]), jnp.array([[True, True]])
    >>> print(f"{lovasz_hinge(logits, labels):.4f}")  # errors 0, 1.5; weights 1/2, 1/2
    0.7500

    Args:
        logits: scores, positive where foreground is predicted. All axes after the first
            are pixels of one image; there is no class axis.
        labels: True or 1 for foreground, False or 0 for background, in the shape of
            `logits`. A valid pixel with any other label makes the loss NaN.
        valid: True where a pixel counts, broadcastable to `labels`; None means all.
        per_image: True computes the loss per image, then averages over the images with
            a valid pixel. False treats the batch as one image.
        axis_name: name of a pmap or shard_map axis; the loss covers the pixels of all
            its devices. Without `per_image`, each device sorts the errors of all
            devices.

    Raises:
        ValueError: if an array's shape or type does not match `logits`.
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
    """Lovasz extension of `errors`, averaged over classes (and images: `per_image`)."""
    across = None if per_image else axis_name
    counted = valid[..., None]
    # A background error of 0 comes last in the order and adds nothing.
    errors = jnp.where(counted, errors, 0.0)
    weigh = functools.partial(
        weights_and_total, per_image=per_image, bins=bins, axis_name=across
    )
    sharding = jax.typeof(errors).sharding
    if AxisType.Explicit in sharding.mesh.axis_types:
        # With explicit axes, JAX can neither sort nor reshape a sharded axis.
        whole = jax.NamedSharding(sharding.mesh, jax.P())
        weigh = jax.sharding.auto_axes(weigh, out_sharding=(sharding, whole))
    order = jax.lax.stop_gradient(errors).astype(jnp.float32)
    weights, total = weigh(order, foreground & counted, counted)
    cost = (weights * errors).sum(range(1 if per_image else 0, valid.ndim))
    cost = sum_over_devices(cost.reshape(total.shape), across)
    # A class with NaN logits must not be treated as absent.
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

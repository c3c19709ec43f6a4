"""Losses chosen by name, as configs do, and sums of them."""

import inspect
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxtyping import Array, Bool, Float

from segloss.errors import SeglossError
from segloss.losses import (
    boundary,
    cross_entropy,
    dice,
    iou,
    lovasz,
    sigmoid,
    topology,
)
from segloss.losses.check import (
    Scalar,
    check_nonnegative,
    check_shape,
    check_weights,
    takes_scalar,
)
from segloss.registry import bind

LOSSES = {
    "boundary_loss": boundary.boundary_loss,
    "focal_loss": cross_entropy.focal_loss,
    "focal_tversky": iou.focal_tversky,
    "gated_sigmoid_cross_entropy": sigmoid.gated_sigmoid_cross_entropy,
    "generalized_dice": dice.generalized_dice,
    "log_bilinear_loss": cross_entropy.log_bilinear_loss,
    "log_cosh_dice": dice.log_cosh_dice,
    "lovasz_hinge": lovasz.lovasz_hinge,
    "lovasz_softmax": lovasz.lovasz_softmax,
    "normalized_sigmoid_cross_entropy": sigmoid.normalized_sigmoid_cross_entropy,
    "poly_loss": cross_entropy.poly_loss,
    "sigmoid_cross_entropy": sigmoid.sigmoid_cross_entropy,
    "sigmoid_focal_loss": sigmoid.sigmoid_focal_loss,
    "soft_cldice": topology.soft_cldice,
    "soft_dice": dice.soft_dice,
    "soft_iou": iou.soft_iou,
    "softmax_cross_entropy": cross_entropy.softmax_cross_entropy,
    "top_k_cross_entropy": cross_entropy.top_k_cross_entropy,
    "tversky": iou.tversky,
}

Loss = Callable[..., Float[Array, ""]]

# Losses that use sigmoids only. Losses with an argument `multi_label` offer both.
MASK_LOSSES = (
    "gated_sigmoid_cross_entropy",
    "lovasz_hinge",
    "normalized_sigmoid_cross_entropy",
    "sigmoid_cross_entropy",
    "sigmoid_focal_loss",
)

# Checks of hyperparameters that are arrays, whose values a compiled loss cannot see.
CHECKS = {
    "class_weights": check_weights,
    "penalty": check_nonnegative,
    "pos_weight": check_weights,
}

# Keyword arguments of losses that are arrays and change with every batch.
INPUTS = ("distances", "pixel_weights")


def inputs_of(name: str) -> tuple[str, ...]:
    """Names of the arrays that `LOSSES[name]` needs besides logits, labels and valid.

    The tuple is `("distances",)` for "boundary_loss" and empty for all others.
    """
    empty = inspect.Parameter.empty
    return tuple(x for x, default in _arrays_of(name).items() if default is empty)


def scalars_of(name: str) -> tuple[str, ...]:
    """Names of the hyperparameters of `LOSSES[name]` that may be scalar arrays.

    `jax.jit` traces such an array, so a new value needs no new compilation.

    >>> scalars_of("focal_loss")
    ('gamma',)
    """
    parameters = inspect.signature(LOSSES[name]).parameters.values()
    return tuple(p.name for p in parameters if takes_scalar(p.annotation))


def _arrays_of(name: str) -> dict[str, Any]:
    """Maps each name of `INPUTS` that the loss has as an argument to its default."""
    parameters = inspect.signature(LOSSES[name]).parameters
    return {x: parameters[x].default for x in INPUTS if x in parameters}


def takes_masks(name: str, hyperparameters: Mapping[str, Any]) -> bool:
    """Whether a loss takes labels in the shape of the logits, not class ids.

    True for losses of sigmoids, and if `hyperparameters` set `multi_label`.
    """
    return name in MASK_LOSSES or bool(hyperparameters.get("multi_label", False))


def make_loss(name: str, **hyperparameters: Any) -> Loss:
    """Returns the loss `LOSSES[name]` with its hyperparameters bound.

    Returns:
        A function `(logits, labels, valid=None)` that also takes by keyword:
        `axis_name`, the arrays that `inputs_of(name)` lists, and `pixel_weights` if
        the loss accepts it.

    Raises:
        ValueError: if `LOSSES` has no such name, or the loss no such hyperparameter, or
            `class_weights`, `pos_weight` or `penalty` hold a negative number or NaN.
    """
    return _bind(name, hyperparameters)


def _bind(name: str, hyperparameters: Mapping[str, Any], **given: Any) -> Loss:
    """Binds `hyperparameters`, and those of `given` that the loss has, to a loss."""
    loss = bind("loss", LOSSES, name, hyperparameters, later=INPUTS, **given)
    for argument in CHECKS.keys() & hyperparameters.keys():
        CHECKS[argument](name, argument, hyperparameters[argument])
    return loss


def compound_loss(
    terms: Sequence[tuple[Scalar, str, Mapping[str, Any]]],
    *,
    axis_name: str | None = None,
) -> Loss:
    """Returns the weighted sum of several losses.

    Args:
        terms: `(weight, name, hyperparameters)` of each loss: a weight of at least 0, a
            key of `LOSSES`, and keyword arguments. The weight, and the hyperparameters
            that `scalars_of(name)` lists, may be scalar arrays. Pass these as arguments
            of a function under `jax.jit` to compile it once for all their values, which
            are then not checked.
        axis_name: name of a pmap or shard_map axis, passed to every term.

    Returns:
        A function `(logits, labels, valid=None)` that also takes by keyword
        `axis_name`, which replaces the one above, and the arrays `distances` and
        `pixel_weights`, each passed to the terms that accept it.

    Raises:
        ValueError: if there is no term, a weight is negative or not finite, or
            `make_loss` would refuse a term.
    """
    terms = list(terms)
    if not terms:
        raise SeglossError(
            "compound_loss: terms must hold at least one loss, got none."
        )
    for weight, name, _ in terms:
        if isinstance(weight, Array):
            check_shape("compound_loss", f"the weight of {name}", weight)
        elif not isinstance(weight, numbers.Real) or not 0 <= weight < float("inf"):
            raise SeglossError(
                f"compound_loss: the weight of {name} must be at least 0 and finite, "
                f"got {weight!r}."
            )
    losses = [
        (weight, _bind(name, hyperparameters, axis_name=axis_name), _arrays_of(name))
        for weight, name, hyperparameters in terms
    ]

    def loss(
        logits: Float[Array, "b *spatial c"],
        labels: Array,
        valid: Bool[Array, "..."] | None = None,
        *,
        axis_name: str | None = axis_name,
        **inputs: Array,
    ) -> Float[Array, ""]:
        unknown = inputs.keys() - {name for _, _, taken in losses for name in taken}
        if unknown:
            raise TypeError(
                f"compound_loss: no term takes {', '.join(sorted(unknown))}."
            )
        return sum(
            weight
            * term(
                logits,
                labels,
                valid,
                axis_name=axis_name,
                **{name: x for name, x in inputs.items() if name in taken},
            )
            for weight, term, taken in losses
        )

    return loss

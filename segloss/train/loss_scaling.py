"""Loss scaling: with it, the small gradients of a float16 network do not become 0."""

import functools
import math
import numbers
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax.training.dynamic_scale import DynamicScale

from segloss.devices import AXIS
from segloss.errors import SeglossError

# A dynamic scale starts at 2**16, so it is below 1 after 17 halvings.
MOST_SKIPPED = 25


def check_loss_scale(loss_scale: Any) -> None:
    """Raises SeglossError unless `loss_scale` is None, "dynamic" or a number > 0."""
    if loss_scale is None or loss_scale == "dynamic":
        return
    number = isinstance(loss_scale, numbers.Real) and not isinstance(loss_scale, bool)
    if not number or not 0 < loss_scale < math.inf:
        raise SeglossError(
            "config.optimizer.loss_scale must be 'dynamic', a number > 0, or None, got "
            f"{loss_scale!r}."
        )


def first_loss_scale(loss_scale: float | str | None) -> dict[str, jax.Array]:
    """Makes the state of loss scaling before the first step; empty without scaling.

    Args:
        loss_scale: "dynamic", or the number by which the loss is always multiplied;
            None does not scale.

    Returns:
        `scale`, and the number of steps skipped in all and in a row; for "dynamic" also
        the number of finite steps since the scale last changed.
    """
    if loss_scale is None:
        return {}
    dynamic = loss_scale == "dynamic"
    none = jnp.zeros((), jnp.int32)
    return {
        "scale": jnp.float32(DynamicScale().scale if dynamic else loss_scale),
        "skipped_steps": none,
        "skipped_in_a_row": none,
    } | ({"finite_steps": none} if dynamic else {})


def scaled_value_and_grad(
    loss: Callable[[Any], tuple[jax.Array, Any]],
    params: Any,
    scaling: dict[str, jax.Array],
) -> tuple[tuple[jax.Array, Any], Any, jax.Array, dict[str, jax.Array]]:
    """Differentiates a loss times its scale, and divides the result by the scale.

    A dynamic scale is halved by a gradient that is not finite, and doubled after 2000
    finite ones in a row: Micikevicius et al. 2018 (arXiv:1710.03740), sec. 3.2, by
    flax's `DynamicScale`. Needs the mapped `AXIS`.

    Args:
        loss: maps parameters to the loss and to further results.
        params: the parameters.
        scaling: the state that `first_loss_scale` makes, not empty.

    Returns:
        The loss with the further results; the gradient, averaged over devices; whether
        it is finite; and the next state of the scaling.
    """
    dynamic = "finite_steps" in scaling
    fixed = {} if dynamic else {"growth_factor": 1.0, "backoff_factor": 1.0}
    before = DynamicScale(
        scale=scaling["scale"], fin_steps=scaling.get("finite_steps", 0), **fixed
    )
    differentiate = before.value_and_grad(loss, has_aux=True, axis_name=AXIS)
    after, finite, value, grads = differentiate(params)
    skipped = 1 - finite.astype(jnp.int32)
    scaling = scaling | {
        "scale": after.scale,
        "skipped_steps": scaling["skipped_steps"] + skipped,
        "skipped_in_a_row": (scaling["skipped_in_a_row"] + 1) * skipped,
    }
    if dynamic:
        scaling["finite_steps"] = after.fin_steps
    return value, grads, finite, scaling


def keep_if(finite: jax.Array, updated: Any, before: Any) -> Any:
    """Returns the tree `updated` if `finite`, and else the tree `before`."""
    return jax.tree.map(functools.partial(jnp.where, finite), updated, before)


def explain_skipped(step: int, skipped_in_a_row: int, scale: float) -> str:
    """Makes the line that ends a run in which too many steps in a row were skipped."""
    return (
        f"step {step}: {skipped_in_a_row} steps in a row were skipped, because their "
        f"gradient was NaN or infinite; the loss scale is {scale:g}; lower "
        "config.optimizer.loss_scale if it is a number, or set "
        "config.model.dtype='bfloat16'. The saved checkpoints are finite."
    )

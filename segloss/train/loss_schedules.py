"""Schedules for the weights and other hyperparameters of losses."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from segloss.config import to_steps
from segloss.errors import SeglossError

Loss = Callable[..., Float[Array, ""]]


@dataclasses.dataclass(frozen=True)
class Scheduled:
    """A weight or hyperparameter of a loss that follows a schedule.

    Attributes:
        name: the name under which the value is logged.
        schedule: maps a step to the value.
    """

    name: str
    schedule: optax.Schedule


# Weight, name and hyperparameters of a loss; some of the values may be `Scheduled`.
Term = tuple[Any, str, dict[str, Any]]


def schedules_of(terms: Sequence[Term]) -> dict[str, optax.Schedule]:
    """Maps the `name` of each `Scheduled` in the terms to its schedule."""
    values = [x for weight, _, chosen in terms for x in (weight, *chosen.values())]
    return {x.name: x.schedule for x in values if isinstance(x, Scheduled)}


def fill_in(terms: Sequence[Term], values: Mapping[str, Any]) -> list[Term]:
    """Replaces each `Scheduled` in the terms by the entry of `values` with its name."""

    def fill(value: Any) -> Any:
        return values[value.name] if isinstance(value, Scheduled) else value

    return [
        (fill(weight), name, {k: fill(v) for k, v in chosen.items()})
        for weight, name, chosen in terms
    ]


@dataclasses.dataclass(frozen=True)
class ScheduledLoss:
    """A loss with hyperparameters that follow schedules.

    Attributes:
        schedules: maps the name of each value, as it is logged, to its schedule.
        make: makes the loss from the values by name, which may be numbers or traced
            scalars.
    """

    schedules: Mapping[str, optax.Schedule]
    make: Callable[[Mapping[str, Any]], Loss]

    def values(self, step: Any) -> dict[str, Float[Array, ""]]:
        """Returns the value of each schedule at `step`, a number or a traced scalar."""
        return {
            name: jnp.asarray(schedule(step), jnp.float32)
            for name, schedule in self.schedules.items()
        }

    def check(self, total_steps: int, trace: Callable[[Loss], None]) -> None:
        """Checks the values of the schedules in a run of `total_steps`.

        `trace` traces a loss, which then checks its hyperparameters. This is done at
        the first and the last step, and where a schedule has its smallest, smallest
        positive or largest value. The valid range of each hyperparameter is an
        interval, possibly with 0 in addition, so if these values are valid, all are.

        Raises:
            ValueError: if a value is out of range; it names the step.
        """
        by_step = jax.device_get(jax.vmap(self.values)(jnp.arange(total_steps)))
        steps = {0, total_steps - 1}
        for values in by_step.values():
            positive = np.where(values > 0, values, np.inf)
            found = np.argmin(values), np.argmin(positive), np.argmax(values)
            steps |= set(map(int, found))
        for step in sorted(steps):
            try:
                trace(self.make({k: float(v[step]) for k, v in by_step.items()}))
            except SeglossError as error:
                raise SeglossError(
                    f"config.loss after {step} steps: {error}"
                ) from error


def loss_at(
    loss: Loss | ScheduledLoss, step: Any
) -> tuple[Loss, dict[str, Float[Array, ""]]]:
    """Returns the loss function at a step, and its scheduled values by name.

    The step may be traced. A loss without schedules is returned as it is.
    """
    if not isinstance(loss, ScheduledLoss):
        return loss, {}
    values = loss.values(step)
    return loss.make(values), values


def linear(
    total_steps: int,
    *,
    init_value: float | int,
    end_value: float | int,
    transition_steps: int | float | None = None,
    transition_begin: int | float = 0,
) -> optax.Schedule:
    """Changes linearly from `init_value` to `end_value`; constant before and after.

    Args:
        total_steps: number of steps of the run.
        init_value: value before the transition.
        end_value: value after the transition.
        transition_steps: number of steps of the transition, or a share of `total_steps`
            in (0, 1); None means all steps after `transition_begin`.
        transition_begin: number of steps before the transition, or such a share.
    """
    return _transition(
        "linear",
        lambda steps: optax.linear_schedule(1.0, 0.0, steps),
        (init_value, end_value),
        transition_begin,
        transition_steps,
        total_steps,
    )


def cosine(
    total_steps: int,
    *,
    init_value: float | int,
    end_value: float | int,
    transition_steps: int | float | None = None,
    transition_begin: int | float = 0,
) -> optax.Schedule:
    """Changes from `init_value` to `end_value` as half a cosine; see `linear`."""
    return _transition(
        "cosine",
        lambda steps: optax.cosine_decay_schedule(1.0, steps),
        (init_value, end_value),
        transition_begin,
        transition_steps,
        total_steps,
    )


def piecewise_constant(
    total_steps: int,
    *,
    values: tuple[float | int, ...],
    boundaries: tuple[int | float, ...],
) -> optax.Schedule:
    """Is `values[0]` before step `boundaries[0]`, then `values[1]`, and so on.

    A boundary is a number of steps, or a share of `total_steps` in (0, 1).
    """
    name = "piecewise_constant"
    _check_numbers(name, "values", values)
    boundaries = [
        to_steps(f"{name}: each of boundaries", x, total_steps, low=1)
        for x in boundaries
    ]
    begins = [0, *boundaries]
    if len(begins) != len(values) or begins != sorted(set(begins)):
        raise SeglossError(
            f"{name}: boundaries must be increasing steps above 0, one fewer than "
            f"values, got {boundaries} for {values}."
        )
    return optax.join_schedules(
        [optax.constant_schedule(value) for value in values], boundaries
    )


def _transition(
    name: str,
    make_decay: Callable[[int], optax.Schedule],
    ends: tuple[float | int, float | int],
    begin: int | float,
    steps: int | float | None,
    total_steps: int,
) -> optax.Schedule:
    """Makes a schedule from `ends[0]` to `ends[1]`, in the shape of a decay.

    `make_decay` maps a number of steps to a schedule from 1 to 0. The transition begins
    at step `begin` and takes `steps` steps; None means all remaining ones.
    """
    _check_numbers(name, "init_value and end_value", ends)
    begin = to_steps(f"{name}: transition_begin", begin, total_steps, low=0)
    if steps is None:
        steps = total_steps - begin
    steps = to_steps(f"{name}: transition_steps", steps, total_steps, low=1)
    first, last = ends
    decay = make_decay(steps)

    def schedule(step: Any) -> Any:
        left = decay(jnp.maximum(step - begin, 0))
        # Exact at both ends, which may be the limits of the valid range.
        return left * first + (1 - left) * last

    return schedule


def _check_numbers(name: str, arguments: str, values: tuple[Any, ...]) -> None:
    if not all(type(x) in (int, float) and math.isfinite(x) for x in values):
        raise SeglossError(f"{name}: {arguments} must be finite numbers, got {values}.")


# The keys are the names used in configs.
LOSS_SCHEDULES: dict[str, Callable[..., optax.Schedule]] = {
    "cosine": cosine,
    "linear": linear,
    "piecewise_constant": piecewise_constant,
}

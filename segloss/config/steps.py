"""Numbers of steps, which a config gives as such or as shares of `total_steps`."""

import math
from collections.abc import Mapping
from typing import Any

from segloss.errors import SeglossError

INTERVALS = ("checkpoint_every_steps", "evaluate_every_steps", "log_every_steps")
# Fields of a config that are numbers of steps or shares, and their smallest number.
STEP_FIELDS = {**dict.fromkeys(INTERVALS, 1), "schedule.warmup_steps": 0}


def to_steps(field: str, value: Any, total_steps: int, *, low: int) -> int:
    """Returns a number of steps that is given as such or as a share of a run.

    >>> to_steps("warmup_steps", 50, 1_200, low=0)
    50
    >>> to_steps("warmup_steps", 0.025, 1_200, low=0)
    30

    Args:
        field: name of the field, for the message of an error.
        value: a whole number of steps, such as 50 or 50.0, or a fraction in (0, 1),
            which is a share of `total_steps`. It is rounded to 1 step or more.
        total_steps: number of steps of the run.
        low: the smallest number of steps, 0 or 1. With 0, a share also leaves at least
            one step of the run.

    Raises:
        SeglossError: if `value` is neither, or less than `low`.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and 0 < value < 1:
        steps = max(1, round(value * total_steps))
        return steps if low else min(steps, total_steps - 1)
    if number and math.isfinite(value) and value == int(value) and value >= low:
        return int(value)
    raise SeglossError(
        f"{field} must be a number of steps >= {low}, or a share of total_steps in "
        f"(0, 1), got {value!r}."
    )


def resolve_steps(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces shares among the `STEP_FIELDS` by numbers of steps.

    `fields` maps the dotted paths of a config's fields to their values. A value that is
    neither a share nor a number of steps is left as it is.
    """
    resolved = dict(fields)
    for field in STEP_FIELDS.keys() & fields.keys():
        try:
            resolved[field] = to_steps(
                field, fields[field], fields["total_steps"], low=STEP_FIELDS[field]
            )
        except (SeglossError, LookupError, TypeError):
            continue
    return resolved

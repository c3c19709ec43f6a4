"""Says what became NaN or infinite first, in which samples, and what to do."""

import math
from collections.abc import Mapping

from segloss.errors import SeglossError
from segloss.train.setup import Setup

# In the order in which a step computes them. BatchNorm's running statistics are means
# of the network's features, which come before the loss.
_ORDER = ("batch_stats", "loss", "grad_norm", "param_norm")
# Name of the scalar that is 1 if all of `batch_stats` are finite, else 0.
BATCH_STATS_FINITE = "batch_stats_finite"
_MOST_SAMPLES = 10


class NonFiniteError(SeglossError, FloatingPointError):
    """The loss, the gradient or another value of a step is NaN or infinite."""


def find_non_finite(scalars: Mapping[str, float]) -> dict[str, str]:
    """Returns what is not finite in the scalars of a step, in the order of computation.

    The result maps a name, such as "grad_norm", to what it is, such as "inf".
    """
    found = {k: str(v) for k, v in scalars.items() if not math.isfinite(v)}
    if not scalars.get(BATCH_STATS_FINITE, True):
        found["batch_stats"] = "not finite"
    first = [name for name in _ORDER if name in found]
    # Shares of the gradient by class follow from what is not finite before.
    return {name: found[name] for name in first or found}


def explain_non_finite(
    setup: Setup, step: int, found: Mapping[str, str], learning_rate: float
) -> str:
    """Makes the line that ends a run: what, in which step and samples, and the cure.

    Args:
        setup: the parts of the run.
        step: number of the step, from 1.
        found: the result of `find_non_finite`, not empty.
        learning_rate: that of the step.
    """
    (first, value), *others = found.items()
    also = f", and so {'is' if len(others) == 1 else 'are'} " if others else ""
    return (
        f"step {step}: {first} is {value}{also}{', '.join(x for x, _ in others)}; "
        f"its batch holds {describe_samples(setup, step)}; "
        f"{_advise(setup, step, first, learning_rate)}. The saved checkpoints are "
        "finite."
    )


def describe_samples(setup: Setup, step: int) -> str:
    """Names the samples of the global batch of a step, at most ten, then a count."""
    ids = setup.sampler[step - 1]
    source = setup.dataset.source("train")
    read = getattr(source, "opened", source.__getitem__)
    names = []
    for i in map(int, ids[:_MOST_SAMPLES]):
        try:
            names.append(repr(read(i)["stem"]))
        except SeglossError:  # a bad sample, which the run skips
            names.append(f"number {i}")
    more = len(ids) - len(names)
    return f"sample{'s' * (len(ids) > 1)} {', '.join(names)}" + (
        f" and {more} more" if more else ""
    )


def _advise(setup: Setup, step: int, first: str, learning_rate: float) -> str:
    model, optimizer = setup.config.model, setup.config.optimizer
    if model.hyperparameters.get("dtype") == "float16":
        scaled = optimizer.hyperparameters.get("loss_scale") is not None
        scale = "" if scaled else "config.optimizer.loss_scale='dynamic' or "
        return f"float16 ends at 65504: set {scale}config.model.dtype='bfloat16'"
    if step == 1 and first in ("batch_stats", "loss"):
        return (
            "no step has changed the weights yet, so look at these samples, at "
            "config.loss and at config.model.pretrained"
        )
    lower = f"lower config.schedule.learning_rate, which gives {learning_rate:g} here"
    if optimizer.hyperparameters.get("clip_norm") is None:
        return f"{lower}, or set config.optimizer.clip_norm, such as 5.0"
    return f"{lower}, or config.optimizer.clip_norm"

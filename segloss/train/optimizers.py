"""Optimizers and learning-rate schedules by name, built with optax."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import optax

from segloss.errors import SeglossError
from segloss.registry import bind
from segloss.train.parameter_groups import (
    GroupedOptimizer,
    ParameterGroup,
    partition,
)

# Optax's ready-made optimizers tie the kind of weight decay to the optimizer. These are
# chained from gradient transformations, so that `decay` can be chosen for each.


def polynomial(
    total_steps: int,
    *,
    learning_rate: float,
    power: float = 0.9,
    warmup_steps: int = 0,
    end_learning_rate: float = 0.0,
) -> optax.Schedule:
    """Decays as `(1 - t)^power` from `learning_rate` to `end_learning_rate`.

    `t` grows from 0 to 1 between the warm-up and the end of the run. The "poly" policy
    of DeepLab: Chen et al. 2017 (arXiv:1606.00915), sec. 4.1. During the first
    `warmup_steps`, the rate grows linearly from `learning_rate / (warmup_steps + 1)`.
    """
    _check("polynomial", learning_rate, warmup_steps, total_steps, end_learning_rate)
    if power <= 0:
        raise SeglossError(f"polynomial: power must be > 0, got {power}.")
    decay = optax.polynomial_schedule(
        learning_rate, end_learning_rate, power, total_steps - warmup_steps
    )
    return _warm_up(decay, learning_rate, warmup_steps)


def cosine(
    total_steps: int,
    *,
    learning_rate: float,
    warmup_steps: int = 0,
    end_learning_rate: float = 0.0,
) -> optax.Schedule:
    """Decays as half a cosine from `learning_rate` to `end_learning_rate`.

    Loshchilov and Hutter 2017 (arXiv:1608.03983), eq. 5, without restarts. The linear
    warm-up is that of `polynomial`.
    """
    _check("cosine", learning_rate, warmup_steps, total_steps, end_learning_rate)
    decay = optax.cosine_decay_schedule(
        learning_rate,
        total_steps - warmup_steps,
        alpha=end_learning_rate / learning_rate,
    )
    return _warm_up(decay, learning_rate, warmup_steps)


def constant(
    total_steps: int, *, learning_rate: float, warmup_steps: int = 0
) -> optax.Schedule:
    """Stays at `learning_rate`, after the linear warm-up of `polynomial`."""
    _check("constant", learning_rate, warmup_steps, total_steps)
    flat = optax.constant_schedule(learning_rate)
    return _warm_up(flat, learning_rate, warmup_steps)


def _check(
    name: str,
    learning_rate: float,
    warmup_steps: int,
    total_steps: int,
    end_learning_rate: float = 0.0,
) -> None:
    if learning_rate <= 0:
        raise SeglossError(f"{name}: learning_rate must be > 0, got {learning_rate}.")
    if end_learning_rate < 0:
        raise SeglossError(
            f"{name}: end_learning_rate must be >= 0, got {end_learning_rate}."
        )
    if not 0 <= warmup_steps < total_steps:
        raise SeglossError(
            f"{name}: warmup_steps must be in [0, total_steps={total_steps}), "
            f"got {warmup_steps}."
        )


def _warm_up(
    schedule: optax.Schedule, learning_rate: float, warmup_steps: int
) -> optax.Schedule:
    # Start above 0: a step with a learning rate of 0 would be wasted.
    ramp = optax.linear_schedule(
        learning_rate / (warmup_steps + 1), learning_rate, max(1, warmup_steps)
    )
    return optax.join_schedules([ramp, schedule], [warmup_steps])


def sgd(
    schedule: optax.Schedule,
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    decay: str = "l2",
    clip_norm: float | None = None,
    accumulate_steps: int = 1,
    groups: Sequence[Mapping[str, Any]] = (),
) -> optax.GradientTransformation:
    """Stochastic gradient descent with momentum.

    Args:
        schedule: maps a step to its learning rate.
        momentum: decay of the running sum of gradients, in [0, 1).
        nesterov: True uses Nesterov momentum, False plain momentum.
        weight_decay: factor of the weights that is added as `decay` says. It applies to
            kernels only, not to biases and normalisation.
        decay: "l2" adds the weight decay to the clipped gradient, before momentum;
            "decoupled" adds it after momentum (Loshchilov and Hutter 2019,
            arXiv:1711.05101). The learning rate multiplies the sum in both cases.
        clip_norm: largest L2 norm of the gradient of all parameters together, without
            frozen ones. Clipping comes first, before weight decay. None does not clip.
        accumulate_steps: number of steps to average the gradient over for one update;
            the average is clipped. The update uses the learning rate of the first of
            these steps. Steps left over at the end of a run cause no update.
        groups: settings for some of the parameters; each entry has the fields of a
            `ParameterGroup`. A parameter belongs to the first group that matches it.
    """
    _check_decay_rate("sgd", "momentum", momentum)
    core = optax.trace(decay=momentum, nesterov=nesterov)
    shared = weight_decay, decay, clip_norm, accumulate_steps, groups
    return _chain("sgd", core, schedule, *shared)


def adamw(
    schedule: optax.Schedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    decay: str = "decoupled",
    clip_norm: float | None = None,
    accumulate_steps: int = 1,
    groups: Sequence[Mapping[str, Any]] = (),
) -> optax.GradientTransformation:
    """Adam with weight decay: Loshchilov and Hutter 2019 (arXiv:1711.05101), alg. 2.

    Args:
        schedule: maps a step to its learning rate.
        b1: decay of the running mean of the gradients, in [0, 1).
        b2: decay of the running mean of the squared gradients, in [0, 1).
        eps: added to the square root of the bias-corrected mean of squared gradients;
            greater than 0.
        weight_decay: factor of the weights that is added as `decay` says. It applies to
            kernels only, not to biases and normalisation.
        decay: "decoupled" adds the weight decay to Adam's update, before the learning
            rate multiplies the sum; "l2" adds it to the clipped gradient, before Adam.
        clip_norm: largest L2 norm of the gradient of all parameters together, without
            frozen ones. Clipping comes first, before weight decay. None does not clip.
        accumulate_steps: number of steps to average the gradient over for one update;
            the average is clipped. The update uses the learning rate of the first of
            these steps. Steps left over at the end of a run cause no update.
        groups: settings for some of the parameters; each entry has the fields of a
            `ParameterGroup`. A parameter belongs to the first group that matches it.
    """
    _check_decay_rate("adamw", "b1", b1)
    _check_decay_rate("adamw", "b2", b2)
    if eps <= 0:
        raise SeglossError(f"adamw: eps must be > 0, got {eps}.")
    core = optax.scale_by_adam(b1=b1, b2=b2, eps=eps)
    shared = weight_decay, decay, clip_norm, accumulate_steps, groups
    return _chain("adamw", core, schedule, *shared)


def _check_decay_rate(name: str, argument: str, value: float) -> None:
    if not 0 <= value < 1:
        raise SeglossError(f"{name}: {argument} must be in [0, 1), got {value}.")


def _chain(
    name: str,
    core: optax.GradientTransformation,
    schedule: optax.Schedule,
    weight_decay: float,
    decay: str,
    clip_norm: float | None,
    accumulate_steps: int,
    groups: Sequence[Mapping[str, Any]],
) -> optax.GradientTransformation:
    if decay not in ("l2", "decoupled"):
        raise SeglossError(f"{name}: decay must be 'l2' or 'decoupled', got {decay!r}.")
    if weight_decay < 0:
        raise SeglossError(f"{name}: weight_decay must be >= 0, got {weight_decay}.")
    if clip_norm is not None and clip_norm <= 0:
        raise SeglossError(f"{name}: clip_norm must be > 0 or None, got {clip_norm}.")
    if accumulate_steps < 1:
        raise SeglossError(
            f"{name}: accumulate_steps must be >= 1, got {accumulate_steps}."
        )

    clip = (
        optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)
    )
    pull = optax.add_decayed_weights(weight_decay, mask=_is_kernel)
    # Optax passes the number of updates; the schedule expects training steps.
    rate = optax.scale_by_learning_rate(lambda n: schedule(n * accumulate_steps))

    def steps(pull: optax.GradientTransformation) -> list[optax.GradientTransformation]:
        return [pull, core] if decay == "l2" else [core, pull]

    def accumulate(
        update: optax.GradientTransformation,
    ) -> optax.GradientTransformation:
        if accumulate_steps == 1:
            return update
        return optax.MultiSteps(update, accumulate_steps).gradient_transformation()

    if not groups:
        return accumulate(optax.chain(clip, *steps(pull), rate))

    def of_group(group: ParameterGroup) -> optax.GradientTransformation:
        if group.frozen:
            return optax.set_to_zero()
        own_pull = pull
        if group.weight_decay is not None:
            own_pull = optax.add_decayed_weights(group.weight_decay)
        factor = optax.scale(group.learning_rate_factor)
        return optax.chain(*steps(own_pull), factor, rate)

    known = {"groups": ParameterGroup}
    chosen = [bind(name, known, "groups", fields)() for fields in groups]
    inner = accumulate(optax.chain(clip, partition(chosen, of_group)))
    return GroupedOptimizer(inner, chosen)


def _is_kernel(params: optax.Params) -> optax.Params:
    """Maps each parameter to True if it is a convolution or dense kernel."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1].key == "kernel", params
    )


SCHEDULES: dict[str, Callable[..., optax.Schedule]] = {
    "constant": constant,
    "cosine": cosine,
    "polynomial": polynomial,
}
OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adamw": adamw,
    "sgd": sgd,
}

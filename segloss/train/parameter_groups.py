"""Optimizer settings for groups of parameters, selected by the parameters' paths."""

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax

from segloss.errors import SeglossError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Optimizer settings for the parameters whose path matches.

    Attributes:
        match: regular expression; it matches if `re.search` finds it in a path such as
            "backbone/stage1/block0/conv1/kernel".
        learning_rate_factor: factor of the learning rate, above 0.
        weight_decay: weight decay of every parameter of the group, including biases
            and normalisation. None applies the optimizer's own weight decay, to kernels
            only.
        frozen: True keeps the parameters fixed, without gradients and optimizer state
            for them; False trains them.

    Raises:
        ValueError: if a field is out of its range.
    """

    match: str
    learning_rate_factor: float | int = 1.0
    weight_decay: float | int | None = None
    frozen: bool = False

    def __post_init__(self):
        try:
            re.compile(self.match)
        except re.error as error:
            raise SeglossError(
                f"{self}: match must be a regular expression ({error})."
            ) from None
        if self.learning_rate_factor <= 0:
            raise SeglossError(
                f"{self}: learning_rate_factor must be > 0, got "
                f"{self.learning_rate_factor}; use frozen=True to fix parameters."
            )
        if self.weight_decay is not None and self.weight_decay < 0:
            raise SeglossError(
                f"{self}: weight_decay must be >= 0, got {self.weight_decay}."
            )
        if self.frozen and (self.learning_rate_factor, self.weight_decay) != (1, None):
            raise SeglossError(
                f"{self}: frozen must not be combined with learning_rate_factor or "
                "weight_decay; leave them out."
            )

    def __str__(self) -> str:
        return f"optimizer group {self.match!r}"


class GroupedOptimizer(optax.GradientTransformation):
    """An optimizer of the parameters that no group freezes.

    `update` takes the gradients and parameters of the whole network, or only those that
    `trained_part` returns, and returns updates of the same. Those of frozen parameters
    are 0.

    Attributes:
        groups: the groups, in the order in which they are tried.
    """

    groups: tuple[ParameterGroup, ...]

    def __new__(
        cls, inner: optax.GradientTransformation, groups: Sequence[ParameterGroup]
    ):
        """Wraps `inner`, an optimizer that never sees a frozen parameter.

        Raises:
            ValueError: from `init` of the result, if a group has no parameters, or all
                parameters are frozen.
        """
        trained = functools.partial(_without_frozen, tuple(groups))

        def init(params: optax.Params) -> optax.OptState:
            _check_matches(groups, params)
            return inner.init(trained(params))

        def update(
            grads: optax.Updates, state: optax.OptState, params: optax.Params = None
        ) -> tuple[optax.Updates, optax.OptState]:
            updates, state = inner.update(trained(grads), state, trained(params))
            return put_back(updates, jax.tree.map(jax.numpy.zeros_like, grads)), state

        self = super().__new__(cls, init, update)
        self.groups = tuple(groups)
        return self


def trained_part(
    optimizer: optax.GradientTransformation, params: optax.Params
) -> optax.Params:
    """Leaves out the parameters that the optimizer keeps frozen.

    Differentiating with respect to the result alone saves their backward pass.

    Returns:
        The tree with `optax.MaskedNode`, which has no leaves, for frozen parameters.
    """
    if not isinstance(optimizer, GroupedOptimizer):
        return params
    return _without_frozen(optimizer.groups, params)


def put_back(trained: Any, whole: Any) -> Any:
    """Fills the places that `trained_part` left out with the leaves of `whole`."""

    def choose(leaf: jax.Array, kept: Any) -> jax.Array:
        return leaf if isinstance(kept, optax.MaskedNode) else kept

    return jax.tree.map(choose, whole, trained)


def _without_frozen(groups: Sequence[ParameterGroup], params: Any) -> Any:
    def choose(path: Any, leaf: jax.Array) -> Any:
        group = _find_group(groups, path)
        frozen = group is not None and groups[group].frozen
        return optax.MaskedNode() if frozen else leaf

    return jax.tree_util.tree_map_with_path(choose, params)


def _find_group(groups: Sequence[ParameterGroup], path: Any) -> int | None:
    """Returns the index of the first group that matches a path; None if none does."""
    text = _as_text(path)
    matches = (i for i, group in enumerate(groups) if re.search(group.match, text))
    return next(matches, None)


def _as_text(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _check_matches(groups: Sequence[ParameterGroup], params: optax.Params) -> None:
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    found = {_find_group(groups, path) for path in paths}
    some = f"some of the {len(paths)} parameters are {_some(paths)}."
    for i, group in enumerate(groups):
        if i not in found:
            raise SeglossError(
                f"{group}: match must find a parameter that no earlier group matches; "
                + some
            )
    if all(i is not None and groups[i].frozen for i in found):
        raise SeglossError(
            f"optimizer groups: a parameter must stay that is not frozen; {some}"
        )


def partition(
    groups: Sequence[ParameterGroup],
    make: Callable[[ParameterGroup], optax.GradientTransformation],
) -> optax.GradientTransformation:
    """Applies to each parameter the transformation of the first group that matches it.

    Args:
        groups: the groups, in the order in which they are tried. Parameters that match
            none form a further group with default settings.
        make: makes the transformation of a group.
    """

    def label(params: optax.Params) -> optax.Params:
        def name(path: Any, _: jax.Array) -> str:
            i = _find_group(groups, path)
            return "others" if i is None else f"group{i}"

        return jax.tree_util.tree_map_with_path(name, params)

    named = {f"group{i}": group for i, group in enumerate(groups)}
    named["others"] = ParameterGroup(match="")
    return optax.partition({key: make(g) for key, g in named.items()}, label)


def _some(paths: Sequence[Any]) -> str:
    """Lists at most eight of the paths, evenly spaced, for a message."""
    return ", ".join(map(_as_text, paths[:: -(-len(paths) // 8)]))

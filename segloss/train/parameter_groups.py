"""Optimizer settings for groups of parameters, selected by the parameters' paths."""

import dataclasses
import re
from collections.abc import Callable, Sequence

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
        frozen: True keeps the parameters fixed, without optimizer state for them; False
            trains them.

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


def partition(
    groups: Sequence[ParameterGroup],
    make: Callable[[ParameterGroup], optax.GradientTransformation],
) -> optax.GradientTransformation:
    """Applies to each parameter the transformation of the first group that matches it.

    Args:
        groups: the groups, in the order in which they are tried. Parameters that match
            none form a further group with default settings.
        make: makes the transformation of a group.

    Raises:
        ValueError: from `init` of the result, if a group has no parameters.
    """
    groups = {f"group{i}": group for i, group in enumerate(groups)}
    groups["others"] = ParameterGroup(match="")

    def label(params: optax.Params) -> optax.Params:
        paths = {
            path: jax.tree_util.keystr(path, simple=True, separator="/")
            for path, _ in jax.tree_util.tree_leaves_with_path(params)
        }
        found = {
            path: next(key for key, g in groups.items() if re.search(g.match, text))
            for path, text in paths.items()
        }
        for key, group in groups.items():
            if key not in {"others", *found.values()}:
                raise SeglossError(
                    f"{group}: match must find a parameter that no earlier group "
                    f"matches; some of the {len(paths)} parameters are "
                    f"{_some(list(paths.values()))}."
                )
        return jax.tree_util.tree_map_with_path(lambda path, _: found[path], params)

    return optax.partition({key: make(g) for key, g in groups.items()}, label)


def _some(paths: Sequence[str]) -> str:
    """Lists at most eight of the paths, evenly spaced, for a message."""
    return ", ".join(paths[:: -(-len(paths) // 8)])

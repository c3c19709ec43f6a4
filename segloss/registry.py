"""Selects functions by name, and checks their arguments before anything runs."""

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

from segloss.errors import SeglossError

# Fields of every Linen module; they are not hyperparameters.
_MODULE_FIELDS = {"name", "parent"}


def bind(
    kind: str,
    registry: Mapping[str, Callable],
    name: str,
    hyperparameters: Mapping[str, Any],
    *,
    later: Collection[str] = (),
    elsewhere: Collection[str] = (),
    **given: Any,
) -> functools.partial:
    """Looks `name` up in `registry` and binds its keyword-only arguments.

    Args:
        kind: kind of entry in the registry, for messages ("loss", "model").
        registry: maps names to functions or classes.
        name: name of the entry.
        hyperparameters: keyword-only arguments set by the user.
        later: names of arguments that are passed with each call of the result; the user
            cannot set them.
        elsewhere: names that `hyperparameters` may also contain because other code uses
            them; they are not bound.
        **given: arguments set by the calling code; the user cannot set them. Arguments
            that the entry does not accept are ignored.

    Returns:
        The entry with its arguments bound.

    Raises:
        ValueError: if the name is unknown, or a hyperparameter is unknown or missing.
            The message lists the known ones.
    """
    if name not in registry:
        raise SeglossError(
            f"{kind}: no {kind} is named {name!r}; "
            f"known are {', '.join(sorted(registry))}."
        )
    parameters = {
        p.name: p
        for p in inspect.signature(registry[name]).parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.name not in {*_MODULE_FIELDS, *later}
    }
    given = {key: value for key, value in given.items() if key in parameters}
    known = [*elsewhere, *(key for key in parameters if key not in given)]
    for key in hyperparameters:
        if key not in known:
            raise SeglossError(
                f"{kind}: {name} has no hyperparameter {key!r}; "
                f"known are {', '.join(known) or 'none'}."
            )
    for key in known[len(elsewhere) :]:
        if parameters[key].default is inspect.Parameter.empty and (
            key not in hyperparameters
        ):
            raise SeglossError(f"{kind}: {name} needs the hyperparameter {key!r}.")
    bound = {k: v for k, v in hyperparameters.items() if k not in elsewhere}
    return functools.partial(registry[name], **given, **bound)

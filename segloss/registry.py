"""Functions chosen by name: what a config says is checked before anything runs."""

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

# Fields that every Linen module has; they are not hyperparameters.
_MODULE_FIELDS = {"name", "parent"}


def bind(
    kind: str,
    registry: Mapping[str, Callable],
    name: str,
    hyperparameters: Mapping[str, Any],
    *,
    later: Collection[str] = (),
    **given: Any,
) -> functools.partial:
    """Looks `name` up in `registry` and binds its keyword-only arguments.

    Args:
        kind: what the registry holds, for messages ("loss", "model").
        registry: name to function or class.
        name: the entry wanted.
        hyperparameters: keyword-only arguments of the entry that the user chose.
        later: arguments that come with each call, so the user may not choose them.
        **given: arguments that the calling code supplies, so the user may not. One
            that the entry does not take is left out.

    Raises:
        ValueError: if the name is unknown, or a hyperparameter is unknown or missing;
            the message lists what is known.
    """
    if name not in registry:
        raise ValueError(
            f"{kind}: no {kind} is named {name!r}; "
            f"known are {', '.join(sorted(registry))}."
        )
    parameters = {
        p.name: p
        for p in inspect.signature(registry[name]).parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.name not in {*_MODULE_FIELDS, *later}
    }
    given = {key: value for key, value in given.items() if key in parameters}
    known = [key for key in parameters if key not in given]
    for key in hyperparameters:
        if key not in known:
            raise ValueError(
                f"{kind}: {name} has no hyperparameter {key!r}; "
                f"known are {', '.join(known) or 'none'}."
            )
    for key in known:
        if parameters[key].default is inspect.Parameter.empty and (
            key not in hyperparameters
        ):
            raise ValueError(f"{kind}: {name} needs the hyperparameter {key!r}.")
    return functools.partial(registry[name], **given, **hyperparameters)

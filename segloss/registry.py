"""Selects functions by name, and checks their arguments before anything runs."""

import functools
import inspect
import math
import numbers
import os
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from segloss.errors import SeglossError

# Fields of every Linen module; they are not hyperparameters.
_MODULE_FIELDS = {"name", "parent"}


def hyperparameters_of(entry: Callable) -> dict[str, inspect.Parameter]:
    """Maps the names of a function's or class's keyword-only arguments to them."""
    return {
        p.name: p
        for p in inspect.signature(entry).parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.name not in _MODULE_FIELDS
    }


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
        ValueError: if the name is unknown, or a hyperparameter is unknown, missing, or
            not of the annotated type. The message lists the known ones.
    """
    if not isinstance(name, str) or name not in registry:
        raise SeglossError(
            f"{kind}: no {kind} is named {name!r}; "
            f"known are {', '.join(sorted(registry))}."
        )
    parameters = hyperparameters_of(registry[name])
    parameters = {k: p for k, p in parameters.items() if k not in later}
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
    for key, value in hyperparameters.items():
        if key in parameters and not _fits(value, wanted := parameters[key].annotation):
            raise SeglossError(
                f"{kind}: {key} of {name} must be {' or '.join(_words(wanted))}, "
                f"got {value!r}."
            )
    bound = {k: v for k, v in hyperparameters.items() if k not in elsewhere}
    return functools.partial(registry[name], **given, **bound)


_PLAIN = (bool, int, float, str, types.NoneType)
_WORDS = {
    bool: "True or False",
    int: "an integer",
    float: "a finite number",
    str: "text",
    types.NoneType: "None",
}


def _fits(value: Any, annotation: Any) -> bool:
    """Whether a value has the annotated type; a number must also be finite.

    Other types than those below, such as arrays, are left to the function: only
    numbers, text and None are known not to be of them.
    """
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, arg) for arg in args)
    if annotation is int:
        return isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if annotation is float:
        is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        return is_number and math.isfinite(value)
    if annotation in _WORDS or origin is Mapping:
        return isinstance(value, origin or annotation)
    if origin is os.PathLike:
        return isinstance(value, os.PathLike)
    if origin in (Sequence, tuple):
        fixed = origin is tuple and args[-1] is not Ellipsis
        return (
            isinstance(value, list | tuple)
            and (not fixed or len(value) == len(args))
            and all(_fits(x, args[0]) for x in value)
        )
    if annotation in (Any, inspect.Parameter.empty):
        return True
    return not isinstance(value, _PLAIN)


def _words(annotation: Any) -> list[str]:
    """Says in words which values have the annotated type."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        # An integer is a number, too.
        kinds = [arg for arg in args if not (arg is int and float in args)]
        return list(dict.fromkeys(word for kind in kinds for word in _words(kind)))
    if origin in (Sequence, tuple):
        elements = "integers" if args[0] is int else "values"
        return [f"a tuple of {elements}"]
    if origin is os.PathLike:
        return ["a path"]
    return [_WORDS.get(annotation, "an array")]

"""`jax.jit` that preserves the function's type for editors and type checkers."""

import functools
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import jax

_STATIC = (numbers.Number, str, type(None))
Function = TypeVar("Function", bound=Callable[..., Any])


def jit(
    *static: str,
    scalars: Sequence[str] = (),
    checks: Mapping[str, Callable[[str, str, Any], None]] | None = None,
) -> Callable[[Function], Function]:
    """Makes a decorator that applies `jax.jit`.

    Args:
        *static: names of the arguments that are always static, as in `static_argnames`.
        scalars: names of keyword-only arguments that are numbers. In each call, one
            that is a Python number, a string, None or left out is static, so the
            function can check its value. An array or a sequence is traced, so a new
            value needs no compilation.
        checks: maps names of keyword-only arguments that are traced to functions that
            check their values beforehand. Such a function gets the name of the jitted
            function, the name of the argument, and its value. Under an outer `jax.jit`,
            the value may already be traced.
    """
    checks = checks or {}

    def decorate(function: Function) -> Function:
        @functools.cache
        def compiled_with(traced: tuple[str, ...]) -> Callable[..., Any]:
            untraced = (name for name in scalars if name not in traced)
            return jax.jit(function, static_argnames=(*static, *untraced))

        if not scalars and not checks:
            return cast(Function, compiled_with(()))

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            for argument, check in checks.items():
                check(function.__name__, argument, kwargs.get(argument))
            traced = (x for x in scalars if not isinstance(kwargs.get(x), _STATIC))
            return compiled_with(tuple(traced))(*args, **kwargs)

        return cast(Function, call)

    return decorate

"""`jax.jit` that preserves the function's type for editors and type checkers."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax

Function = TypeVar("Function", bound=Callable[..., Any])


def jit(*static: str) -> Callable[[Function], Function]:
    """Decorator that applies `jax.jit` with the named arguments static."""

    def decorate(function: Function) -> Function:
        return cast(Function, jax.jit(function, static_argnames=static))

    return decorate

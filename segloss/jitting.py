"""`jax.jit` that keeps the type of the function, for editors and type checkers."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax

Function = TypeVar("Function", bound=Callable[..., Any])


def jit(*static: str) -> Callable[[Function], Function]:
    """A decorator: `jax.jit` with these arguments static."""

    def decorate(function: Function) -> Function:
        return cast(Function, jax.jit(function, static_argnames=static))

    return decorate

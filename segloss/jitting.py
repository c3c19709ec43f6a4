"""`jax.jit` that preserves the function's type for editors and type checkers."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import jax

Function = TypeVar("Function", bound=Callable[..., Any])


def jit(*static: str, scalars: Sequence[str] = ()) -> Callable[[Function], Function]:
    """Decorator that applies `jax.jit` with the named arguments static.

    Arguments named in `scalars` are keyword-only numbers. A Python number is static, so
    that the function can check it; an array is traced, so that a new value needs no
    compilation.
    """

    def decorate(function: Function) -> Function:
        compiled = jax.jit(function, static_argnames=(*static, *scalars))
        if not scalars:
            return cast(Function, compiled)

        @functools.cache
        def compiled_with(traced: tuple[str, ...]) -> Callable[..., Any]:
            names = (*static, *(name for name in scalars if name not in traced))
            return jax.jit(function, static_argnames=names)

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            traced = [x for x in scalars if isinstance(kwargs.get(x), jax.Array)]
            chosen = compiled_with(tuple(traced)) if traced else compiled
            return chosen(*args, **kwargs)

        return cast(Function, call)

    return decorate

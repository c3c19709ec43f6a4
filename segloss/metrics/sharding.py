"""Support for arrays sharded over a mesh with explicit axes."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array


def replicated(count: Callable[..., Any], *arrays: Array) -> Any:
    """Calls `count(*arrays)`; on a mesh with explicit axes, replicates the result.

    On such a mesh, JAX rejects a product, scatter or window over a sharded axis because
    the sharding of the result is ambiguous. `count` therefore runs with automatic axes.
    """
    for array in arrays:
        mesh = jax.typeof(array).sharding.mesh
        if mesh.explicit_axes:
            count = jax.sharding.auto_axes(
                count,
                axes=mesh.explicit_axes,
                out_sharding=NamedSharding(mesh, PartitionSpec()),
            )
            break
    return count(*arrays)

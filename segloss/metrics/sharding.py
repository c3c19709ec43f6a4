"""Metrics of arrays that a mesh shards with explicit axes."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array


def replicated(count: Callable[..., Any], *arrays: Array) -> Any:
    """Calls `count(*arrays)`; on a mesh with explicit axes, every device gets the sums.

    There JAX refuses a product, a scatter or a window over a sharded axis, because it
    does not know how to shard the result. Inside `count` the axes are automatic.
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

"""Runs a step on all devices of this process, and moves arrays to them and back.

A mapped step is a result of `map_over_devices`. All arrays that it takes and returns
have a leading axis over the devices.
"""

import collections
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from segloss.errors import SeglossError

# Name of the mapped axis in every step; losses and BatchNorm sum over it.
AXIS = "devices"
MAPPINGS = ("pmap", "shard_map")


def map_over_devices(
    step: Callable,
    *,
    mapping: str = "pmap",
    donate_first: bool = False,
    devices: Sequence[jax.Device] | None = None,
    **parts: Any,
) -> Callable:
    """Compiles a step that is written for one device, so that it runs on all devices.

    Args:
        step: takes trees of arrays without a device axis; may use collectives, such as
            `psum`, over the axis name `AXIS`.
        mapping: "pmap" uses `jax.pmap`, "shard_map" uses `jax.jit` of `jax.shard_map`.
            Both run the same program.
        donate_first: True lets the step overwrite its first argument, which cannot be
            used again; False keeps it.
        devices: the devices; None means all devices of this process.
        **parts: keyword arguments of `step` that are the same for every call.

    Returns:
        A function of the positional arguments of `step`. Its arguments and results have
        a leading axis over the devices.

    Raises:
        ValueError: if `mapping` is unknown.
    """
    step = functools.partial(step, **parts)
    donate = 0 if donate_first else ()
    if mapping == "pmap":
        return jax.pmap(step, axis_name=AXIS, donate_argnums=donate, devices=devices)
    if mapping != "shard_map":
        raise SeglossError(
            f"config.mapping must be {' or '.join(map(repr, MAPPINGS))}, "
            f"got {mapping!r}."
        )

    def on_each(*args: Any) -> Any:
        result = step(*jax.tree.map(lambda x: x[0], args))
        return jax.tree.map(lambda x: x[None], result)

    mapped = jax.shard_map(
        on_each,
        mesh=_mesh(devices),
        in_specs=jax.P(AXIS),
        out_specs=jax.P(AXIS),
        # Steps return what `psum` made equal, which pmap does not check either.
        check_vma=False,
    )
    return jax.jit(mapped, donate_argnums=donate)


def replicate(tree: Any, devices: Sequence[jax.Device] | None = None) -> Any:
    """Copies a tree of arrays to each device, as an argument of a mapped step.

    Args:
        tree: arrays without a device axis.
        devices: the devices; None means all devices of this process.

    Returns:
        The tree with arrays `[n, ...]`, one copy on each of `n` devices. Their sharding
        is that of a mapped step's results. The sharding of `flax.jax_utils.replicate`
        differs, so the second step would be compiled again.
    """
    devices = devices or jax.local_devices()
    copy = jax.pmap(
        lambda _, leaf: leaf, in_axes=(0, None), axis_name=AXIS, devices=devices
    )
    return copy(np.arange(len(devices)), tree)


def shard(batch: Any, num_devices: int | None = None) -> Any:
    """Reshapes each array of a batch from `[b, ...]` to `[n, b / n, ...]`.

    `n` is `num_devices`; None means the number of devices of this process. No data is
    moved to the devices.
    """
    devices = num_devices or jax.local_device_count()
    return jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), batch)


def prefetch_to_devices(batches: Iterable[Any], *, ahead: int = 2) -> Iterator[Any]:
    """Yields batches on all devices of this process; sends each `ahead` batches early.

    Each batch is reshaped by `shard`. Unlike flax's `prefetch_to_device`, this makes no
    copy of a batch on the host.
    """
    # Use the mesh of the mapped steps; otherwise a batch would be copied again.
    sharding = jax.NamedSharding(_mesh(None), jax.P(AXIS))
    sent = collections.deque()
    for batch in batches:
        sent.append(jax.device_put(shard(batch), sharding))
        if len(sent) > ahead:
            yield sent.popleft()
    yield from sent


def first_replica(tree: Any) -> Any:
    """Copies a replicated tree from its first device to NumPy arrays.

    The result has no device axis.
    """
    return jax.tree.map(
        lambda x: np.asarray(x.addressable_shards[0].data).reshape(x.shape[1:]), tree
    )


def _mesh(devices: Sequence[jax.Device] | None) -> jax.sharding.Mesh:
    return jax.sharding.Mesh(np.array(devices or jax.local_devices()), (AXIS,))

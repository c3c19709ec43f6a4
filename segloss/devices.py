"""Runs a step on all devices of the run, and moves arrays to them and back.

A mapped step is a result of `map_over_devices`. All arrays that it takes and returns
have a leading axis over the devices of this process. A run has the devices of all its
processes, which must call a mapped step in the same order.
"""

import collections
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from segloss import hosts
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
        devices: the devices; None means all devices of all processes. With
            `jax.local_devices()`, a process runs the step without the others.
        **parts: keyword arguments of `step` that are the same for every call.

    Returns:
        A function of the positional arguments of `step`. Its arguments and results have
        a leading axis over the devices of this process.

    Raises:
        ValueError: if `mapping` is unknown.
    """
    step = functools.partial(step, **parts)
    donate = 0 if donate_first else ()
    mesh = _mesh(devices or jax.devices())
    if mapping == "pmap":
        mapped = jax.pmap(step, axis_name=AXIS, donate_argnums=donate, devices=devices)
        return _called_together(mapped) if mesh.is_multi_process else mapped
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
        mesh=mesh,
        in_specs=jax.P(AXIS),
        out_specs=jax.P(AXIS),
        # Steps return what `psum` made equal, which pmap does not check either.
        check_vma=False,
    )
    compiled = jax.jit(mapped, donate_argnums=donate)
    if not mesh.is_multi_process:
        return compiled
    return _of_local_arrays(_called_together(compiled), mesh)


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


def _called_together(compiled: Callable) -> Callable:
    """Makes the first call of a step over several processes begin in all at one time.

    Each compiles in its own time, which depends on its caches. Collectives on CPU
    devices fail if a process calls them for the first time 30 s after another.
    """
    is_first_call = True

    def call(*args: Any) -> Any:
        nonlocal is_first_call
        if is_first_call:
            compiled.lower(*args).compile()  # which the call below finds
            hosts.exchange(None)
            is_first_call = False
        return compiled(*args)

    return call


def _of_local_arrays(compiled: Callable, mesh: jax.sharding.Mesh) -> Callable:
    """Makes a step over several processes take and return the part of this process."""

    def mapped(*args: Any) -> Any:
        given = multihost_utils.host_local_array_to_global_array(
            args, mesh, jax.P(AXIS)
        )
        return multihost_utils.global_array_to_host_local_array(
            compiled(*given), mesh, jax.P(AXIS)
        )

    return mapped


def _mesh(devices: Sequence[jax.Device] | None) -> jax.sharding.Mesh:
    return jax.sharding.Mesh(np.array(devices or jax.local_devices()), (AXIS,))

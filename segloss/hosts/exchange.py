"""Exchanges small values between the processes of a run, through JAX's coordinator.

JAX has collectives for arrays on devices only, and they fail after a fixed time. These
functions wait for as long as another process works, such as one that prepares a
dataset. All processes must call them in the same order, from their main thread.
"""

import io
import itertools
import json
import socket
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import jax
import numpy as np
from jax._src import distributed

T = TypeVar("T")
# Python handles signals only between two waits.
_WAIT_MS = 1000
_rounds = itertools.count()


def process_count() -> int:
    """Returns the number of processes of the run, without starting JAX's devices."""
    return distributed.global_state.num_processes


def process_index() -> int:
    """Returns the number of this process, from 0, without starting JAX's devices."""
    return distributed.global_state.process_id


def is_first() -> bool:
    """Whether this process is number 0, which writes files and prints for all."""
    return process_index() == 0


def exchange(
    value: Any, *, while_waiting: Callable[[], None] = lambda: None
) -> list[Any]:
    """Returns the values of all processes, in the order of their numbers.

    Args:
        value: this process's value, which can be written as JSON.
        while_waiting: called every second until all values have arrived.
    """
    parts = _exchange_bytes(json.dumps(value).encode(), while_waiting)
    return [json.loads(part) for part in parts]


def of_first(make: Callable[[], T]) -> T:
    """Calls `make` in the first process only, and returns its result in all.

    Args:
        make: returns a value that can be written as JSON.
    """
    return exchange(make() if is_first() else None)[0]


def exchange_arrays(array: np.ndarray) -> list[np.ndarray]:
    """Returns the arrays of all processes, in the order of their numbers.

    Their shapes may differ. All types arrive unchanged, int64 included, which JAX's own
    `process_allgather` would cut to int32.
    """
    if process_count() == 1:
        return [array]
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    parts = _exchange_bytes(file.getvalue())
    return [np.load(io.BytesIO(part), allow_pickle=False) for part in parts]


def after_first(make: Callable[[], T], *, on_each_host: bool = False) -> T:
    """Calls `make` in the first process; then, once it is done, in all others.

    For work that the first call saves to files and later calls read.

    Args:
        make: called once in every process.
        on_each_host: True for files that the hosts do not share: then the first process
            of each host calls `make` before the others of that host.
    """
    hosts = exchange(socket.gethostname()) if on_each_host else [""] * process_count()
    index = process_index()
    leads = hosts.index(hosts[index]) == index
    if leads:
        made = make()
    exchange(None)
    return made if leads else make()


def send_to_first(
    parts: Iterable[bytes], receive: Callable[[int, bytes], None]
) -> None:
    """Sends bytes from all processes to the first, which holds one part at a time.

    Args:
        parts: what this process sends; the first process sends nothing. A part may be
            some megabytes long.
        receive: called in the first process, with the number of the sender and one of
            its parts: all parts of process 1 in their order, then those of process 2.
    """
    client, number = distributed.global_state.client, next(_rounds)

    def key(kind: str, sender: int, k: int) -> str:
        return f"segloss/{kind}/{number}/{sender}/{k}"

    if is_first():
        for sender in range(1, process_count()):
            for k in itertools.count():
                # A sender waits for this, so that parts do not pile up.
                client.key_value_set_bytes(key("wanted", sender, k), b"")
                part = _wait_for(key("part", sender, k))
                for kind in ("wanted", "part"):
                    client.key_value_delete(key(kind, sender, k))
                if not part:
                    break
                receive(sender, part)
    else:
        for k, part in enumerate(itertools.chain(filter(None, parts), [b""])):
            _wait_for(key("wanted", process_index(), k))
            client.key_value_set_bytes(key("part", process_index(), k), part)


def _exchange_bytes(
    value: bytes, while_waiting: Callable[[], None] = lambda: None
) -> list[bytes]:
    count, index = process_count(), process_index()
    if count == 1:
        return [value]
    client, number = distributed.global_state.client, next(_rounds)
    client.key_value_set_bytes(_key(number, index), value)
    parts = [_wait_for(_key(number, other), while_waiting) for other in range(count)]
    # All processes have set their values of this round, so they have read those of the
    # round before.
    if number:
        client.key_value_delete(_key(number - 1, index))
    return parts


def _wait_for(key: str, while_waiting: Callable[[], None] = lambda: None) -> bytes:
    """Waits for a value for as long as it takes.

    The wait ends earlier if a process fails; see `segloss.hosts.watch`.
    """
    client = distributed.global_state.client
    while True:
        try:
            return client.blocking_key_value_get_bytes(key, _WAIT_MS)
        except jax.errors.JaxRuntimeError as error:
            if not str(error).startswith("DEADLINE_EXCEEDED"):
                raise
        while_waiting()


def _key(number: int, index: int) -> str:
    return f"segloss/exchange/{number}/{index}"

"""Work that the processes of a run share, and that any of them can end for all."""

import contextlib
import itertools
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax._src import distributed

from segloss.hosts.exchange import exchange, process_count

# Asking the coordinator takes 0.7 ms.
_POLL_SECONDS = 1.0
_numbers = itertools.count()


class Interrupted(Exception):  # noqa: N818, not an error
    """Ends shared work in all processes, such as once a signal asked one to stop.

    Attributes:
        reason: what all processes learn about it, such as the number of a signal; a
            value that can be written as JSON.
    """

    def __init__(self, reason: Any = None):
        super().__init__(reason)
        self.reason = reason


@contextlib.contextmanager
def shared_work(check: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """Runs a block that all processes finish together, or none of them.

    The end of the block waits for all processes. If one of them raises `Interrupted` in
    the block, all leave it soon, and all raise `Interrupted` with the same reason. Any
    other exception is raised at once; `segloss.hosts.watch` tells the other processes.
    A single process runs the block as it is.

    Args:
        check: called every second while this process has finished and waits for the
            others; may raise `Interrupted`, which ends the block in the others. If they
            finish before they learn of it, the work counts as finished.

    Yields:
        A function that the block must call often: it raises `Interrupted` if another
        process was interrupted, which it looks up at most once a second.
    """
    if process_count() == 1:
        yield lambda: None
        return
    work = _Work(next(_numbers), check)
    own = None
    try:
        yield work.poll
    except Interrupted as error:
        own = error
        work.tell(error)
    outcome = {"reason": own.reason} if own else None
    outcomes = exchange(outcome, while_waiting=work.check_for_others)
    # Everybody has left the block, so nobody looks the interruption up any more.
    work.forget()
    reasons = [outcome["reason"] for outcome in outcomes if outcome]
    if reasons:
        raise Interrupted(reasons[0]) from own


class _Work:
    """One block of shared work, in one process."""

    def __init__(self, number: int, check: Callable[[], None]):
        self._key = f"segloss/interrupted/{number}"
        self._check = check
        self._told = False
        self._polled = time.monotonic()

    def poll(self) -> None:
        if time.monotonic() < self._polled + _POLL_SECONDS:
            return
        self._polled = time.monotonic()
        try:
            value = distributed.global_state.client.key_value_try_get(self._key)
        except jax.errors.JaxRuntimeError as error:
            if "NOT_FOUND" not in str(error):
                raise
        else:
            raise Interrupted(json.loads(value))

    def check_for_others(self) -> None:
        """Calls `check`; tells the processes that still work if it raises."""
        if self._told:
            return
        try:
            self._check()
        except Interrupted as error:
            self.tell(error)

    def tell(self, error: Interrupted) -> None:
        """Tells the other processes of an interruption."""
        self._told = True
        distributed.global_state.client.key_value_set(
            self._key, json.dumps(error.reason), allow_overwrite=True
        )

    def forget(self) -> None:
        if self._told:
            distributed.global_state.client.key_value_delete(self._key)

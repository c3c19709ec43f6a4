"""Interleaved timing, so that load on the machine affects all candidates equally."""

import ctypes
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple, TypeVar

Name = TypeVar("Name", bound=Hashable)


# Parameters of `mallopt`, from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Lets arrays on the CPU reuse freed memory, as GPU allocators do.

    By default glibc requests each large array from the system and returns it. Clearing
    its pages takes longer than many losses and would distort the timings.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)


class Ratio(NamedTuple):
    """Statistics over the rounds: time of one candidate divided by that of another."""

    median: float
    lowest: float
    highest: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.lowest:.2f} to {self.highest:.2f})"


def interleave(
    candidates: Mapping[Name, Callable[[], object]],
    rounds: int,
    *,
    on_call: Callable[[Name], object] = lambda name: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Name, list[float]]:
    """Times each candidate once per round; returns the seconds of each round.

    Every other round runs in reverse order, so that no candidate always follows the
    same neighbour. A first, uncounted round compiles and fills caches.

    Args:
        candidates: functions to time; each must return only when its work is done.
        rounds: number of counted rounds, at least 1.
        on_call: called with the name before each call, also in the uncounted round.
        clock: returns the time in seconds.

    Raises:
        ValueError: if `rounds` is less than 1.
    """
    if rounds < 1:
        raise ValueError(f"interleave: rounds must be at least 1, got {rounds}.")
    seconds = {name: [] for name in candidates}
    names = list(candidates)
    for i in range(rounds + 1):
        for name in names if i % 2 else reversed(names):
            on_call(name)
            start = clock()
            candidates[name]()
            seconds[name].append(clock() - start)
    return {name: times[1:] for name, times in seconds.items()}


def ratio(seconds: Sequence[float], reference: Sequence[float]) -> Ratio:
    """Returns the median, lowest and highest of `seconds / reference` per round.

    Dividing within a round cancels the load of the machine during that round.
    """
    ratios = [a / b for a, b in zip(seconds, reference, strict=True)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))

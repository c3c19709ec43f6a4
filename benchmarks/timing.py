"""Times of alternatives, taken in turns so that a busy machine slows all alike."""

import ctypes
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple, TypeVar

Name = TypeVar("Name", bound=Hashable)


# Parameters of mallopt in glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Lets arrays on CPU reuse the memory of earlier ones, as allocators of GPUs do.

    Otherwise glibc takes each large array from the system and gives it back, and the
    time to clear its pages, more than many losses need, is counted or not as it comes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)


class Ratio(NamedTuple):
    """How many times longer one candidate takes than another, over the rounds."""

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
    """Seconds that each candidate takes, once in every round.

    Every other round goes backwards, so that none always follows the same neighbour. A
    round before the first is not counted: it compiles and fills caches.

    Args:
        candidates: what to time; a call must return only when its work is done.
        rounds: how often, at least 1.
        on_call: told the name before each call, the uncounted ones too.
        clock: seconds.

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
    """`seconds / reference` of each round: what slows a round cancels."""
    ratios = [a / b for a, b in zip(seconds, reference, strict=True)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))

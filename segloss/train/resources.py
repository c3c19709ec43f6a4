"""Counts compilations, measures memory, and warns of a step that is compiled again."""

import functools
import resource
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

_GIB = 2**30


@functools.cache
def compilations() -> Callable[[], int]:
    """Returns a function that counts the programs compiled since this first call.

    A program that is loaded from JAX's persistent cache counts as well. JAX calls the
    listener for the rest of the process, so there is only one.
    """
    count = 0

    def on_event(event: str, seconds: float, **_: Any) -> None:
        nonlocal count
        count += event == "/jax/core/compile/backend_compile_duration"

    jax.monitoring.register_event_duration_secs_listener(on_event)
    return lambda: count


def measure_memory() -> dict[str, float]:
    """Measures the memory of this process and of its devices, now and at the most.

    Returns:
        Numbers of GiB by name. `host_memory_gib` is missing where there is no `/proc`,
        and the memory of devices where they do not tell, as CPUs. Of several devices
        the fullest counts.
    """
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    measured = {"host_memory_peak_gib": peak / _GIB}
    statm = Path("/proc/self/statm")
    if statm.exists():
        now = int(statm.read_text().split()[1]) * resource.getpagesize()
        measured["host_memory_gib"] = now / _GIB
        # Linux updates the peak only now and then.
        measured["host_memory_peak_gib"] = max(peak, now) / _GIB
    devices = [d.memory_stats() or {} for d in jax.local_devices()]
    for name, field in {
        "device_memory_gib": "bytes_in_use",
        "device_memory_peak_gib": "peak_bytes_in_use",
    }.items():
        if told := [stats[field] for stats in devices if field in stats]:
            measured[name] = max(told) / _GIB
    return measured


class CompiledOnce:
    """Calls a mapped step, and warns once if a later call compiles it again.

    Args:
        step: the step; its arguments are trees of arrays.
        name: what the warning calls it.
    """

    def __init__(self, step: Callable, name: str):
        self._step = step
        self._name = name
        self._first: dict[str, str] = {}
        self._warned = False

    def __call__(self, *args: Any) -> Any:
        count = compilations()
        before = count()
        result = self._step(*args)
        if count() > before and not self._warned:
            self._compare(_describe(args))
        return result

    def _compare(self, described: dict[str, str]) -> None:
        if not self._first:
            self._first = described
            return
        self._warned = True
        changes = [
            f"{path} was {self._first.get(path, 'absent')}, is "
            f"{described.get(path, 'absent')}"
            for path in sorted(self._first.keys() | described.keys())
            if self._first.get(path) != described.get(path)
        ]
        more = f" and {len(changes) - 3} more" if changes[3:] else ""
        why = "; ".join(changes[:3]) + more or "its arguments look the same"
        warnings.warn(
            f"{self._name} was compiled again, which takes as long as the first time: "
            f"{why}. Later ones are not reported; `compilations` in metrics.jsonl "
            "counts them.",
            stacklevel=3,
        )


def _describe(args: Any) -> dict[str, str]:
    """Maps the path of each array in a tree to its type, shape and sharding."""
    # Arrays that the step was allowed to overwrite are gone, but can be described.
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): " ".join(
            map(str, (x.dtype, x.shape, getattr(x, "sharding", "on the host")))
        )
        for path, x in jax.tree_util.tree_leaves_with_path(args)
    }

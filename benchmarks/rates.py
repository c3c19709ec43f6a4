"""Images per second that chips need, from the steps that were compiled for them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.table import Table

from segloss.report import make_table


class Peak(NamedTuple):
    """What a chip can do at most, as its maker states, and the chips of a host."""

    flops: float  # per second, bfloat16
    traffic: float  # bytes per second
    chips_per_host: int


PEAKS = {"v5e": Peak(197e12, 819e9, 4), "h100": Peak(989e12, 3.35e12, 8)}


class Rate(NamedTuple):
    """Images per second that one chip trains with.

    Attributes:
        limit: what its peak arithmetic and its memory bandwidth allow.
        wanted: at a share of its peak arithmetic, but not more than `limit`.
    """

    limit: float
    wanted: float


def rate_of(step: Mapping[str, Any], peak: Peak, utilisation: float) -> Rate:
    """Returns the rate of a compiled step, a result of `benchmarks.compiled_steps`."""
    arithmetic = step["batch"] * peak.flops / step["flops"]
    memory = step["batch"] * peak.traffic / step["traffic_bytes"]
    limit = min(arithmetic, memory)
    return Rate(limit, min(limit, utilisation * arithmetic))


def rate_table(
    steps: Sequence[Mapping[str, Any]], cores: Mapping[str, float], utilisation: float
) -> Table:
    """Makes a table with a row for each compiled step.

    `cores` has the images per second of a core by the name of the data.
    """
    columns = ("TFLOP/image", "GB/image", "images/s of a chip: limit")
    columns += (f"at {utilisation:.0%}", "images/s of a host", "of all chips")
    columns += tuple(f"cores per host: {name}" for name in cores)
    table = make_table(["network", "chips (hosts)"], columns)
    for step in steps:
        peak = PEAKS[step["chip"].partition(":")[0]]
        rate = rate_of(step, peak, utilisation)
        of_host = rate.wanted * min(peak.chips_per_host, step["chips"])
        table.add_row(
            f"{step['network']} {step['size']}x{step['size']}",
            f"{step['chip']}: {step['chips']} ({step['hosts']})",
            f"{step['flops'] / step['batch'] / 1e12:.2f}",
            f"{step['traffic_bytes'] / step['batch'] / 1e9:.1f}",
            *(f"{x:.0f}" for x in rate),
            f"{of_host:.0f}",
            f"{rate.wanted * step['chips']:.0f}",
            *(f"{of_host / speed:.1f}" for speed in cores.values()),
        )
    return table

"""Tables of the results of `benchmarks.compiled`."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rich.table import Table

from benchmarks.chips import CHIPS, Compiled
from benchmarks.compiled_bars import Results, missed_bars, references
from benchmarks.compiled_cases import (
    CROSS_ENTROPY,
    KERAS,
    OPTAX,
    OURS,
    TEXTBOOK,
    Case,
    Key,
)
from segloss.report import make_table

Name = tuple[str, str, str]  # dtype, case, and "ours" or the name of a peer


class Measured(NamedTuple):
    """Stored results of a chip.

    Attributes:
        chip: key of `CHIPS`.
        results: figures of each compiled program.
        failures: the reason for each that does not compile.
        versions: versions of the packages.
    """

    chip: str
    results: Results
    failures: Mapping[Name, str]
    versions: str


def wanted(picked: Mapping[Key, Case], cases: Mapping[Key, Case]) -> list[Name]:
    """Returns the names of the programs that the tables of `picked` cases need.

    These include candidates of other cases with which their bars compare.
    """
    names = {
        (*key, who): None for key, case in picked.items() for who in case.candidates
    }
    for (dtype, name), case in picked.items():
        for other, who in references(name, case):
            if (dtype, other) in cases and who in cases[dtype, other].candidates:
                names[dtype, other, who] = None
    return list(names)


def loss_table(
    of_chips: Mapping[str, Measured],
    picked: Mapping[Key, Case],
    cases: Mapping[Key, Case],
) -> Table:
    """Makes a table with a row for each chip, dtype and case, without variants."""
    peers = (TEXTBOOK, OPTAX, KERAS)
    columns = ("floor", "traffic", *peers, "temporaries", *(f"of {x}" for x in peers))
    columns += ("compile s", "x optax's CE")
    table = make_table(["chip", "dtype", "case"], columns, ["bars met"])
    for chip, found in of_chips.items():
        for key, case in picked.items():
            if case.plain or not _was_tried(key, found):
                continue
            figures = [found.results.get((*key, who)) for who in (OURS, *peers)]
            reference = found.results.get((key[0], CROSS_ENTROPY, OPTAX))
            ours = figures[0]
            both = ours and reference
            seconds = ours.compile_seconds if ours else math.nan
            table.add_row(
                CHIPS[chip].title,
                *key,
                f"{case.floor_bytes / case.unit_bytes:.2f}",
                *(traffic(x, case) for x in figures),
                *(temporaries(x, case) for x in figures),
                f"{seconds:.1f}" if ours else "",
                f"{seconds / reference.compile_seconds:.1f}" if both else "",
                in_words(misses(key, cases, found)),
            )
    return table


def variant_table(
    of_chips: Mapping[str, Measured],
    picked: Mapping[Key, Case],
    cases: Mapping[Key, Case],
) -> Table:
    """Makes the table of variants: traffic, ratio to the plain case, temporaries."""
    columns = (
        column
        for chip in of_chips
        for column in (f"{CHIPS[chip].title}: traffic", "x plain", "temporaries")
    )
    table = make_table(["dtype", "variant"], columns, ["bars met"])
    for (dtype, name), case in picked.items():
        key = (dtype, name)
        if not case.plain or not any(_was_tried(key, x) for x in of_chips.values()):
            continue
        cells, missed = [], []
        for chip, found in of_chips.items():
            ours = found.results.get((*key, OURS))
            plain = found.results.get((dtype, case.plain, OURS))
            ratio = ""
            if ours and plain:
                scale = cases[dtype, case.plain].unit_bytes / case.unit_bytes
                ratio = f"{scale * ours.traffic_bytes / plain.traffic_bytes:.2f}"
            cells += [traffic(ours, case), ratio, temporaries(ours, case)]
            missed += [f"{CHIPS[chip].title} {x}" for x in misses(key, cases, found)]
        table.add_row(dtype, name, *cells, in_words(missed))
    return table


def _was_tried(key: Key, found: Measured) -> bool:
    return (*key, OURS) in found.results or (*key, OURS) in found.failures


def traffic(compiled: Compiled | None, case: Case) -> str:
    if compiled is None:
        return ""
    more = "more than " if compiled.unknown_loops else ""
    return f"{more}{compiled.traffic_bytes / case.unit_bytes:.2f}"


def temporaries(compiled: Compiled | None, case: Case) -> str:
    if compiled is None:
        return ""
    return f"{compiled.temporary_bytes / case.unit_bytes:.2f}"


def misses(key: Key, cases: Mapping[Key, Case], found: Measured) -> list[str]:
    """Describes each limit ("bar") that our implementation misses.

    Returns ["does not compile"] if it does not, and nothing if it has not been tried.
    """
    if (*key, OURS) in found.failures:
        return ["does not compile"]
    if (*key, OURS) not in found.results:
        return []
    return missed_bars(found.chip, key, cases, found.results)


def in_words(missed: Sequence[str]) -> str:
    return f"no: {'; '.join(missed)}" if missed else "yes"

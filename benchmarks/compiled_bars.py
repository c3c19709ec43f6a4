"""Limits ("bars") that the results of `benchmarks.compiled` must meet."""

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

from benchmarks.chips import Compiled
from benchmarks.compiled_cases import (
    CROSS_ENTROPY,
    OPTAX,
    OURS,
    TEXTBOOK,
    Case,
    Key,
)

Results = Mapping[tuple[str, str, str], Compiled]  # of one chip, by dtype, name, who

LOVASZ = "lovasz_softmax"
# Limit of a variant's traffic relative to the plain case.
VARIANT_BAR = 1.3
COMPILE_BAR = 2.0  # relative to the compile time of optax's cross-entropy

_PIXELS = rf"{CROSS_ENTROPY}( void| weights)?"
_OVERLAP = (
    r"soft_dice( linear| void)?|soft_iou|(focal_)?tversky|generalized_dice|"
    r"log_cosh_dice"
)


class Bars(NamedTuple):
    """Limits of float32 losses and of metrics on a chip, in units of `Case.unit_bytes`.

    Attributes:
        traffic: limit of traffic, by a pattern of names.
        temporaries: limit of temporaries for every loss except `lovasz_softmax`.
        lovasz_temporaries: limit of temporaries for `lovasz_softmax`, which sorts.
    """

    traffic: Mapping[str, float]
    temporaries: float
    lovasz_temporaries: float | None = None


_TPU = Bars(
    {
        rf"{_PIXELS}|focal_loss|poly_loss": 5.4,
        _OVERLAP: 7.2,
        "top_k_cross_entropy": 8.0,
        LOVASZ: 175.0,
        "confusion_matrix.*": 1.2,
    },
    temporaries=0.1,
    lovasz_temporaries=4.0,
)
BARS: Mapping[str, Bars] = MappingProxyType(
    {
        "v5e": _TPU,
        "v6e": _TPU,
        "h100": Bars({_PIXELS: 4.5, _OVERLAP: 5.4}, temporaries=0.35),
    }
)


def references(name: str, case: Case) -> list[tuple[str, str]]:
    """Returns (name, candidate) of the programs to which the bars of a case refer."""
    others = [(CROSS_ENTROPY, OPTAX)]
    if case.plain:
        others.append((case.plain, OURS))
    if name == f"{LOVASZ} bins":
        others.append((LOVASZ, OURS))
    return others


def missed_bars(
    chip: str, key: Key, cases: Mapping[Key, Case], results: Results
) -> list[str]:
    """Describes each bar that our implementation of a case misses on a chip."""
    return [
        f"{what} {value:.2f} > {limit:.2f}"
        for what, value, limit in _limits(chip, key, cases, results)
        if limit is not None and value > limit + 0.005  # figures have two decimals
    ]


def _limits(
    chip: str, key: Key, cases: Mapping[Key, Case], results: Results
) -> Iterator[tuple[str, float, float | None]]:
    """Yields what is limited, such as "traffic", its value, and the limit.

    The limit is None if the result to which it refers is missing.
    """
    dtype, name = key
    case, ours = cases[key], results[*key, OURS]
    traffic = ours.traffic_bytes / case.unit_bytes

    def traffic_of(other: str, who: str) -> float | None:
        found = results.get((dtype, other, who))
        return found and found.traffic_bytes / cases[dtype, other].unit_bytes

    if chip in BARS and dtype != "bfloat16":
        bars = BARS[chip]
        for pattern, limit in bars.traffic.items():
            if re.fullmatch(pattern, name):
                yield "traffic", traffic, limit
        if case.is_loss:
            limit = bars.lovasz_temporaries if name == LOVASZ else bars.temporaries
            yield "temporaries", ours.temporary_bytes / case.unit_bytes, limit
    if dtype == "bfloat16" and not case.plain:
        yield "traffic, textbook", traffic, traffic_of(name, TEXTBOOK)
    if name == "sigmoid_cross_entropy" or (dtype == "bfloat16" and chip == "h100"):
        yield "traffic, optax", traffic, traffic_of(name, OPTAX)
    if name == f"{LOVASZ} bins":
        exact = traffic_of(LOVASZ, OURS)
        yield "traffic, half of exact", traffic, exact and exact / 2
    if case.plain:
        plain = traffic_of(case.plain, OURS)
        # Allow for the extra traffic of labels as large as the logits.
        scale = _floor(case) / _floor(cases[dtype, case.plain])
        yield "traffic, plain", traffic, plain and VARIANT_BAR * scale * plain
    reference = results.get((dtype, CROSS_ENTROPY, OPTAX))
    if case.is_loss and reference:
        limit = COMPILE_BAR * reference.compile_seconds
        yield "compile s", ours.compile_seconds, limit


def _floor(case: Case) -> float:
    return case.floor_bytes / case.unit_bytes

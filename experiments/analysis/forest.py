"""Plots differences of many studies: a row each, and by what the data are like."""

import functools
from collections.abc import Iterator, Sequence

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from experiments.analysis.compare import verdict
from experiments.analysis.evidence import KINDS, OTHERS, PAPERS, Evidence
from experiments.analysis.figures import legend_below, name_rows, role_of
from experiments.analysis.panels import Panel, Theme

_MARKERS = dict(zip(KINDS, "osDX", strict=True))
_GROUPS = (*PAPERS.values(), OTHERS)
# Points that would lie on each other are drawn this share of the axis apart, within a
# share of it.
_ASIDE, _SPREAD = 0.012, 0.14


def by_loss(found: Sequence[Evidence]) -> dict[str, list[Evidence]]:
    """Groups comparisons by loss; in each they are by kind, then by study."""
    ordered = sorted(found, key=lambda e: (KINDS.index(e.kind), e.study))
    groups = {group: [e for e in ordered if e.group == group] for group in _GROUPS}
    return {group: some for group, some in groups.items() if some}


def forest_panels(found: Sequence[Evidence]) -> Iterator[Panel]:
    """Plots all differences with their intervals, a panel per loss, a row each.

    The marker tells the kind of the comparison. It is filled if the study reached its
    bars. To the right are the Gini coefficient of the classes, and the mean IoU of the
    baseline.
    """
    for group, some in by_loss(found).items():
        yield Panel(
            group,
            f"{len(some)} differences of mean IoU with {group}.",
            (0.9 + 0.22 * len(some), 8.6),
            functools.partial(_draw_forest, found=some, limits=_limits(found)),
        )
    yield Panel(
        "",
        "What the markers mean.",
        (0.6, 8.6),
        functools.partial(_draw_markers, found=found),
    )


def data_panels(found: Sequence[Evidence]) -> Iterator[Panel]:
    """Plots differences by how long-tailed the data are, and by the baseline's score.

    Colours tell losses; markers are those of `forest_panels`. Points of equal data or
    baselines are drawn side by side.
    """
    tail, score = "Gini coefficient of the classes", "mean IoU of the baseline, percent"
    for title, field, label, end in (
        ("by how long-tailed", "gini", tail, 1),
        ("by how far trained", "baseline_mean_iou", score, 100),
    ):
        yield Panel(
            title,
            f"{len(found)} differences of mean IoU by {label}.",
            (4.6, 4.3),
            functools.partial(_draw_by, found=found, field=field, label=label, end=end),
        )


def _limits(found: Sequence[Evidence]) -> tuple[float, float]:
    ends = [0.0, *(end for e in found for end in (e.low, e.high))]
    margin = 0.04 * (max(ends) - min(ends)) + 0.05
    return min(ends) - margin, max(ends) + margin


def _draw_forest(
    axes: Axes, theme: Theme, found: Sequence[Evidence], limits: tuple[float, float]
) -> None:
    aside = dict(transform=axes.get_yaxis_transform(), fontsize=8, va="center")
    for row, one in enumerate(found):
        color = getattr(theme, role_of(verdict(one.interval)))
        style = dict(color=color, linewidth=2, solid_capstyle="round")
        axes.plot([one.low, one.high], [row, row], **style)
        _mark(axes, one, one.difference, row, color, size=6)
        axes.text(1.03, row, f"{one.gini:.2f}", color=theme.muted, **aside)
        score = f"{one.baseline_mean_iou:.1f}"
        axes.text(1.12, row, score, color=theme.muted, **aside)
    axes.text(1.03, -1, "Gini", color=theme.ink, **aside)
    axes.text(1.12, -1, "baseline", color=theme.ink, **aside)
    axes.axvline(0, color=theme.ink, linewidth=1)
    name_rows(axes, [f"{one.study}: {one.arm}" for one in found])
    axes.set_xlim(limits)
    axes.set_xlabel("points of mean IoU; the line is the 95 % interval")


def _draw_markers(axes: Axes, theme: Theme, found: Sequence[Evidence]) -> None:
    axes.set_axis_off()
    kinds = [kind for kind in KINDS if any(e.kind == kind for e in found)]
    handles = _handles(theme, {kind: (theme.quiet, _MARKERS[kind]) for kind in kinds})
    axes.legend(frameon=False, loc="center", ncols=3, handles=handles)


def _draw_by(
    axes: Axes,
    theme: Theme,
    found: Sequence[Evidence],
    field: str,
    label: str,
    end: float,
) -> None:
    groups = by_loss(found)
    clusters: dict[float, list[Evidence]] = {}
    for one in (e for some in groups.values() for e in some):
        clusters.setdefault(round(getattr(one, field), 2), []).append(one)
    for x, some in clusters.items():
        step = end * min(_ASIDE, _SPREAD / len(some))
        for i, one in enumerate(some):
            place = x + (i - (len(some) - 1) / 2) * step
            color = theme.series[_GROUPS.index(one.group)]
            style = dict(color=color, linewidth=1, alpha=0.5)
            axes.plot([place, place], [one.low, one.high], **style)
            _mark(axes, one, place, one.difference, color, size=5)
    axes.axhline(0, color=theme.ink, linewidth=1)
    axes.set_xlim(0, end)
    axes.set_xlabel(label)
    axes.set_ylabel("difference of mean IoU in points")
    entries = {g: (theme.series[_GROUPS.index(g)], "o") for g in groups}
    legend_below(axes, columns=2, handles=_handles(theme, entries))


def _mark(
    axes: Axes, one: Evidence, x: float, y: float, color: str, *, size: float
) -> None:
    face = color if one.reached else "white"
    style = dict(color=color, markerfacecolor=face, markersize=size)
    axes.plot(x, y, _MARKERS[one.kind], **style)


def _handles(theme: Theme, entries: dict[str, tuple[str, str]]) -> list[Line2D]:
    """Makes the entries of a legend from colours and markers, by their label.

    Adds those of filled and of hollow markers.
    """
    filled = {name: (color, marker, color) for name, (color, marker) in entries.items()}
    filled["study reached its bars"] = (theme.ink, "o", theme.ink)
    filled["it did not, or had none"] = (theme.ink, "o", "white")
    return [
        Line2D([], [], linestyle="", color=c, marker=m, markerfacecolor=f, label=name)
        for name, (c, m, f) in filled.items()
    ]

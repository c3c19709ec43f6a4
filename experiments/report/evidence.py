"""Writes the page about Balance-batch from the comparisons of all studies."""

import dataclasses
import pathlib
from collections import Counter
from collections.abc import Iterator, Sequence

from matplotlib import style
from rich.table import Table
from rich.text import Text

from experiments.analysis.compare import (
    BETTER,
    NO_DIFFERENCE,
    WORSE,
    points,
    verdict,
)
from experiments.analysis.evidence import KINDS, PAPERS, Evidence
from experiments.analysis.forest import by_loss, data_panels, forest_panels
from experiments.analysis.panels import grid_figure
from experiments.analysis.pooling import pool
from experiments.analysis.statistics import Interval
from experiments.report.contents import render
from experiments.report.readme import check_place, replace_results
from segloss.errors import SeglossError
from segloss.report import make_table, markdown_table, save_figure

_WORDS = (BETTER, WORSE, NO_DIFFERENCE)
_ALL = "all losses"
# Comparisons with as many seeds are pooled: a study fixes its seeds before its first
# run, so which are pooled does not depend on what they show.
POOLED_SEEDS = 5


@dataclasses.dataclass(frozen=True)
class Group:
    """Comparisons of one kind and loss, of studies that all or none reached their bars.

    Attributes:
        loss: "all losses", or a group of `by_loss`.
        reached: True if the studies reached their bars, False if not or without any.
        pooled: mean difference over data sets, of `to_pool`, if `reached` and they are
            from two data sets or more; otherwise None. Points of networks that have
            learned little are no measure of anything.
    """

    loss: str
    kind: str
    reached: bool
    found: list[Evidence]
    pooled: Interval | None

    @property
    def data_sets(self) -> int:
        """The number of data sets that the comparisons are from."""
        return _count_data_sets(self.found)

    @property
    def pooled_data_sets(self) -> int:
        """The number of data sets that `pooled` is the mean over."""
        return _count_data_sets(to_pool(self.found))

    @property
    def counts(self) -> str:
        """How many are better, worse and without a difference, in words."""
        numbers = self.count()
        return ", ".join(f"{numbers[word]} {word}" for word in _WORDS)

    def count(self) -> Counter[str]:
        """Counts the comparisons of each verdict."""
        return Counter(verdict(one.interval) for one in self.found)


def make_groups(found: Sequence[Evidence]) -> list[Group]:
    """Groups comparisons; studies that reached their bars and all losses come first."""
    return [
        Group(loss, kind, reached, chosen, _pooled(chosen) if reached else None)
        for reached in (True, False)
        for kind in KINDS
        for loss, some in {_ALL: list(found), **by_loss(found)}.items()
        if (chosen := [e for e in some if (e.kind, bool(e.reached)) == (kind, reached)])
    ]


def to_pool(found: Sequence[Evidence]) -> list[Evidence]:
    """Chooses the comparisons with `POOLED_SEEDS` seeds or more."""
    return [one for one in found if one.seeds >= POOLED_SEEDS]


def _pooled(found: Sequence[Evidence]) -> Interval | None:
    chosen = to_pool(found)
    return pool(chosen) if _count_data_sets(chosen) > 1 else None


def _count_data_sets(found: Sequence[Evidence]) -> int:
    return len({one.data for one in found})


def write_evidence(found: Sequence[Evidence], page: pathlib.Path) -> None:
    """Writes plots to a folder named as `page`, and the results into `page`.

    Raises:
        ValueError: if there is no comparison, or the page lacks its markers.
    """
    if not found:
        raise SeglossError(
            "no study has compared Balance-batch with random batches yet; "
            "python -m experiments.collect STUDY writes its balance_batch.csv."
        )
    check_place(page)
    folder = page.with_suffix("")
    # The bytes must not depend on a user's matplotlibrc.
    with style.context("default"):
        for name, panels, columns in (
            ("forest", forest_panels(found), 1),
            ("by_data", data_panels(found), 2),
        ):
            figure = grid_figure(list(panels), columns=columns)
            save_figure(figure, folder / f"{name}.png")
    groups = make_groups(found)
    overall = [group for group in groups if group.loss == _ALL]
    results = render(
        "evidence.md.jinja",
        found=found,
        studies=sorted({one.study for one in found}),
        trained=[group for group in overall if group.reached],
        untrained=[group for group in overall if not group.reached],
        helped=list(_helped(groups)),
        by_chance=round(0.05 * len(found)),
        few_seeds=min(one.seeds for one in found),
        folder=folder.name,
        groups_table=markdown_table(groups_table(groups)),
        comparisons_table=markdown_table(comparisons_table(found)),
        points=points,
        verdict=verdict,
    )
    replace_results(page, results)


def _helped(groups: Sequence[Group]) -> Iterator[str]:
    """Describes the pooled groups that are better on average."""
    for group in groups:
        if group.pooled is not None and verdict(group.pooled) == BETTER:
            yield f"{group.loss} at {group.kind} {points(group.pooled)}"


def groups_table(groups: Sequence[Group]) -> Table:
    """Makes a table of each group's counts of verdicts and its mean difference."""
    numbers = ["comparisons", "data sets", *_WORDS, "mean difference"]
    table = make_table(["bars", "at", "loss"], numbers)
    for group in groups:
        count = group.count()
        table.add_row(
            "reached" if group.reached else "below, or none",
            group.kind,
            group.loss,
            str(len(group.found)),
            str(group.data_sets),
            *(str(count[word]) for word in _WORDS),
            "not pooled" if group.pooled is None else points(group.pooled),
        )
    table.caption = (
        "points of mean IoU: random-effects mean over two data sets or more, with its "
        f"95 % interval, of comparisons with {POOLED_SEEDS} seeds or more in studies "
        "that reached their bars"
    )
    return table


def comparisons_table(found: Sequence[Evidence]) -> Table:
    """Makes a table of all comparisons, with what is known of data and baseline."""
    table = make_table(
        ["study", "arm", "at", "loss"],
        ["seeds", "Gini", "rarest", "baseline", "difference"],
        ["which shows", "bars"],
    )
    for some in by_loss(found).values():
        for one in some:
            table.add_row(
                f"[{one.study}](../experiments/{one.study}/README.md)",
                Text(one.arm),
                one.kind,
                PAPERS.get(one.loss, one.loss),
                str(one.seeds),
                f"{one.gini:.2f}",
                f"{one.rarest_images:.1%}",
                f"{one.baseline_mean_iou:.1f}",
                points(one.interval),
                verdict(one.interval),
                one.bars,
            )
    table.caption = (
        "rarest: share of the scored images that hold the class that fewest hold; "
        "baseline: mean IoU in percent; difference: points, with its 95 % interval; "
        "bars: whether the study reached the scores fixed before its first run"
    )
    return table

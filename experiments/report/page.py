"""The page: what is stored of a study, as one HTML file."""

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote

import jinja2
from rich.table import Table

from experiments.analysis import tables
from experiments.analysis.compare import (
    BETTER,
    MIN_IMAGES,
    WORSE,
    Comparison,
    binary_conclusion,
    compare,
    points,
    verdict,
)
from experiments.analysis.figures import make_plots, role_of
from experiments.analysis.panels import svg, variables
from experiments.analysis.paper import PAPER_CSV, read_reported
from experiments.analysis.store import Study
from experiments.report.pictures import PictureSet

_HERE = pathlib.Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class TableView:
    """A table as the template draws it.

    Attributes:
        numeric: whether a column holds numbers, and stands to the right.
        csv: the same cells, as a data: URI.
    """

    name: str
    title: str
    note: str
    header: list[str]
    numeric: list[bool]
    rows: list[list[str]]
    csv: str


@dataclasses.dataclass(frozen=True)
class Answer:
    """One comparison in words and figures.

    Attributes:
        word: what the interval says.
        role: of its colour.
        points: difference of mean IoU with its interval.
        binary: that of the F1 of class 1 in words, where there are two classes.
        better: classes that are better, with theirs.
        worse: classes that are worse.
    """

    arm: str
    baseline: str
    at: str
    word: str
    role: str
    points: str
    binary: str
    better: dict[str, str]
    worse: dict[str, str]


def make_page(
    study: Study,
    *,
    pictures: Sequence[PictureSet] = (),
    paper_csv: pathlib.Path = PAPER_CSV,
    resamples: int = 2000,
) -> str:
    """The page as HTML; the same text for the same study."""
    reported = read_reported(study.paper, paper_csv)
    comparisons = compare(study, resamples=resamples)
    plots = {
        name: (title, [(panel, svg(panel)) for panel in panels])
        for name, (title, panels) in make_plots(study, comparisons, reported).items()
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("template.html").render(
        study=study,
        answers=[_answer(c) for c in comparisons],
        tables=dict(_tables(study, comparisons, reported)),
        plots=plots,
        pictures=pictures,
        colors=variables(),
        facts=_facts(study),
        caveat=tables.caveat(study),
        min_images=MIN_IMAGES,
        drawn_from=tables.drawn_from(study),
        resamples=f"{resamples:,}",
        provenance=tables.provenance(study).replace("`", ""),
        title=study.name.replace("_", " "),
    )


def _answer(comparison: Comparison) -> Answer:
    overall = comparison.scores["mean_iou"]
    word = verdict(overall)
    better, worse = (
        {name: points(x) for name, x in comparison.classes(which).items()}
        for which in (BETTER, WORSE)
    )
    return Answer(
        arm=comparison.arm,
        baseline=comparison.baseline,
        at=comparison.at,
        word=word,
        role=role_of(word),
        points=points(overall),
        binary=binary_conclusion(comparison) if comparison.binary else "",
        better=better,
        worse=worse,
    )


def _tables(
    study: Study, comparisons: Sequence[Comparison], reported: Sequence[Any]
) -> Iterator[tuple[str, TableView]]:
    found = {"settings": ("What tells the arms apart", tables.settings_table(study))}
    found["scores"] = ("Scores of each arm", tables.arms_table(study))
    if comparisons:
        found["differences"] = (
            "Differences with their intervals",
            tables.comparisons_table(comparisons, study),
        )
        found["classes"] = (
            "Differences of each class",
            tables.class_differences_table(comparisons, study),
        )
    if any(c.binary for c in comparisons):
        name = study.runs[0].class_names[1]
        found["binary_scores"] = (
            f"Scores of {name} alone",
            tables.binary_arms_table(study),
        )
        found["binary_differences"] = (
            f"Differences of {name} alone",
            tables.binary_comparisons_table(comparisons, study),
        )
    if reported:
        found["paper"] = ("The paper and ours", tables.paper_table(study, reported))
    for name, (title, table) in found.items():
        yield name, _view(name, title, table)


def _view(name: str, title: str, table: Table) -> TableView:
    return TableView(
        name=name,
        title=title,
        note=str(table.caption or ""),
        header=[str(column.header) for column in table.columns],
        numeric=[column.justify == "right" for column in table.columns],
        rows=tables.table_rows(table),
        csv=f"data:text/csv;charset=utf-8,{quote(tables.csv_table(table))}",
    )


def _facts(study: Study) -> dict[str, str]:
    """The size of the study, in figures for its head."""
    first = study.runs[0]
    return {
        "arms": str(len(study.arms)),
        "runs": str(len(study.runs)),
        "seeds": str(len({run.seed for run in study.runs})),
        "test images": f"{len(first.per_image):,}",
        "classes": str(len(first.class_names)),
        "hours of training": f"{sum(r.seconds for r in study.runs) / 3600:.1f}",
    }

"""The page of a study: its stored results as one HTML file."""

import pathlib
from collections.abc import Sequence
from urllib.parse import quote

from rich.table import Table

from experiments.analysis import tables
from experiments.analysis.compare import (
    BETTER,
    MIN_IMAGES,
    WORSE,
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
from experiments.report.readme import templates
from segloss.report import table_rows


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
    return (
        templates()
        .get_template("template.html")
        .render(
            study=study,
            comparisons=comparisons,
            tables=tables.make_tables(study, comparisons, reported),
            plots=plots,
            pictures=pictures,
            colors=variables(),
            facts=_facts(study),
            caveat=tables.caveat(study),
            min_images=MIN_IMAGES,
            drawn_from=tables.drawn_from(study),
            resamples=f"{resamples:,}",
            provenance=tables.provenance(study, quote=""),
            title=study.name.replace("_", " "),
            class_words=(BETTER, WORSE),
            binary_conclusion=binary_conclusion,
            csv_uri=_csv_uri,
            points=points,
            role_of=role_of,
            table_rows=table_rows,
            verdict=verdict,
        )
    )


def _csv_uri(table: Table) -> str:
    return f"data:text/csv;charset=utf-8,{quote(tables.csv_table(table))}"


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

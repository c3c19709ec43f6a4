"""Makes the page of a study: its stored results as one HTML file."""

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
    points,
    verdict,
)
from experiments.analysis.figures import role_of
from experiments.analysis.panels import svg, variables
from experiments.analysis.paper import PAPER_CSV
from experiments.analysis.store import Study
from experiments.report.contents import contents, render
from experiments.report.pictures import PictureSet
from segloss.report import table_rows


def make_page(
    study: Study,
    *,
    pictures: Sequence[PictureSet] = (),
    paper_csv: pathlib.Path = PAPER_CSV,
    resamples: int = 2000,
) -> str:
    """Returns the page as HTML; equal arguments give the same text.

    `paper_csv` and `resamples` are those of `contents`.
    """
    return render(
        "template.html",
        **contents(study, paper_csv=paper_csv, resamples=resamples),
        pictures=pictures,
        colors=variables(),
        facts=_facts(study),
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
        svg=svg,
        table_rows=table_rows,
        verdict=verdict,
    )


def _csv_uri(table: Table) -> str:
    return f"data:text/csv;charset=utf-8,{quote(tables.csv_table(table))}"


def _facts(study: Study) -> dict[str, str]:
    """Returns the size of the study, as label to number, for the head of the page."""
    first = study.runs[0]
    return {
        "arms": str(len(study.arms)),
        "runs": str(len(study.runs)),
        "seeds": str(len({run.seed for run in study.runs})),
        "test images": f"{len(first.per_image):,}",
        "classes": str(len(first.class_names)),
        "hours of training": f"{sum(r.seconds for r in study.runs) / 3600:.1f}",
    }

"""Makes what the README and the HTML page of a study have in common."""

import pathlib
from typing import Any

import jinja2

from experiments.analysis.bars import bars_of
from experiments.analysis.compare import compare
from experiments.analysis.figures import make_plots
from experiments.analysis.paper import read_reported
from experiments.analysis.store import Study, check_complete
from experiments.analysis.tables import caveat, make_tables


def contents(
    study: Study, *, paper_csv: pathlib.Path, resamples: int
) -> dict[str, Any]:
    """Returns the values that both templates use, by name, such as tables and plots.

    `paper_csv` has the numbers that the paper reports; `resamples` is the number of
    bootstrap resamples for the intervals.

    Raises:
        ValueError: if the study lacks runs.
    """
    check_complete(study)
    reported = read_reported(study.paper, paper_csv)
    comparisons = compare(study, resamples=resamples)
    return {
        "study": study,
        "comparisons": comparisons,
        "tables": make_tables(study, comparisons, reported),
        "plots": make_plots(study, comparisons, reported),
        "caveat": caveat(study),
        "bars": bars_of(study),
    }


def render(template: str, **values: Any) -> str:
    """Fills `values` into a template of this folder; escapes them if it is HTML."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=jinja2.select_autoescape(["html"]),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(template).render(values)

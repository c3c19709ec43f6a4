"""Scores as tables, for the terminal and for READMEs."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

_NO_VALUE = "\N{EN DASH}"
_CLASS_COLUMNS = {
    "iou": "IoU",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
}
_SUMMARY_COLUMNS = {
    "mean_iou": "mean IoU",
    "mean_iou_without_ignored": "without ignored",
    "frequency_weighted_iou": "FWIoU",
    "mean_accuracy": "MA",
    "pixel_accuracy": "PA",
    "mean_f1": "mean F1",
    "cohen_kappa": "kappa",
}


def make_table(
    texts: Iterable[str], numbers: Iterable[str] = (), remarks: Iterable[str] = ()
) -> Table:
    """Makes a table without rows; the arguments are the headers of its columns.

    Columns of `numbers` are right-aligned.
    """
    table = Table(*texts, caption_justify="left")
    for name in numbers:
        table.add_column(name, justify="right")
    for name in remarks:
        table.add_column(name)
    return table


def class_table(results: Mapping[str, Any]) -> Table:
    """Makes a table with the scores of each class and their means.

    A missing score (NaN, or None from JSON) is shown as a dash and left out of the mean
    over classes; a caption explains the dash.

    Args:
        results: the contents of `results.json`; only `per_class` is used.
    """
    table = make_table(["class"], [*_CLASS_COLUMNS.values(), "pixel share"])
    rows = results["per_class"]
    for row in rows:
        scores = (_format(row[key]) for key in _CLASS_COLUMNS)
        table.add_row(Text(row["name"]), *scores, f"{row['pixel_share']:.1%}")
    table.add_section()
    means = (_format(_mean(row[key] for row in rows)) for key in _CLASS_COLUMNS)
    table.add_row("mean", *means, "")
    if any(_is_missing(row[key]) for row in rows for key in _CLASS_COLUMNS):
        table.caption = (
            f"{_NO_VALUE} IoU, F1: class neither labelled nor predicted; "
            "precision: not predicted; recall: not labelled"
        )
    return table


def summary_table(runs: Mapping[str, Mapping[str, Any]]) -> Table:
    """Makes a table with the summary scores of runs, one row per run.

    FWIoU is frequency-weighted IoU, MA mean accuracy (mean recall), PA pixel accuracy.
    The mean IoU without ignored classes is shown if a run has it.

    Args:
        runs: the contents of each `results.json`, by the label of the run; only
            `summary` and `ignored_in_mean` are used.
    """
    optional = "mean_iou_without_ignored"
    columns = dict(_SUMMARY_COLUMNS)
    if not any(optional in results["summary"] for results in runs.values()):
        del columns[optional]
    table = make_table(["run"], columns.values())
    for label, results in runs.items():
        scores = (_format(results["summary"].get(key)) for key in columns)
        table.add_row(Text(label), *scores)
    ignored = {*(", ".join(run.get("ignored_in_mean", ())) for run in runs.values())}
    if ignored := ignored - {""}:
        table.caption = f"ignored: {'; '.join(sorted(ignored))}"
    return table


def markdown_table(table: Table) -> str:
    """Formats a table and its caption as GitHub markdown; ends with a newline."""
    header = [str(column.header) for column in table.columns]
    rules = ["---:" if column.justify == "right" else "---" for column in table.columns]
    lines = [_markdown_line(cells) for cells in (header, rules, *table_rows(table))]
    if table.caption:
        lines += ["", str(table.caption)]
    return "\n".join(lines) + "\n"


def table_rows(table: Table) -> list[list[str]]:
    """Returns the cells of a table as text, row by row."""
    columns = ([str(cell) for cell in column.cells] for column in table.columns)
    return [list(row) for row in zip(*columns, strict=True)]


def _markdown_line(cells: Iterable[str]) -> str:
    escaped = (cell.replace("|", r"\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"


def _format(score: float | None) -> str:
    return _NO_VALUE if _is_missing(score) else f"{score:.3f}"


def _mean(scores: Iterable[float | None]) -> float:
    present = [score for score in scores if not _is_missing(score)]
    return math.fsum(present) / len(present) if present else math.nan


def _is_missing(score: float | None) -> bool:
    return score is None or math.isnan(score)

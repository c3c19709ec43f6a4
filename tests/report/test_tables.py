import io
import math

import pytest
from rich.console import Console

from segloss.report import class_table, markdown_table, summary_table


def make_row(name, *scores):
    keys = ("iou", "precision", "recall", "f1", "pixel_share")
    return {"name": name, **dict(zip(keys, scores, strict=True))}


RESULTS = {
    "summary": {
        "mean_iou": 0.4561,
        "frequency_weighted_iou": 0.6,
        "mean_accuracy": 0.5554,
        "pixel_accuracy": 0.81,
        "mean_f1": 0.5,
        "cohen_kappa": 0.4,
        "matthews_corrcoef": 0.41,
    },
    "per_class": [
        make_row("sky", 0.25, 0.5, 0.5, 0.5, 0.703),
        make_row("[red]|car", 0.75, 1.0, 0.75, 0.7, 0.297),
        make_row("bus", None, None, None, None, 0.0),
    ],
}
PRESENT = RESULTS | {"per_class": RESULTS["per_class"][:1]}
NOT_LABELLED = RESULTS["per_class"][2]


def shown(table):
    console = Console(file=io.StringIO(), width=120)
    console.print(table)
    return console.file.getvalue()


def cells(line):
    return [cell.strip() for cell in line.strip("| \n").split("|")]


def test_class_table_shows_each_class_and_the_mean_of_those_that_have_scores():
    lines = markdown_table(class_table(RESULTS)).splitlines()
    assert cells(lines[0]) == [
        "class",
        "IoU",
        "precision",
        "recall",
        "F1",
        "pixel share",
    ]
    assert cells(lines[2]) == ["sky", "0.250", "0.500", "0.500", "0.500", "70.3%"]
    assert cells(lines[4]) == ["bus", *"\N{EN DASH}" * 4, "0.0%"]
    assert cells(lines[5])[:5] == ["mean", "0.500", "0.750", "0.625", "0.600"]


@pytest.mark.parametrize("missing", [None, math.nan])
def test_class_table_explains_dashes_where_there_are_any(missing):
    note = "class neither labelled nor predicted"
    rows = [*PRESENT["per_class"], NOT_LABELLED | {"iou": missing}]
    assert note in shown(class_table({"per_class": rows}))
    assert note not in shown(class_table(PRESENT))


def test_class_without_any_score_has_no_mean():
    table = class_table({"per_class": [NOT_LABELLED]})
    assert cells(markdown_table(table).splitlines()[3])[1] == "\N{EN DASH}"


def test_summary_table_has_a_row_per_run():
    other = {"summary": dict.fromkeys(RESULTS["summary"], math.nan)}
    table = summary_table({"balance": RESULTS, "[b]random": other})
    assert markdown_table(table).splitlines() == [
        "| run | mean IoU | FWIoU | MA | PA | mean F1 | kappa |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| balance | 0.456 | 0.600 | 0.555 | 0.810 | 0.500 | 0.400 |",
        "| [b]random | " + " | ".join("\N{EN DASH}" * 6) + " |",
    ]


def test_summary_table_has_a_mean_without_ignored_classes_if_a_run_has():
    summary = RESULTS["summary"] | {"mean_iou_without_ignored": 0.321}
    table = summary_table({"balance": RESULTS, "other": {"summary": summary}})
    assert markdown_table(table).splitlines() == [
        "| run | mean IoU | without ignored | FWIoU | MA | PA | mean F1 | kappa |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| balance | 0.456 | \N{EN DASH} | 0.600 | 0.555 | 0.810 | 0.500 | 0.400 |",
        "| other | 0.456 | 0.321 | 0.600 | 0.555 | 0.810 | 0.500 | 0.400 |",
    ]


def test_names_are_shown_as_they_are():
    assert "[red]|car" in shown(class_table(RESULTS))
    assert r"| [red]\|car | 0.750 |" in markdown_table(class_table(RESULTS))


def test_terminal_shows_the_cells_of_the_markdown():
    table = summary_table({"balance": RESULTS, "random": RESULTS})
    header, _, *rows = markdown_table(table).splitlines()
    terminal = [line.split() for line in shown(table).splitlines()]
    for line, number in ((header, 1), (rows[0], 3), (rows[1], 4)):
        words = line.replace("|", "").split()
        assert [word for word in terminal[number] if word.isascii()] == words


def test_markdown_puts_the_footnote_below():
    *_, blank, note = markdown_table(class_table(RESULTS)).splitlines()
    assert blank == ""
    assert note.startswith("\N{EN DASH} IoU, F1: class neither labelled nor predicted")

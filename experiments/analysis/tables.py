"""The tables of a study, as rich draws them, markdown and CSV write them."""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from experiments.analysis.compare import (
    BINARY_SCORES,
    MIN_IMAGES,
    SCORES,
    Comparison,
    binary_score,
    images_with_class,
    points,
    verdict,
)
from experiments.analysis.paper import Reported, arm_like
from experiments.analysis.statistics import Interval, Spread, mean_scores
from experiments.analysis.store import Run, Study, confusions
from segloss import metrics

_SHORT = {"softmax_cross_entropy": "cross-entropy"}


def arms_table(study: Study) -> Table:
    """Scores of each arm in percent, mean and range over its seeds."""
    table = _make_table("arm", [*SCORES.values(), "images seen", "steps", "seeds"])
    for arm, runs in study.arms.items():
        scores = mean_scores(
            confusions(runs),
            lambda c: np.stack([getattr(metrics, x)(c) for x in SCORES], axis=-1),
        )
        images = sorted({run.images_seen for run in runs})
        seen = " to ".join(f"{n:,}" for n in dict.fromkeys((images[0], images[-1])))
        steps = f"{runs[0].total_steps:,}"
        table.add_row(Text(arm), *map(percent, scores), seen, steps, str(len(runs)))
    first = study.runs[0]
    table.caption = (
        f"percent of {len(first.per_image)} images of {first.split}: mean (smallest to "
        "largest seed). FWIoU is frequency-weighted IoU, MA mean accuracy, PA pixel "
        "accuracy"
    )
    return table


def settings_table(study: Study) -> Table:
    """What tells the arms apart."""
    table = Table("arm", "loss", "sampler", caption_justify="left")
    table.add_column("steps", justify="right")
    table.add_column("seeds", justify="right")
    for arm, runs in study.arms.items():
        run = runs[0]
        cells = (arm, describe_loss(run.loss), describe(run.sampler))
        seeds = ", ".join(str(r.seed) for r in runs)
        table.add_row(*map(Text, cells), f"{run.total_steps:,}", seeds)
    return table


def comparisons_table(comparisons: Sequence[Comparison], study: Study) -> Table:
    """Differences of the scores in points, each with its interval."""
    table = Table("arm", "against", "at", caption_justify="left")
    table.add_column(SCORES["mean_iou"], justify="right")
    table.add_column("which shows")
    for name in list(SCORES.values())[1:]:
        table.add_column(name, justify="right")
    for comparison in comparisons:
        cells = (comparison.arm, comparison.baseline, comparison.at)
        first, *others = comparison.scores.values()
        table.add_row(
            *map(Text, cells), points(first), verdict(first), *map(points, others)
        )
    table.caption = (
        "points (percent minus percent), with 95 % intervals of a paired bootstrap "
        f"over {drawn_from(study)}"
        + _note_of_defined(i for c in comparisons for i in c.scores.values())
    )
    return table


def class_differences_table(comparisons: Sequence[Comparison], study: Study) -> Table:
    """Differences of each class's IoU in points, a column for each comparison."""
    table = _make_table("class", ["pixels", "images", *(c.name for c in comparisons)])
    for name, share in study.pixel_shares.items():
        cells = (points(c.per_class[name]) for c in comparisons)
        images = f"{comparisons[0].images[name]:,}"
        table.add_row(Text(name), f"{share:.2%}", images, *cells)
    means = (points(c.scores["mean_iou"]) for c in comparisons)
    table.add_row("mean", "", "", *means)
    table.caption = (
        "points of IoU with 95 % intervals, each class on its own: some leave 0 out by "
        "chance, the more the fewer the seeds and the test images that hold the class"
        + _note_of_defined(i for c in comparisons for i in c.per_class.values())
    )
    return table


def binary_arms_table(study: Study) -> Table:
    """IoU, F1, precision and recall of class 1 in percent, over seeds."""
    table = _make_table("arm", BINARY_SCORES.values())
    for arm, runs in study.arms.items():
        scores = mean_scores(
            confusions(runs),
            lambda c: np.stack([binary_score(c, x) for x in BINARY_SCORES], axis=-1),
        )
        table.add_row(Text(arm), *map(percent, scores))
    table.caption = (
        f"percent, of {study.runs[0].class_names[1]} alone: mean (smallest to largest "
        "seed)"
    )
    return table


def binary_comparisons_table(comparisons: Sequence[Comparison], study: Study) -> Table:
    """Differences of those in points, each with its interval."""
    table = _make_table("arm", ["against", *BINARY_SCORES.values(), "F1 shows"])
    for c in comparisons:
        cells = (points(c.binary[score]) for score in BINARY_SCORES)
        table.add_row(Text(c.arm), Text(c.baseline), *cells, verdict(c.binary["f1"]))
    table.caption = (
        f"points, of {study.runs[0].class_names[1]} alone, with 95 % intervals over "
        f"{drawn_from(study)}"
        + _note_of_defined(i for c in comparisons for i in c.binary.values())
    )
    return table


def paper_table(study: Study, reported: Sequence[Reported]) -> Table:
    """The paper's numbers and ours in percent; a dash where no arm is like theirs."""
    table = Table("batches", "score", caption_justify="left")
    for name in ("paper", "ours"):
        table.add_column(name, justify="right")
    table.add_column("where in the paper")
    for row in reported:
        runs = arm_like(study, row)
        ours = (
            percent(mean_scores(confusions(runs), getattr(metrics, row.metric)))
            if runs
            else "\N{EN DASH}"
        )
        wanted = "" if row.batch_cl is None else f", batch_cl {row.batch_cl}"
        places = {"figure": row.figure, "page": row.page}
        table.add_row(
            f"{row.sampler}, batch_max {row.batch_max}{wanted}",
            SCORES[row.metric],
            f"{row.value:.3f}",
            ours,
            ", ".join(f"{k} {v}" for k, v in places.items() if v),
        )
    table.caption = (
        "percent, at equal steps; the paper's are single runs on PASCAL VOC 2012 "
        "without a spread"
    )
    return table


def csv_table(table: Table) -> str:
    """The cells of a table as CSV, its header first."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow([str(column.header) for column in table.columns])
    writer.writerows(table_rows(table))
    return lines.getvalue()


def table_rows(table: Table) -> list[list[str]]:
    """The cells of a table, row by row."""
    columns = ([str(cell) for cell in column.cells] for column in table.columns)
    return [list(row) for row in zip(*columns, strict=True)]


def percent(spread: Spread) -> str:
    """Mean of a score, and its range where there is one."""
    if math.isnan(spread.mean):
        return "\N{EN DASH}"
    mean, low, high = (f"{100 * x:.2f}" for x in (spread.mean, spread.low, spread.high))
    return mean if low == high else f"{mean} ({low} to {high})"


def describe_loss(loss: Any) -> str:
    """A loss or several in a few words."""
    if isinstance(loss, dict):
        return describe(loss)
    return " + ".join(map(describe, loss))


def describe(section: dict[str, Any]) -> str:
    """A section of a config: its name, then what it is given."""
    given = ", ".join(
        f"{key} {_brief(value)}" for key, value in section.items() if key != "name"
    )
    name = _SHORT.get(section["name"], section["name"]).replace("_", " ")
    return f"{name} ({given})" if given else name


def drawn_from(study: Study) -> str:
    """What the bootstrap draws: of a single seed it cannot."""
    seeds = {run.seed for run in study.runs}
    return "seeds and test images" if len(seeds) > 1 else "test images, of one seed"


def caveat(study: Study) -> str:
    """What the intervals of this study do not say."""
    seeds = len({run.seed for run in study.runs})
    images = images_with_class(study.runs[0])
    rare = [name for name, n in images.items() if 0 < n < MIN_IMAGES]
    held = sum(n > 0 for n in images.values())
    of_classes = (
        f" Fewer than {MIN_IMAGES} test images hold {', '.join(rare)}: too few to tell "
        f"a difference, though {len(rare)} of the {held} classes in the mean IoU are "
        "such."
        if rare
        else ""
    )
    if seeds == 1:
        return (
            "One seed: the intervals say nothing of what another would give."
            f"{of_classes}"
        )
    return (
        f"{seeds} seeds say little of how seeds spread, so the intervals are rather "
        "too narrow: in a simulation of 40 images, with seeds that spread more than "
        "images, they hold the truth in 79 % of cases with 3 seeds and in 92 % with "
        "12, instead of in 95 %. One that barely leaves 0 out is no proof."
        f"{of_classes}"
    )


def provenance(study: Study) -> str:
    """Where the numbers come from, in a line."""
    runs: Sequence[Run] = study.runs
    commits = dict.fromkeys((run.commit or "none")[:12] for run in runs)
    dirty = any((run.commit or "").endswith("-dirty") for run in runs)
    devices = dict.fromkeys(run.devices for run in runs)
    seconds = sum(run.seconds for run in runs)
    versions = ", ".join(f"{k} {v}" for k, v in runs[0].versions.items())
    return (
        f"{len(runs)} runs, {seconds / 3600:.1f} hours of training in total on "
        f"{' and '.join(devices)}; commit {', '.join(f'`{c}`' for c in commits)}"
        f"{' with changes' if dirty else ''}, code `{runs[0].code[:12]}`; {versions}."
    )


def _note_of_defined(intervals: Iterable[Interval]) -> str:
    if all(i.defined in (0, 1) for i in intervals):
        return ""
    return "; of N %: the share of the resamples in which there is such a score"


def _make_table(first: str, others: Sequence[str]) -> Table:
    table = Table(first, caption_justify="left")
    for name in others:
        table.add_column(name, justify="right")
    return table


def _brief(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 30 else f"{text[:27]}..."

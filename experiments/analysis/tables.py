"""Makes the tables of a study, and the sentences that go with them."""

import csv
import io
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from experiments import SCORES
from experiments.analysis.compare import (
    BINARY_SCORES,
    MIN_IMAGES,
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
from segloss.report import make_table, table_rows

_SHORT = {"softmax_cross_entropy": "cross-entropy"}
_DASH = "\N{EN DASH}"


def make_tables(
    study: Study, comparisons: Sequence[Comparison], reported: Sequence[Reported]
) -> dict[str, tuple[str, Table]]:
    """Makes all tables of a study: maps the name of each to its title and the table."""
    found = {"settings": ("What tells the arms apart", settings_table(study))}
    found["scores"] = ("Scores of each arm", arms_table(study))
    if comparisons:
        table = comparisons_table(comparisons, study)
        found["differences"] = ("Differences with their intervals", table)
        table = class_differences_table(comparisons, study)
        found["classes"] = ("Differences of each class", table)
    if any(c.binary for c in comparisons):
        name = study.runs[0].class_names[1]
        found["binary_scores"] = (f"Scores of {name} alone", binary_arms_table(study))
        table = binary_comparisons_table(comparisons, study)
        found["binary_differences"] = (f"Differences of {name} alone", table)
    if reported:
        found["paper"] = ("The paper and ours", paper_table(study, reported))
    return found


def arms_table(study: Study) -> Table:
    """Makes a table of each arm's scores in percent: mean and range over its seeds."""
    table = make_table(["arm"], [*SCORES.values(), "images seen", "steps", "seeds"])
    for arm, runs in study.arms.items():
        scores = _spreads(runs, SCORES, lambda c, name: getattr(metrics, name)(c))
        images = sorted({run.images_seen for run in runs})
        seen = " to ".join(f"{n:,}" for n in dict.fromkeys((images[0], images[-1])))
        table.add_row(
            Text(arm), *scores, seen, f"{runs[0].total_steps:,}", str(len(runs))
        )
    first = study.runs[0]
    table.caption = (
        f"percent of {len(first.per_image)} images of {first.split}: mean (smallest to "
        "largest seed). FWIoU is frequency-weighted IoU, MA mean accuracy, PA pixel "
        "accuracy"
    )
    return table


def settings_table(study: Study) -> Table:
    """Makes a table of each arm's loss, sampler, steps and seeds."""
    table = make_table(["arm", "loss", "sampler"], ["steps", "seeds"])
    for arm, runs in study.arms.items():
        run = runs[0]
        losses = [run.loss] if isinstance(run.loss, dict) else run.loss
        sampler = describe(run.sampler)
        if run.others:
            sampler += "; " + ", ".join(f"{k} {x}" for k, x in run.others.items())
        cells = (arm, " + ".join(map(describe, losses)), sampler)
        seeds = ", ".join(str(r.seed) for r in runs)
        table.add_row(*map(Text, cells), f"{run.total_steps:,}", seeds)
    return table


def comparisons_table(comparisons: Sequence[Comparison], study: Study) -> Table:
    """Makes a table of differences of `SCORES` in points, each with its interval."""
    table = make_table(["arm", "against", "at"], [SCORES["mean_iou"]])
    table.add_column("which shows")
    for name in list(SCORES.values())[1:]:
        table.add_column(name, justify="right")
    seeds = [len(study.pairs(c.arm, c.baseline)[0]) for c in comparisons]
    differ = len(set(seeds)) > 1
    if differ:
        table.add_column("seeds", justify="right")
    for c, n in zip(comparisons, seeds, strict=True):
        first, *others = c.scores.values()
        table.add_row(
            *map(Text, (c.arm, c.baseline, c.at)),
            points(first),
            verdict(first),
            *map(points, others),
            *([str(n)] if differ else []),
        )
    table.caption = (
        "points (percent minus percent), with 95 % intervals of a paired bootstrap "
        f"over {drawn_from(study)}"
        + _note_of_defined(i for c in comparisons for i in c.scores.values())
    )
    return table


def class_differences_table(comparisons: Sequence[Comparison], study: Study) -> Table:
    """Makes a table of differences of each class's IoU, a column per comparison."""
    table = make_table(["class"], ["pixels", "images", *(c.name for c in comparisons)])
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
    """Makes a table of each arm's IoU, F1, precision and recall of class 1."""
    table = make_table(["arm"], BINARY_SCORES.values())
    for arm, runs in study.arms.items():
        table.add_row(Text(arm), *_spreads(runs, BINARY_SCORES, binary_score))
    name = study.runs[0].class_names[1]
    table.caption = f"percent, of {name} alone: mean (smallest to largest seed)"
    return table


def binary_comparisons_table(comparisons: Sequence[Comparison], study: Study) -> Table:
    """Makes a table of the differences of IoU, F1, precision and recall of class 1."""
    table = make_table(["arm"], ["against", *BINARY_SCORES.values(), "F1 shows"])
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
    """Makes a table of the paper's numbers and ours, in percent.

    A dash stands where no arm has the loss, sampler and batches of the paper's number.
    """
    table = make_table(["batches", "score"], ["paper", "ours"])
    table.add_column("where in the paper")
    several = len({row.loss for row in reported}) > 1
    for row in reported:
        runs, ours = arm_like(study, row), _DASH
        if runs:
            scores = mean_scores(confusions(runs), getattr(metrics, row.metric))
            ours = percent(scores)
        wanted = "" if row.batch_cl is None else f", batch_cl {row.batch_cl}"
        places = {"figure": row.figure, "page": row.page}
        loss = f"{row.loss.replace('_', ' ')}, " if several else ""
        table.add_row(
            f"{loss}{row.sampler}, batch_max {row.batch_max}{wanted}",
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
    """Returns the header and the cells of a table as CSV."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow([str(column.header) for column in table.columns])
    writer.writerows(table_rows(table))
    return lines.getvalue()


def percent(spread: Spread) -> str:
    """Formats a score in percent, such as "71.20 (70.85 to 71.61)": mean and range.

    A single value has no range; NaN is a dash.
    """
    if math.isnan(spread.mean):
        return _DASH
    mean, low, high = (f"{100 * x:.2f}" for x in (spread.mean, spread.low, spread.high))
    return mean if low == high else f"{mean} ({low} to {high})"


def describe(section: dict[str, Any]) -> str:
    """Describes a config section (loss or sampler): its name, then its other fields."""
    fields = ((key, str(value)) for key, value in section.items() if key != "name")
    given = ", ".join(
        f"{key} {text if len(text) <= 30 else f'{text[:27]}...'}"
        for key, text in fields
    )
    name = _SHORT.get(section["name"], section["name"]).replace("_", " ")
    return f"{name} ({given})" if given else name


def drawn_from(study: Study) -> str:
    """Returns "seeds and test images", or "test images, of one seed" for one seed."""
    seeds = {run.seed for run in study.runs}
    return "seeds and test images" if len(seeds) > 1 else "test images, of one seed"


def caveat(study: Study) -> str:
    """Warns how far the intervals can be trusted with these seeds and images."""
    seeds = min(map(len, study.arms.values()))
    images = images_with_class(study.runs[0])
    rare = [name for name, n in images.items() if 0 < n < MIN_IMAGES]
    text = (
        f"{seeds} seeds say little of how seeds spread, so the intervals are rather "
        "too narrow: in a simulation of 40 images, with seeds that spread more than "
        "images, they hold the truth in 79 % of cases with 3 seeds and in 92 % with "
        "12, instead of in 95 %. One that barely leaves 0 out is no proof."
        if seeds > 1
        else "One seed: the intervals say nothing of what another would give."
    )
    if rare:
        text += (
            f" Fewer than {MIN_IMAGES} test images hold {', '.join(rare)}: too few to "
            f"tell a difference, though {len(rare)} of the "
            f"{sum(n > 0 for n in images.values())} classes in the mean IoU are such."
        )
    return text


def provenance(study: Study, quote: str = "`") -> str:
    """States runs, devices, commits and versions in a line; `quote` encloses hashes."""

    def listed(hashes: Iterable[str]) -> str:
        return ", ".join(f"{quote}{x[:12]}{quote}" for x in dict.fromkeys(hashes))

    runs = study.runs
    commits = [run.commit or "none" for run in runs]
    dirty = " with changes" if any(c.endswith("-dirty") for c in commits) else ""
    devices = " and ".join(dict.fromkeys(run.devices for run in runs))
    hours = sum(run.seconds for run in runs) / 3600
    versions = ", ".join(f"{k} {v}" for k, v in runs[0].versions.items())
    accepted = [code for run in runs for code in run.accepted_code]
    code = listed(run.code for run in runs if run.code not in accepted)
    if accepted:
        code += f" (accepted by hand as the same: {listed(accepted)})"
    return (
        f"{len(runs)} runs, {hours:.1f} hours of training in total on {devices}; "
        f"commit {listed(c[:12] for c in commits)}{dirty}, code {code}; {versions}."
    )


def _spreads(
    runs: Sequence[Run], names: Iterable[str], score: Callable[[Any, str], Any]
) -> Iterable[str]:
    """Formats the mean and range over runs of each of the scores `names`.

    `score` maps confusion matrices and a name to scores.
    """
    return map(
        percent,
        mean_scores(
            confusions(runs),
            lambda c: np.stack([score(c, name) for name in names], axis=-1),
        ),
    )


def _note_of_defined(intervals: Iterable[Interval]) -> str:
    if all(i.defined in (0, 1) for i in intervals):
        return ""
    return "; of N %: the share of the resamples in which there is such a score"

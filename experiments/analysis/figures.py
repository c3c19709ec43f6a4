"""Makes the plots of a study."""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from experiments.analysis.compare import (
    BETTER,
    WORSE,
    Comparison,
    conclusion,
    headline,
    verdict,
)
from experiments.analysis.panels import Panel, Theme
from experiments.analysis.paper import Reported
from experiments.analysis.statistics import Interval, mean_scores
from experiments.analysis.store import Run, Study, confusions
from segloss import metrics

_LEAST_SHARE = 1e-4
_ARMS_PER_PANEL = 7
_MARKED_POINTS = 30
# A sampler, and the one of its controls.
_CONTROL = ("balance_batch", "matched_random")

# The steps at which all seeds have a value, and the values `[seed, step]`.
Curve = tuple[list[int], Float[np.ndarray, "s n"]]


def make_plots(
    study: Study, comparisons: Sequence[Comparison], reported: Sequence[Reported]
) -> dict[str, tuple[str, list[Panel]]]:
    """Makes all plots of a study: maps the name of each to its title and its panels."""
    found = {
        "differences": (
            "Difference of mean IoU of each comparison",
            difference_panels(comparisons),
        ),
        "batches": (
            "Mean IoU by batch size and by batch_cl",
            batch_panels(study, reported),
        ),
        "curves": (
            "Mean IoU by step",
            curve_panels(study, "mean IoU in percent", "_mean_iou", 100, least=2),
        ),
        "losses": (
            "Loss of training by step",
            curve_panels(study, "loss of training, each arm's own", "loss", 1, least=1),
        ),
        "classes": (
            "Difference of each class's IoU",
            class_panels(study, comparisons),
        ),
        "gradient_shares": (
            "Each class's share of the gradient",
            share_panels(study),
        ),
    }
    plots = {name: (title, list(panels)) for name, (title, panels) in found.items()}
    return {name: plot for name, plot in plots.items() if plot[1]}


def curve_panels(
    study: Study, label: str, ending: str, factor: float, *, least: int
) -> Iterator[Panel]:
    """Plots `factor` times the values of `Run.curve` by step, a line per arm.

    The values are those whose name ends in `ending`, such as "_mean_iou"; `label` is
    that of the y axis. A panel needs an arm with at least `least` points.
    """
    for title, arms in _groups(study):
        curves = {arm: _curves(study.arms[arm], ending, factor) for arm in arms}
        if max(len(steps) for steps, _ in curves.values()) < least:
            continue
        ends = (f"{a} {y.mean(0)[-1]:.3g}" for a, (x, y) in curves.items() if len(x))
        yield Panel(
            title,
            f"{label[0].upper()}{label[1:]} by step; at the end: {', '.join(ends)}.",
            (3.2 + _legend_inches(len(curves)), 4.6),
            functools.partial(_draw_curves, curves=curves, label=label),
        )


def difference_panels(comparisons: Sequence[Comparison]) -> Iterator[Panel]:
    """Plots the differences of mean IoU of all comparisons with their intervals."""
    if comparisons:
        yield Panel(
            "difference of mean IoU",
            " ".join(map(headline, comparisons)),
            (0.9 + 0.36 * len(comparisons), 7.2),
            functools.partial(_draw_differences, comparisons=comparisons),
        )


def class_panels(study: Study, comparisons: Sequence[Comparison]) -> Iterator[Panel]:
    """Plots differences of IoU by class, most pixels first; a panel per comparison."""
    shares = study.pixel_shares
    labels = [f"{name}  {share:.1%}" for name, share in shares.items()]
    intervals = (i for c in comparisons for i in c.per_class.values())
    ends = [100 * end for i in intervals for end in (i.low, i.high)]
    ends = [0, *(end for end in ends if not math.isnan(end))]
    for comparison in comparisons:
        yield Panel(
            comparison.name,
            conclusion(comparison),
            (0.9 + 0.24 * len(labels), 4.6),
            functools.partial(
                _draw_classes,
                intervals=[
                    (comparison.per_class[name], comparison.class_verdict(name))
                    for name in shares
                ],
                labels=labels,
                # The same in all panels, so that lengths can be compared.
                limits=(min(ends) - 1, max(ends) + 1),
            ),
        )


def share_panels(study: Study) -> Iterator[Panel]:
    """Plots each class's share of the gradient and of the pixels of the test images."""
    names, pixels = zip(*study.pixel_shares.items(), strict=True)
    for title, arms in _groups(study):
        logged = {arm: [r.gradient_shares for r in study.arms[arm]] for arm in arms}
        shares = {
            arm: np.mean([[r[name] for name in names] for r in runs if r], axis=0)
            for arm, runs in logged.items()
            if any(runs)
        }
        if shares:
            largest = (
                f"{a}: {names[s.argmax()]} {s.max():.0%}" for a, s in shares.items()
            )
            yield Panel(
                title,
                f"Class with the largest share of the gradient: {'; '.join(largest)}.",
                (1.2 + 0.24 * len(names) + _legend_inches(len(shares) + 1), 4.6),
                functools.partial(
                    _draw_shares,
                    shares=shares,
                    pixels=np.array(pixels),
                    names=names,
                    split=study.runs[0].split,
                ),
            )


def batch_panels(study: Study, reported: Sequence[Reported]) -> Iterator[Panel]:
    """Plots mean IoU by size of random batches and by `batch_cl`.

    The paper's numbers are added as points. If they are of several losses, each loss
    has panels of its own.
    """
    losses = list(dict.fromkeys(row.loss for row in reported))
    for loss in losses if len(losses) > 1 else [None]:
        for field, sampler, label in (
            ("batch_max", "random", "size of random batches"),
            ("batch_cl", "balance_batch", "distinct classes wanted (batch_cl)"),
        ):
            lines = _lines_by(study, field, sampler, loss)
            if all(len({x for x, _ in line}) < 2 for line in lines.values()):
                continue
            ends = (
                f"{name}: " + ", ".join(f"{100 * s.mean:.1f} at {x}" for x, s in line)
                for name, line in lines.items()
            )
            theirs = [
                (getattr(row, field), row.value)
                for row in reported
                if (row.metric, row.sampler) == ("mean_iou", sampler)
                and loss in (None, row.loss)
            ]
            title = f"{loss.replace('_', ' ')} by" if loss else "mean IoU by"
            yield Panel(
                f"{title} {label}",
                f"Mean IoU in percent. {'; '.join(ends)}.",
                (3.2 + 0.2 * len(lines), 4.6),
                functools.partial(
                    _draw_lines, lines=lines, theirs=sorted(theirs), label=label
                ),
            )


def _groups(study: Study) -> Iterator[tuple[str, list[str]]]:
    """Yields title and arms of panels: each baseline with its arms, then the others."""
    compared: dict[str, list[str]] = {}
    for arm, baseline in study.comparisons:
        compared.setdefault(baseline, []).append(arm)
    for baseline, arms in compared.items():
        for some in _chunks(arms):
            yield f"compared with {baseline}", [baseline, *some]
    drawn = {arm for pair in study.comparisons for arm in pair}
    for some in _chunks([arm for arm in study.arms if arm not in drawn]):
        yield "arms without a comparison" if drawn else "all arms", some


def _chunks(arms: Sequence[str]) -> Iterator[list[str]]:
    """Splits arms into lists of about equal length, at most seven arms each."""
    parts = math.ceil(len(arms) / _ARMS_PER_PANEL)
    for part in np.array_split(np.arange(len(arms)), parts) if parts else []:
        yield [arms[i] for i in part]


def _curves(runs: Sequence[Run], ending: str, factor: float) -> Curve:
    by_seed = [
        {
            point["step"]: factor * value
            for point in run.curve
            for name, value in point.items()
            if name.endswith(ending)
        }
        for run in runs
    ]
    steps = sorted(set.intersection(*map(set, by_seed)))
    return steps, np.array([[values[step] for step in steps] for values in by_seed])


def _lines_by(
    study: Study, field: str, sampler: str, only: str | None = None
) -> dict[str, list]:
    """Groups arms with `sampler`, or its control, into lines.

    The arms of a line share all but `field`, a field of the sampler. Maps a label to
    points: the value of `field`, and the mean IoU. `only` is the name of a loss to
    which to keep, and which no label then repeats; None means all.
    """
    lines: dict[str, list] = {}
    fewest = min(run.total_steps for run in study.runs)
    for runs in study.arms.values():
        run = runs[0]
        is_control = (sampler, run.sampler["name"]) == _CONTROL
        if not (is_control or run.sampler["name"] == sampler):
            continue
        loss = run.loss["name"] if isinstance(run.loss, dict) else "several losses"
        if field not in run.sampler or only not in (None, loss):
            continue
        parts = [] if only else [loss.replace("_", " ")]
        if field != "batch_max":
            parts.append(f"batch_max {run.sampler['batch_max']}")
        parts += ["random batches of these sizes"] * is_control
        parts += [f"{name} {value}" for name, value in run.others.items()]
        parts.append("equal steps" if run.total_steps == fewest else "more steps")
        spread = mean_scores(confusions(runs), metrics.mean_iou)
        lines.setdefault(", ".join(parts), []).append((run.sampler[field], spread))
    return {key: sorted(line, key=lambda p: p[0]) for key, line in lines.items()}


def _draw_curves(
    axes: Axes, theme: Theme, curves: dict[str, Curve], label: str
) -> None:
    for i, (arm, (steps, values)) in enumerate(curves.items()):
        ends = values.min(0), values.max(0)
        style = dict(label=arm, linewidth=1.5, markersize=3)
        style["marker"] = "o" if len(steps) <= _MARKED_POINTS else None
        _draw_band(axes, theme, i, steps, values.mean(0), ends, **style)
    axes.set_xlabel("step; band: smallest to largest seed")
    axes.set_ylabel(label)
    legend_below(axes, columns=2)


def _draw_lines(
    axes: Axes, theme: Theme, lines: dict, theirs: Sequence[tuple], label: str
) -> None:
    for i, (name, line) in enumerate(lines.items()):
        mean, *ends = (
            [100 * getattr(spread, part) for _, spread in line]
            for part in ("mean", "low", "high")
        )
        style = dict(label=f"ours, {name}", marker="o", markersize=4)
        _draw_band(axes, theme, i, [x for x, _ in line], mean, ends, **style)
    if theirs:
        x, y = zip(*theirs, strict=True)
        axes.plot(x, y, "D", color=theme.ink, markersize=5, label="paper")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(label)
    axes.set_ylabel("mean IoU in percent")
    legend_below(axes, columns=1)


def _draw_band(axes: Axes, theme: Theme, i: int, x, mean, ends, **style) -> None:
    """Draws a line of `mean` over `x`, and a band between `ends`, in colour `i`."""
    color = theme.series[i % len(theme.series)]
    line = ("-", "--", ":", "-.")[i // len(theme.series) % 4]
    axes.plot(x, mean, color=color, linestyle=line, **style)
    axes.fill_between(x, *ends, color=color, alpha=0.16, linewidth=0)


def _draw_differences(
    axes: Axes, theme: Theme, comparisons: Sequence[Comparison]
) -> None:
    for row, interval in enumerate(c.scores["mean_iou"] for c in comparisons):
        color = getattr(theme, role_of(verdict(interval)))
        ends = [100 * interval.low, 100 * interval.high]
        axes.plot(ends, [row, row], color=color, linewidth=3, solid_capstyle="round")
        axes.plot(100 * interval.estimate, row, "o", color=color, markersize=7)
    axes.axvline(0, color=theme.ink, linewidth=1)
    name_rows(axes, [f"{c.name}\n{c.at}" for c in comparisons])
    axes.set_xlabel("points of mean IoU; the line is the 95 % interval")


def _draw_classes(
    axes: Axes,
    theme: Theme,
    intervals: Sequence[tuple[Interval, str]],
    labels: Sequence[str],
    limits: tuple[float, float],
) -> None:
    style = dict(color=theme.ink, linewidth=1.1, marker="|", markersize=5)
    for row, (interval, word) in enumerate(intervals):
        if not math.isnan(interval.low):
            color = getattr(theme, role_of(word))
            length = 100 * interval.estimate
            axes.barh(row, length, height=0.62, color=color, alpha=0.75)
            axes.plot([100 * interval.low, 100 * interval.high], [row, row], **style)
    axes.axvline(0, color=theme.ink, linewidth=1)
    name_rows(axes, labels)
    axes.set_xlim(limits)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlabel("points of IoU; share of the pixels beside each class")


def _draw_shares(
    axes: Axes,
    theme: Theme,
    shares: dict[str, np.ndarray],
    pixels: np.ndarray,
    names: Sequence[str],
    split: str,
) -> None:
    rows = np.arange(len(names))
    style = dict(color=theme.quiet, markersize=13, markeredgewidth=2.5)
    label = f"share of the pixels of {split}"
    axes.plot(_visible(pixels), rows, "|", label=label, **style)
    for i, (arm, share) in enumerate(shares.items()):
        place = rows + 0.5 * ((i + 0.5) / len(shares) - 0.5)
        style = dict(color=theme.series[i % len(theme.series)], markersize=4.5)
        marker = "os^D"[i // len(theme.series) % 4]
        axes.plot(_visible(share), place, marker, label=arm, **style)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
    axes.xaxis.set_minor_formatter(lambda share, _: "")
    name_rows(axes, names)
    axes.set_xlabel("share of the gradient, mean of the batches logged")
    legend_below(axes, columns=2)


def _visible(shares: np.ndarray) -> np.ndarray:
    """Raises tiny shares to the end of a logarithmic axis; 0 becomes NaN, not drawn."""
    return np.where(shares > 0, np.maximum(shares, _LEAST_SHARE), np.nan)


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Names the rows of a plot on its y axis, the first on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")


def _legend_inches(entries: int) -> float:
    return 0.2 * math.ceil(entries / 2)


def legend_below(axes: Axes, *, columns: int, **options: Any) -> None:
    """Draws the legend below the axes; `options` are those of `Axes.legend`."""
    axes.legend(
        frameon=False,
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        # In font sizes, so that axis labels have room at any height of the axes.
        borderaxespad=4,
        ncols=columns,
        **options,
    )


def role_of(word: str) -> str:
    """Returns the field of `Theme` that colours a verdict.

    It is "better" or "worse" for these two verdicts, and "quiet" for any other.
    """
    return word if word in (BETTER, WORSE) else "quiet"

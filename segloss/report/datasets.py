"""Tables and a figure of the statistics that `--mode=inspect` collects.

All functions take the contents of `inspect.json`; see `segloss.inspection`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table
from rich.text import Text

from segloss.report.figures import make_figure
from segloss.report.tables import make_table

_SIZE_INCHES = (13.0, 10.0)
# Companions that the table lists for each class; the figure shows all classes.
_COMPANIONS = 3


def dataset_table(statistics: Mapping[str, Any]) -> Table:
    """Pixel share, image share and class weight of each class."""
    numbers = ("pixels", "images", "median-frequency weight")
    table = make_table(["class"], numbers)
    for row in statistics["classes"]:
        table.add_row(
            Text(row["name"]),
            f"{row['pixel_share']:.2%}",
            f"{row['image_share']:.2%}",
            f"{row['median_frequency']:.3f}",
        )
    table.caption = f"{statistics['num_images']} images of {statistics['split']}"
    return table


def acceptance_table(statistics: Mapping[str, Any]) -> Table:
    """Share of successful attempts, a column per `batch_max`; 0 is a dash."""
    pairs = {(p["batch_cl"], p["batch_max"]): p for p in statistics["acceptance"]}
    sizes = sorted({batch_max for _, batch_max in pairs})
    table = make_table(["batch_cl"], (f"within {n}" for n in sizes))
    for batch_cl in sorted({batch_cl for batch_cl, _ in pairs}):
        cells = (pairs.get((batch_cl, batch_max)) for batch_max in sizes)
        table.add_row(str(batch_cl), *map(_acceptance, cells))
    table.caption = "share of Balance-batch attempts with at least batch_cl classes"
    return table


def exposure_table(statistics: Mapping[str, Any]) -> Table:
    """How often each sampler draws a sample, and the class that it shows least.

    The share of a class is the share of the drawn images that have it.
    """
    remark = "rarest class, share of images drawn"
    table = make_table(["sampler"], ["least", "median", "most"], [remark])
    table.columns[0].no_wrap = True
    names = [row["name"] for row in statistics["classes"]]
    for name, row in statistics["exposures"].items():
        classes = np.array(row["class_share"])
        # Ignore classes without images; they say nothing about the sampler.
        seen = np.flatnonzero([c["image_share"] > 0 for c in statistics["classes"]])
        rarest = seen[classes[seen].argmin()]
        table.add_row(
            name,
            *(f"{row[key]:g}" for key in ("min", "median", "max")),
            Text(f"{names[rarest]} {classes[rarest]:.2%}"),
        )
    table.caption = f"times a sample is drawn in {statistics['exposure_epochs']} epochs"
    return table


def class_exposure_table(statistics: Mapping[str, Any]) -> Table:
    """Share of the drawn images that have each class, a column per sampler."""
    samplers = statistics["exposures"].values()
    # Narrow, so that all fit on a line of 80 characters.
    names = (name.replace("_", "\n") for name in statistics["exposures"])
    table = make_table(["class"], names)
    table.padding = 0
    table.columns[0].no_wrap = True
    for c, row in enumerate(statistics["classes"]):
        shares = (f"{sampler['class_share'][c]:.1%}" for sampler in samplers)
        table.add_row(Text(row["name"]), *shares)
    table.caption = "share of the images drawn that have the class"
    return table


def co_occurrence_table(statistics: Mapping[str, Any]) -> Table:
    """The classes that most often share an image with each class."""
    table = make_table(["class", "with"])
    names = [row["name"] for row in statistics["classes"]]
    for c, shares in enumerate(np.array(statistics["co_occurrence"])):
        others = [k for k in np.argsort(-shares, kind="stable") if k != c and shares[k]]
        most = (f"{names[k]} {shares[k]:.0%}" for k in others[:_COMPANIONS])
        table.add_row(Text(names[c]), Text(", ".join(most)))
    table.caption = "share of the images of a class that also have the other class"
    return table


def dataset_figure(statistics: Mapping[str, Any]) -> Figure:
    """Draws a panel each for shares, co-occurrence, acceptance and exposures."""
    figure = make_figure(*_SIZE_INCHES)
    panels = figure.subplots(2, 2)
    names = [row["name"] for row in statistics["classes"]]
    _draw_shares(panels[0, 0], statistics["classes"])
    _draw_co_occurrence(panels[0, 1], np.array(statistics["co_occurrence"]), names)
    _draw_acceptance(panels[1, 0], statistics["acceptance"])
    _draw_exposures(panels[1, 1], statistics, names)
    title = f"{statistics['dataset']}, {statistics['num_images']} images"
    figure.suptitle(f"{title} of {statistics['split']}", fontsize=12)
    return figure


def _acceptance(pair: Mapping[str, Any] | None) -> str:
    if pair is None or pair["acceptance"] == 0:
        return "\N{EN DASH}"
    share = pair["acceptance"]
    return f"{share:.0%}" if share >= 0.01 else f"{share:.2%}"


def _draw_shares(axes: Axes, classes: Sequence[Mapping[str, Any]]) -> None:
    rows = np.arange(len(classes))
    for shift, key, label in (
        (-0.2, "pixel_share", "of the labelled pixels"),
        (0.2, "image_share", "of the images"),
    ):
        axes.barh(rows + shift, [c[key] for c in classes], height=0.4, label=label)
    axes.set_xscale("log")
    axes.set_yticks(rows, [c["name"] for c in classes], fontsize=8)
    axes.invert_yaxis()
    axes.set_title("share of each class", fontsize=10)
    axes.legend(fontsize=8)
    axes.grid(axis="x", alpha=0.3)


def _draw_co_occurrence(
    axes: Axes, co_occurrence: np.ndarray, names: Sequence[str]
) -> None:
    image = axes.imshow(co_occurrence, vmin=0, vmax=1, cmap="viridis")
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    title = "share of the images of a class (row) that hold another"
    axes.set_title(title, fontsize=10)
    axes.figure.colorbar(image, ax=axes, shrink=0.8)


def _draw_acceptance(axes: Axes, pairs: Sequence[Mapping[str, Any]]) -> None:
    for batch_max in sorted({p["batch_max"] for p in pairs}):
        of_size = [p for p in pairs if p["batch_max"] == batch_max]
        axes.plot(
            [p["batch_cl"] for p in of_size],
            [p["acceptance"] for p in of_size],
            marker="o",
            markersize=3,
            label=f"batch_max {batch_max}",
        )
    axes.set_xlabel("batch_cl")
    axes.set_ylim(0, 1.02)
    axes.set_title("attempts of Balance-batch that succeed", fontsize=10)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)


def _draw_exposures(
    axes: Axes, statistics: Mapping[str, Any], names: Sequence[str]
) -> None:
    rows = np.arange(len(names))
    for name, row in statistics["exposures"].items():
        axes.plot(row["class_share"], rows, "o-", ms=4, lw=0.8, label=name)
    axes.set_yticks(rows, names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_title("share of the images drawn that hold a class", fontsize=10)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)

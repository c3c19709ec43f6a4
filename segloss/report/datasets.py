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

_SIZE_INCHES = (13.0, 15.0)
# Number of other classes that `co_occurrence_table` lists for each class.
_COMPANIONS = 3


def dataset_table(statistics: Mapping[str, Any]) -> Table:
    """Share of pixels, share of images and median-frequency weight of each class."""
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
    """Share of Balance-batch attempts that succeed, by `batch_cl` and `batch_max`.

    An attempt draws at most `batch_max` images, and succeeds if they have at least
    `batch_cl` classes. A dash means that none succeeded.
    """
    pairs = {(p["batch_cl"], p["batch_max"]): p for p in statistics["acceptance"]}
    sizes = sorted({batch_max for _, batch_max in pairs})
    table = make_table(["batch_cl"], (f"within {n}" for n in sizes))
    for batch_cl in sorted({batch_cl for batch_cl, _ in pairs}):
        cells = (pairs.get((batch_cl, batch_max)) for batch_max in sizes)
        table.add_row(str(batch_cl), *map(_acceptance, cells))
    table.caption = "share of Balance-batch attempts with at least batch_cl classes"
    return table


def exposure_table(statistics: Mapping[str, Any]) -> Table:
    """Least, median and most times that each sampler draws a sample.

    Also names the class that the fewest of the drawn images have, and their share.
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
    table = _by_class(statistics, "exposures", "class_share")
    table.caption = "share of the images drawn that have the class"
    return table


def crop_table(statistics: Mapping[str, Any]) -> Table:
    """Mean number of classes of a batch in its images and in its crops, by sampler."""
    numbers = ("classes in images", "in crops", "batches with batch_cl")
    table = make_table(["sampler"], numbers)
    for name, row in statistics["crops"].items():
        share = row["share_with_batch_cl"]
        table.add_row(
            name,
            f"{row['classes_in_images']:.2f}",
            f"{row['classes_in_crops']:.2f}",
            "\N{EN DASH}" if share is None else f"{share:.0%}",
        )
    table.caption = f"distinct classes of a batch, in {statistics['crop']}"
    return table


def class_crop_table(statistics: Mapping[str, Any]) -> Table:
    """Share of each class in the labelled pixels of the crops, a column per sampler."""
    table = _by_class(statistics, "crops", "pixel_share")
    table.caption = "share of the class in the labelled pixels of the crops"
    return table


def _by_class(statistics: Mapping[str, Any], section: str, key: str) -> Table:
    """Table of `statistics[section][sampler][key]`: a row per class."""
    samplers = statistics[section]
    # Narrow, so that all fit on a line of 80 characters.
    table = make_table(["class"], (name.replace("_", "\n") for name in samplers))
    table.padding = 0
    table.columns[0].no_wrap = True
    for c, row in enumerate(statistics["classes"]):
        shares = (f"{sampler[key][c]:.1%}" for sampler in samplers.values())
        table.add_row(Text(row["name"]), *shares)
    return table


def co_occurrence_table(statistics: Mapping[str, Any]) -> Table:
    """For each class, the three other classes that most of its images also have."""
    table = make_table(["class", "with"])
    names = [row["name"] for row in statistics["classes"]]
    for c, shares in enumerate(np.array(statistics["co_occurrence"])):
        others = [k for k in np.argsort(-shares, kind="stable") if k != c and shares[k]]
        most = (f"{names[k]} {shares[k]:.0%}" for k in others[:_COMPANIONS])
        table.add_row(Text(names[c]), Text(", ".join(most)))
    table.caption = "share of the images of a class that also have the other class"
    return table


def dataset_figure(statistics: Mapping[str, Any]) -> Figure:
    """Draws a panel each for shares, co-occurrence, acceptance, exposures and crops."""
    figure = make_figure(*_SIZE_INCHES)
    panels = figure.subplots(3, 2)
    names = [row["name"] for row in statistics["classes"]]
    shares = {
        "of the labelled pixels": [row["pixel_share"] for row in statistics["classes"]],
        "of the images": [row["image_share"] for row in statistics["classes"]],
    }
    _draw_pairs(panels[0, 0], shares, names, "share of each class")
    panels[0, 0].set_xscale("log")
    _draw_co_occurrence(panels[0, 1], np.array(statistics["co_occurrence"]), names)
    _draw_acceptance(panels[1, 0], statistics["acceptance"])
    title = "share of the images drawn that hold a class"
    exposures = {k: v["class_share"] for k, v in statistics["exposures"].items()}
    _draw_by_class(panels[1, 1], exposures, names, title)
    crops = statistics["crops"]
    classes = {
        "in the images": [row["classes_in_images"] for row in crops.values()],
        "in the crops": [row["classes_in_crops"] for row in crops.values()],
    }
    samplers = [name.replace("_", " ") for name in crops]
    title = f"distinct classes of a batch, {statistics['crop']}"
    _draw_pairs(panels[2, 0], classes, samplers, title)
    title = "share of the labelled pixels of the crops"
    pixels = {k: v["pixel_share"] for k, v in crops.items()}
    _draw_by_class(panels[2, 1], pixels, names, title)
    panels[2, 1].set_xscale("symlog", linthresh=1e-3)
    title = f"{statistics['dataset']}, {statistics['num_images']} images"
    figure.suptitle(f"{title} of {statistics['split']}", fontsize=12)
    return figure


def _acceptance(pair: Mapping[str, Any] | None) -> str:
    if pair is None or pair["acceptance"] == 0:
        return "\N{EN DASH}"
    share = pair["acceptance"]
    return f"{share:.0%}" if share >= 0.01 else f"{share:.2%}"


def _draw_pairs(
    axes: Axes,
    bars: Mapping[str, Sequence[float]],
    names: Sequence[str],
    title: str,
) -> None:
    """Draws two bars per name."""
    rows = np.arange(len(names))
    for shift, (label, values) in zip((-0.2, 0.2), bars.items(), strict=True):
        axes.barh(rows + shift, values, height=0.4, label=label)
    axes.set_yticks(rows, names, fontsize=8)
    axes.invert_yaxis()
    axes.set_title(title, fontsize=10)
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


def _draw_by_class(
    axes: Axes,
    shares: Mapping[str, Sequence[float]],
    names: Sequence[str],
    title: str,
) -> None:
    """Draws a line per sampler through its shares, with a row per class."""
    rows = np.arange(len(names))
    for name, values in shares.items():
        axes.plot(values, rows, "o-", ms=4, lw=0.8, label=name)
    axes.set_yticks(rows, names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_title(title, fontsize=10)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)

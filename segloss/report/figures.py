"""Figures of example predictions and of training curves."""

import json
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from jaxtyping import Float, Int, Integer, UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from segloss.errors import SeglossError
from segloss.report.palette import VOID_COLOR, to_colors, voc_palette
from segloss.writing import replacing

_DPI = 110
_WIDTH_INCHES = 9.0
_LEGEND_COLUMNS = 6
_TITLE_LETTERS = 44  # fits above one of three panels


class Example(TypedDict):
    """One image of `example_figure`.

    Attributes:
        title: title above the image.
        image: RGB.
        labels: true class ids, or the ignore label.
        predicted: predicted class ids.
    """

    title: str
    image: UInt8[np.ndarray, "h w 3"]
    labels: Integer[np.ndarray, "h w"]
    predicted: Integer[np.ndarray, "h w"]


def example_figure(
    examples: Sequence[Example], class_names: Sequence[str], *, ignore_label: int = 255
) -> Figure:
    """Draws image, true labels and prediction side by side, one row per example.

    All panels have the same width. A legend lists the classes that occur.

    Args:
        examples: one or more, such as the best, the median and the worst image.
        class_names: names by class id.
        ignore_label: label of void pixels, drawn light grey.
    """
    handles = _legend_handles(examples, class_names, ignore_label)
    shapes = [example["image"].shape for example in examples]
    # Very tall images are drawn narrower, so that a row fits on a screen.
    row_inches = [_WIDTH_INCHES / 3 * min(h / w, 1.5) + 0.25 for h, w, _ in shapes]
    legend_inches = 0.2 + 0.2 * math.ceil(len(handles) / _LEGEND_COLUMNS)
    size = (_WIDTH_INCHES, sum(row_inches) + legend_inches)
    figure = make_figure(*size)
    rows = figure.subplots(len(examples), 3, squeeze=False, height_ratios=row_inches)
    for axes, example in zip(rows, examples, strict=True):
        truth = to_colors(example["labels"], ignore_label=ignore_label)
        predicted = to_colors(example["predicted"], ignore_label=ignore_label)
        _draw(axes[0], example["image"], example["title"], loc="left")
        _draw(axes[1], truth, "truth")
        _draw(axes[2], predicted, "prediction")
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=_LEGEND_COLUMNS,
        frameon=False,
        fontsize=9,
    )
    return figure


def curve_figure(
    metrics_path: str | Path, *, smoothed_steps: int | None = None
) -> Figure:
    """Draws the training loss by step, and the mean IoU by step if there are any.

    Args:
        metrics_path: a run's `metrics.jsonl`: lines with `step` and `loss`, others with
            `step` and `SPLIT_mean_iou`. An incomplete last line is ignored.
        smoothed_steps: number of points averaged for the thick line; None means 1 / 50
            of all points.

    Raises:
        ValueError: if the file has no loss, or a line other than the last is damaged.
    """
    lines = read_metrics(metrics_path)
    steps, losses = _series(lines, "loss")
    if not len(steps):
        raise SeglossError(
            f"curve_figure: {metrics_path} must hold a loss, but has none."
        )
    window = smoothed_steps or max(1, len(steps) // 50)
    scores = sorted(
        {key for line in lines for key in line if key.endswith("_mean_iou")}
    )
    figure = make_figure(_WIDTH_INCHES, 3.6)
    panels = figure.subplots(1, 1 + bool(scores), squeeze=False)[0]
    panels[0].plot(steps, losses, color="tab:blue", linewidth=0.6, alpha=0.35)
    panels[0].plot(steps, _smooth(losses, window), color="tab:blue", linewidth=1.6)
    panels[0].set_title(f"loss, and its mean over {window} steps", fontsize=10)
    for key in scores:
        steps, values = _series(lines, key)
        split = key.removesuffix("_mean_iou")
        best = int(np.argmax(values))
        label = f"{split}: best {values[best]:.3f} at step {steps[best]}"
        panels[1].plot(steps, values, marker="o", markersize=3, label=label)
        panels[1].set_title("mean IoU", fontsize=10)
        panels[1].legend(loc="lower right", fontsize=9)
    for axes in panels:
        axes.set_xlabel("step")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Reads the lines of a run's `metrics.jsonl`; ignores an incomplete last line.

    Raises:
        ValueError: if another line is damaged; it names the file and the line.
    """
    text = Path(path).read_text(errors="replace")
    lines = []
    for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), 1):
        try:
            lines.append(json.loads(line))
            lines[-1]["step"]
        except (ValueError, LookupError, TypeError) as error:
            raise SeglossError(
                f"{path}: line {number} is damaged; delete that line, or delete the "
                "run's folder and run it again."
            ) from error
    return lines


def make_figure(width_inches: float, height_inches: float) -> Figure:
    """Makes an empty figure with the resolution and layout of all figures here."""
    size = (width_inches, height_inches)
    return Figure(figsize=size, dpi=_DPI, layout="constrained")


def save_figure(figure: Figure, path: str | Path) -> None:
    """Writes a figure as a PNG without metadata; creates its folder if needed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as unfinished:
        # Matplotlib would write its own version into the file.
        FigureCanvasAgg(figure).print_png(unfinished, metadata={"Software": None})


def _legend_handles(
    examples: Sequence[Example], class_names: Sequence[str], ignore_label: int
) -> list[Patch]:
    maps = [example[key] for example in examples for key in ("labels", "predicted")]
    found = np.unique(np.concatenate([np.unique(labels) for labels in maps]))
    colors = voc_palette(len(class_names)) / 255
    handles = [
        Patch(
            facecolor=colors[c], edgecolor="black", linewidth=0.5, label=class_names[c]
        )
        for c in found[found != ignore_label]
    ]
    if ignore_label in found:
        void = np.array(VOID_COLOR) / 255
        handles.append(
            Patch(facecolor=void, edgecolor="black", linewidth=0.5, label="void")
        )
    return handles


def _draw(axes: Axes, pixels: UInt8[np.ndarray, "h w 3"], title: str, **place) -> None:
    axes.imshow(pixels)
    axes.set_title(textwrap.fill(title, _TITLE_LETTERS), fontsize=9, **place)
    axes.set_axis_off()


def _series(
    lines: Sequence[dict[str, Any]], key: str
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Returns the steps of the lines that have `key`, and its values."""
    pairs = [(line["step"], line[key]) for line in lines if key in line]
    steps, values = zip(*pairs, strict=True) if pairs else ((), ())
    return np.array(steps, np.int64), np.array(values, np.float64)


def _smooth(values: Float[np.ndarray, " n"], window: int) -> Float[np.ndarray, " n"]:
    """Replaces each value by the mean of the `window` values around it."""
    ones = np.ones(min(window, len(values)))
    count = np.convolve(np.ones_like(values), ones, mode="same")
    return np.convolve(values, ones, mode="same") / count

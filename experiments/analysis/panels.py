"""Draws panels: plots that share a PNG in a README, and are single SVGs on a page."""

import dataclasses
import html
import io
import math
import re
from collections.abc import Callable, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from segloss.report import make_figure

_COLUMNS = 3
# Names of classes and arms may contain `$`, which must not start a formula.
_PLAIN_TEXT = {"text.parse_math": False}


@dataclasses.dataclass(frozen=True)
class Theme:
    """Colours of a figure."""

    ink: str
    muted: str
    grid: str
    better: str
    worse: str
    quiet: str
    series: tuple[str, ...]


# Colours that colour-blind readers can tell apart (after Okabe and Ito 2008).
_LIGHT_SERIES = "#0b67a8 #c8501b #108467 #a6467f #946c00 #3a8fc2 #6a56b8 #4a5361"
_DARK_SERIES = "#5bb0ea #f0895c #45c39b #dd86bb #d9b13b #9bd0f2 #ab9bf2 #b8c1cd"
LIGHT = Theme(
    ink="#1c2330",
    muted="#5b6675",
    grid="#d9dee6",
    better="#0f7b5f",
    worse="#b4431f",
    quiet="#7d8896",
    series=tuple(_LIGHT_SERIES.split()),
)
DARK = Theme(
    ink="#e6eaf0",
    muted="#9ba6b5",
    grid="#323b48",
    better="#3fc49c",
    worse="#f0855f",
    quiet="#667180",
    series=tuple(_DARK_SERIES.split()),
)
# Placeholder colours that `svg` replaces by CSS variables; no figure uses them.
_NAMES = [field.name for field in dataclasses.fields(Theme)][:-1]
_NAMES += [f"series-{i}" for i in range(len(LIGHT.series))]
_VARIABLES = {f"#fe01{i:02x}": name for i, name in enumerate(_NAMES)}
_PAGE = Theme(*list(_VARIABLES)[:6], series=tuple(list(_VARIABLES)[6:]))


def variables() -> dict[str, tuple[str, str]]:
    """Maps each CSS variable that `svg` uses to its light and its dark colour."""
    pairs = zip(_flat(LIGHT), _flat(DARK), strict=True)
    return dict(zip(_VARIABLES.values(), pairs, strict=True))


def _flat(theme: Theme) -> list[str]:
    *named, series = dataclasses.astuple(theme)
    return [*named, *series]


@dataclasses.dataclass(frozen=True)
class Panel:
    """One plot: `draw` draws it on axes in the colours of a theme.

    `words` says what it shows, for readers who cannot see it.
    """

    title: str
    words: str
    hw_inches: tuple[float, float]
    draw: Callable[[Axes, Theme], None]


def grid_figure(panels: Sequence[Panel], *, columns: int = _COLUMNS) -> Figure:
    """Draws all panels in one figure with up to `columns` columns, for a README."""
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    width = max(panel.hw_inches[1] for panel in panels)
    heights = [
        max(panel.hw_inches[0] for panel in panels[row * columns :][:columns])
        for row in range(rows)
    ]
    figure = make_figure(width * columns, sum(heights))
    with matplotlib.rc_context(_PLAIN_TEXT):
        grid = figure.subplots(rows, columns, squeeze=False, height_ratios=heights)
        grid = grid.ravel()
        for axes, panel in zip(grid, panels, strict=False):
            _draw(panel, axes, LIGHT)
            axes.set_title(panel.title, fontsize=10, color=LIGHT.ink)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    return figure


def svg(panel: Panel) -> str:
    """Draws a panel as SVG that takes colours and font from the page it is part of."""
    height, width = panel.hw_inches
    figure = Figure((width, height), layout="constrained", facecolor="none")
    text = io.StringIO()
    settings = {"svg.fonttype": "none", "svg.hashsalt": panel.title}
    with matplotlib.rc_context(_PLAIN_TEXT | settings):
        _draw(panel, figure.subplots(), _PAGE)
        nothing = dict.fromkeys(["Date", "Creator", "Format", "Type"])
        FigureCanvasSVG(figure).print_svg(text, metadata=nothing)
    drawn = text.getvalue()
    # Names such as "axes_1" would be on the page once for each panel.
    drawn = re.sub(r' id="[\w.]+_\d+"', "", drawn[drawn.index("<svg") :])
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    for color, name in _VARIABLES.items():
        drawn = drawn.replace(color, f"var(--{name})")
    drawn = re.sub(r"'DejaVu Sans'[^;\"]*", "inherit", drawn)
    box = f'viewBox="0 0 {72 * width:g} {72 * height:g}"'
    words = html.escape(panel.words)
    _, _, inside = drawn.partition(">")
    return (
        f'<svg {box} role="img" aria-label="{words}" style="--width: {width}in" '
        'xmlns="http://www.w3.org/2000/svg" '
        f'xmlns:xlink="http://www.w3.org/1999/xlink">{inside}'
    )


def _draw(panel: Panel, axes: Axes, theme: Theme) -> None:
    axes.set_facecolor("none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(theme.grid)
    axes.set_axisbelow(True)
    axes.grid(color=theme.grid, linewidth=0.8)
    panel.draw(axes, theme)
    axes.tick_params(
        which="both", labelcolor=theme.muted, labelsize=8, length=0, width=0
    )
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=theme.muted, fontsize=8.5)
    if axes.get_legend():
        for text in axes.get_legend().get_texts():
            text.set(color=theme.ink, fontsize=8)

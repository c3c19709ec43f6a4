"""Tables and figures, made from result files and arrays."""

from segloss.report.figures import (
    Example,
    curve_figure,
    example_figure,
    save_figure,
)
from segloss.report.palette import overlay, to_palette_png, voc_palette
from segloss.report.tables import class_table, markdown_table, summary_table

__all__ = [
    "Example",
    "class_table",
    "curve_figure",
    "example_figure",
    "markdown_table",
    "overlay",
    "save_figure",
    "summary_table",
    "to_palette_png",
    "voc_palette",
]

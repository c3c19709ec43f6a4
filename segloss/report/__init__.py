"""Tables and figures, made from result files and arrays."""

from segloss.report.datasets import (
    acceptance_table,
    class_crop_table,
    class_exposure_table,
    co_occurrence_table,
    crop_table,
    dataset_figure,
    dataset_table,
    exposure_table,
)
from segloss.report.figures import (
    Example,
    curve_figure,
    example_figure,
    make_figure,
    read_metrics,
    save_figure,
)
from segloss.report.palette import overlay, voc_palette
from segloss.report.tables import (
    class_table,
    make_table,
    markdown_table,
    summary_table,
    table_rows,
)

__all__ = [
    "Example",
    "acceptance_table",
    "class_crop_table",
    "class_exposure_table",
    "class_table",
    "co_occurrence_table",
    "crop_table",
    "curve_figure",
    "dataset_figure",
    "dataset_table",
    "example_figure",
    "exposure_table",
    "make_figure",
    "make_table",
    "markdown_table",
    "overlay",
    "read_metrics",
    "save_figure",
    "summary_table",
    "table_rows",
    "voc_palette",
]

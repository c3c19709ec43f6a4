"""Writes the results of a study into its README."""

import pathlib

from matplotlib import style

from experiments.analysis import tables
from experiments.analysis.compare import conclusion
from experiments.analysis.evidence import CSV_NAME, select_evidence, to_csv
from experiments.analysis.panels import grid_figure
from experiments.analysis.paper import PAPER_CSV
from experiments.analysis.store import Study
from experiments.report.contents import contents, render
from segloss.errors import SeglossError
from segloss.report import markdown_table, save_figure
from segloss.writing import write_text

_BEGIN, _END = "<!-- results -->\n", "<!-- end of results -->\n"
_COMPARISONS_PER_TABLE = 3
_PANELS_PER_PLOT = 9


def begin_readme(study: Study, folder: pathlib.Path) -> None:
    """Writes a new `folder/README.md` with the markers between which results go."""
    text = f"# {study.name}\n\n{study.question}\n\n{_BEGIN}{_END}"
    write_text(folder / "README.md", text)


def check_place(readme: pathlib.Path) -> None:
    """Checks that a README has the markers between which results go.

    Raises:
        ValueError: if it lacks a marker, or they occur twice or in the wrong order.
    """
    text = readme.read_text() if readme.exists() else ""
    once = text.count(_BEGIN) == text.count(_END) == 1
    if not once or text.index(_BEGIN) > text.index(_END):
        raise SeglossError(
            f"{readme} must hold the lines {_BEGIN.strip()} and {_END.strip()} once."
        )


def replace_results(readme: pathlib.Path, results: str) -> None:
    """Replaces the text between the markers of a README by `results`.

    Raises:
        ValueError: if `check_place` does.
    """
    check_place(readme)
    before, _, rest = readme.read_text().partition(_BEGIN)
    _, _, after = rest.partition(_END)
    write_text(readme, f"{before}{_BEGIN}\n{results}\n{_END}{after}")


def write_study(
    study: Study,
    folder: pathlib.Path,
    *,
    paper_csv: pathlib.Path = PAPER_CSV,
    resamples: int = 2000,
) -> None:
    """Writes a study's plots to `folder/plots/` and its results to `folder/README.md`.

    Comparisons of Balance-batch with random batches also go to
    `folder/balance_batch.csv`, which the page over all studies is made from. Other PNGs
    in `folder/plots/` are deleted. `paper_csv` and `resamples` are those of `contents`.
    Of a study that lacks runs, only their number is written.

    Raises:
        ValueError: if the README lacks the markers; see `check_place`.
    """
    if study.missing:
        _write_progress(study, folder)
        return
    shown = contents(study, paper_csv=paper_csv, resamples=resamples)
    plots = shown["plots"]
    if "curves" in plots:
        # One kind of curve is enough for a README; the page has both.
        del plots["losses"]
    # The bytes must not depend on a user's matplotlibrc.
    with style.context("default"):
        for name, (_, panels) in plots.items():
            figure = grid_figure(panels[:_PANELS_PER_PLOT])
            save_figure(figure, folder / "plots" / f"{name}.png")
    for path in (folder / "plots").glob("*.png"):
        if path.stem not in plots:
            path.unlink()
    comparisons = shown["comparisons"]
    if found := select_evidence(study, comparisons):
        write_text(folder / CSV_NAME, to_csv(found))
    else:
        (folder / CSV_NAME).unlink(missing_ok=True)
    parts = range(0, len(comparisons), _COMPARISONS_PER_TABLE)
    results = render(
        "readme.md.jinja",
        **shown,
        comparisons_by_table=[comparisons[i:][:_COMPARISONS_PER_TABLE] for i in parts],
        panels_per_plot=_PANELS_PER_PLOT,
        provenance=tables.provenance(study),
        class_differences_table=tables.class_differences_table,
        conclusion=conclusion,
        markdown_table=markdown_table,
    )
    replace_results(folder / "README.md", results)


def _write_progress(study: Study, folder: pathlib.Path) -> None:
    for path in (folder / "plots").glob("*.png"):
        path.unlink()
    done = len(study.runs)
    replace_results(
        folder / "README.md",
        f"{done} of {done + study.missing} runs are done. Results are shown when all "
        f"are, so that none\nof them decides when to stop.\n",
    )

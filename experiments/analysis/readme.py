"""The part of a README that is written by a command, between two markers."""

import pathlib
from collections.abc import Iterator, Mapping, Sequence

from matplotlib import style

from experiments.analysis import tables
from experiments.analysis.compare import Comparison, compare, conclusion
from experiments.analysis.figures import make_plots
from experiments.analysis.panels import Panel, grid_figure
from experiments.analysis.paper import PAPER_CSV, Reported, read_reported
from experiments.analysis.store import Study
from segloss.report import markdown_table, save_figure
from segloss.writing import write_text

_BEGIN, _END = "<!-- results -->\n", "<!-- end of results -->\n"
_COMPARISONS_PER_TABLE = 3
_PANELS_PER_PLOT = 9


def begin_readme(study: Study, folder: pathlib.Path) -> None:
    """Writes the README of a study that has none, with a place for results."""
    text = f"# {study.name}\n\n{study.question}\n\n{_BEGIN}{_END}"
    write_text(folder / "README.md", text)


def has_place(readme: pathlib.Path) -> bool:
    """Whether a README holds each marker once, in order."""
    text = readme.read_text() if readme.exists() else ""
    once = text.count(_BEGIN) == text.count(_END) == 1
    return once and text.index(_BEGIN) < text.index(_END)


def check_place(readme: pathlib.Path) -> None:
    """Checks that there is a place for results, before anything is written.

    Raises:
        ValueError: if there is none.
    """
    if not has_place(readme):
        raise ValueError(
            f"{readme} must hold the lines {_BEGIN.strip()} and {_END.strip()} once."
        )


def replace_results(readme: pathlib.Path, results: str) -> None:
    """Replaces what stands between the markers.

    Raises:
        ValueError: if the README does not hold each of them once, in order.
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
    """Writes the plots of a study into `folder/plots/`, and its README's results.

    Raises:
        ValueError: if the README has no place for them.
    """
    reported = read_reported(study.paper, paper_csv)
    comparisons = compare(study, resamples=resamples)
    plots = make_plots(study, comparisons, reported)
    if "curves" in plots:
        # One kind of curve will do for a README; the page has both.
        del plots["losses"]
    # The same bytes for everyone, whatever a matplotlibrc of theirs says.
    with style.context("default"):
        for name, (_, panels) in plots.items():
            save_figure(
                grid_figure(panels[:_PANELS_PER_PLOT]), folder / "plots" / f"{name}.png"
            )
    for path in (folder / "plots").glob("*.png"):
        if path.stem not in plots:
            path.unlink()
    parts = _parts(study, comparisons, reported, plots)
    replace_results(folder / "README.md", "\n".join(parts))


def _parts(
    study: Study,
    comparisons: Sequence[Comparison],
    reported: Sequence[Reported],
    plots: Mapping[str, tuple[str, list[Panel]]],
) -> Iterator[str]:
    def plot(name: str) -> Iterator[str]:
        if name in plots:
            title, panels = plots[name]
            yield f"![{title}](plots/{name}.png)\n"
            if len(panels) > _PANELS_PER_PLOT:
                yield (
                    f"The first {_PANELS_PER_PLOT} of {len(panels)}; the page of "
                    "`experiments.report` has all.\n"
                )

    if comparisons:
        yield "".join(f"- {conclusion(c)}\n" for c in comparisons)
        yield markdown_table(tables.comparisons_table(comparisons, study))
        yield f"{tables.caveat(study)}\n"
        yield from plot("differences")
    if any(c.binary for c in comparisons):
        yield markdown_table(tables.binary_comparisons_table(comparisons, study))
        yield markdown_table(tables.binary_arms_table(study))
    yield markdown_table(tables.arms_table(study))
    yield from plot("batches")
    if reported:
        yield markdown_table(tables.paper_table(study, reported))
    yield from plot("curves")
    yield from plot("losses")
    yield from plot("classes")
    if comparisons:
        yield "<details><summary>Differences of each class</summary>\n"
        for i in range(0, len(comparisons), _COMPARISONS_PER_TABLE):
            some = comparisons[i : i + _COMPARISONS_PER_TABLE]
            yield markdown_table(tables.class_differences_table(some, study))
        yield "</details>\n"
    yield from plot("gradient_shares")
    yield f"{tables.provenance(study)}\n"

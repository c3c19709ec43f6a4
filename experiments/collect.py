r"""Collects the runs of a study into files to commit, and writes its README's results.

python -m experiments.collect STUDY --workdir=DIR    # from the folders of its runs
python -m experiments.collect STUDY                  # from what is stored already

The first writes `experiments/STUDY/results/`; both write the plots beside it and what
stands between `<!-- results -->` and `<!-- end of results -->` in its README, the same
bytes each time. What a run of `experiments.run --smoke` left is collected within DIR.
"""

import pathlib
from collections.abc import Iterator, Mapping, Sequence

from absl import flags

from experiments import tables
from experiments.compare import Comparison, compare, conclusion
from experiments.figures import make_plots
from experiments.panels import Panel, grid_figure
from experiments.paper import PAPER_CSV, Reported, read_reported
from experiments.readme import EMPTY, replace_results
from experiments.store import Study, collect, load, save
from segloss import cli
from segloss.report import markdown_table, save_figure

WORKDIR = flags.DEFINE_string("workdir", None, "Where the study's runs lie.")
SMOKE = flags.DEFINE_bool("smoke", False, "What --smoke ran, within --workdir.")

_ROOT = pathlib.Path(__file__).parents[1]
_COMPARISONS_PER_TABLE = 3


def write_results(
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
    for stale in (folder / "plots").glob("*.png"):
        stale.unlink()
    for name, (_, panels) in plots.items():
        save_figure(grid_figure(panels), folder / "plots" / f"{name}.png")
    parts = _parts(study, comparisons, reported, plots)
    replace_results(folder / "README.md", "\n".join(parts))


def study_folder(name: str) -> pathlib.Path:
    """Where README, results and plots of a study lie."""
    return _ROOT / "experiments" / name


def study_config(name: str) -> pathlib.Path:
    """The config of a study."""
    return _ROOT / "configs" / "sweeps" / f"{name}.py"


def _parts(
    study: Study,
    comparisons: Sequence[Comparison],
    reported: Sequence[Reported],
    plots: Mapping[str, tuple[str, list[Panel]]],
) -> Iterator[str]:
    def plot(name: str) -> Iterator[str]:
        if name in plots:
            yield f"![{plots[name][0]}](plots/{name}.png)\n"

    if comparisons:
        yield "".join(f"- {conclusion(c)}\n" for c in comparisons)
        yield markdown_table(tables.comparisons_table(comparisons))
        yield from plot("differences")
    if any(c.binary for c in comparisons):
        yield markdown_table(tables.binary_comparisons_table(comparisons, study))
        yield markdown_table(tables.binary_arms_table(study))
    yield markdown_table(tables.arms_table(study))
    yield from plot("batches")
    if reported:
        yield markdown_table(tables.paper_table(study, reported))
    yield from plot("curves")
    yield from plot("classes")
    if comparisons:
        yield "<details><summary>Differences of each class</summary>\n"
        for i in range(0, len(comparisons), _COMPARISONS_PER_TABLE):
            some = comparisons[i : i + _COMPARISONS_PER_TABLE]
            yield markdown_table(tables.class_differences_table(some, study))
        yield "</details>\n"
    yield from plot("gradient_shares")
    yield f"{tables.provenance(study)}\n"


def main(argv: list[str]) -> None:
    _, name = argv
    folder = study_folder(name)
    if SMOKE.value:
        if WORKDIR.value is None:
            raise ValueError("--smoke needs --workdir, where what it ran lies.")
        folder = pathlib.Path(WORKDIR.value)
    if WORKDIR.value is not None:
        study = collect(study_config(name), WORKDIR.value, smoke=SMOKE.value)
        if SMOKE.value and not (folder / "README.md").exists():
            readme = f"# {name}\n\n{study.question}\n\n{EMPTY}"
            (folder / "README.md").write_text(readme)
        save(study, folder / "results")
    # Read back, so that both ways go through the same bytes.
    study = load(folder / "results")
    write_results(study, folder)
    print(f"{folder / 'README.md'}: {len(study.runs)} runs of {len(study.arms)} arms")


if __name__ == "__main__":
    cli.run(main, arguments=("STUDY",))

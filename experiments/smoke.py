"""Tries every study out, from its sweep to its page, in minutes and on embedded data.

python -m experiments.smoke --workdir=DIR
python -m experiments.smoke --workdir=DIR --studies=cracks,losses

Does what `experiments.run`, `collect` and `report` do with `--smoke`, for two studies
at a time. DIR/STUDY/ then holds the runs, README.md and report.html.
"""

import concurrent.futures
import io
import multiprocessing
import os
import pathlib
import time

from absl import flags
from rich.console import Console

from experiments.running.sweep import (
    expand,
    load_study,
    smoke_overrides,
    study_config,
)
from segloss import cli
from segloss.writing import write_text

WORKDIR = flags.DEFINE_string("workdir", None, "Where results go.", required=True)
STUDIES = flags.DEFINE_list("studies", None, "Names; default all of configs/sweeps.")
JOBS = flags.DEFINE_integer("jobs", 2, "Studies at once.", lower_bound=1)

# The intervals of a smoke run mean nothing, so few resamples suffice.
_RESAMPLES = 100


def try_out(name: str, workdir: pathlib.Path) -> int:
    """Runs a study at smoke size, collects it and writes its page.

    Returns:
        The number of its runs.

    Raises:
        RuntimeError: if a run failed; it holds the output of the runner.
    """
    from experiments.analysis.store import collect, load, save
    from experiments.report.page import make_page
    from experiments.report.pictures import make_pictures
    from experiments.report.readme import begin_readme, write_study
    from experiments.running.launch import Inline
    from experiments.running.runner import plan_sweep, run_sweep

    # Two processes at once cannot prepare one data set.
    os.environ["TFDS_DATA_DIR"] = str(workdir / ".data" / str(os.getpid()))
    folder, output = workdir / name, io.StringIO()
    study = load_study(study_config(name))
    runs = expand(study.get_config("smoke"), smoke_overrides(study))
    board, _ = plan_sweep(runs, folder, Console(file=output))
    launcher = Inline(cache=workdir / ".compiled")
    if run_sweep(board, folder, launcher, retries=0) != 0:
        raise RuntimeError(output.getvalue())
    save(collect(study_config(name), folder, smoke=True), folder / "results")
    results = load(folder / "results")
    begin_readme(results, folder)
    write_study(results, folder, resamples=_RESAMPLES)
    pictures = make_pictures(results, folder)
    page = make_page(results, pictures=pictures, resamples=_RESAMPLES)
    write_text(folder / "report.html", page)
    return len(results.runs)


def main(argv: list[str]) -> None:
    known = study_config("any").parent.glob("*.py")
    names = STUDIES.value or sorted(path.stem for path in known)
    workdir = pathlib.Path(WORKDIR.value).absolute()
    console, start, failed = Console(), time.monotonic(), []
    # Threads of jax do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(JOBS.value, context) as pool:
        pending = {pool.submit(try_out, name, workdir): name for name in names}
        for future in concurrent.futures.as_completed(pending):
            name = pending[future]
            if error := future.exception():
                failed.append(name)
                console.print(f"{name}: failed\n{error}", markup=False)
            else:
                console.print(f"{name}: {future.result()} runs, {workdir / name}")
    minutes = (time.monotonic() - start) / 60
    console.print(f"{len(names) - len(failed)} of {len(names)} in {minutes:.1f} min")
    if failed:
        raise ValueError(f"these studies failed: {', '.join(failed)}.")


if __name__ == "__main__":
    cli.run(main)

r"""Tries every study out, from its sweep to its page, in minutes and on embedded data.

python -m experiments.smoke --workdir=DIR
python -m experiments.smoke --workdir=DIR --studies=cracks,losses

What `experiments.run`, `collect` and `report` do with `--smoke`, for one study after
the other in each of two processes. DIR/STUDY/ holds runs, README.md and report.html.
"""

import concurrent.futures
import io
import multiprocessing
import os
import pathlib
import time

from absl import flags
from rich.console import Console

from segloss import cli
from segloss.writing import write_text

WORKDIR = flags.DEFINE_string("workdir", None, "Where results go.", required=True)
STUDIES = flags.DEFINE_list("studies", None, "Names; default all of configs/sweeps.")
JOBS = flags.DEFINE_integer("jobs", 2, "Studies at once.", lower_bound=1)

# Intervals of a smoke run say nothing, so few do.
_RESAMPLES = 100


def try_out(name: str, workdir: pathlib.Path) -> int:
    """Runs a study at smoke size, collects it and writes its page.

    Returns:
        The number of its runs.

    Raises:
        RuntimeError: if a run failed; it says what the runner said.
    """
    from experiments.analysis.readme import begin_readme, write_study
    from experiments.analysis.store import collect, load, save, study_config
    from experiments.report.page import make_page
    from experiments.report.pictures import make_pictures
    from experiments.running.board import Board, Row
    from experiments.running.fingerprint import check_unmixed, code_fingerprint
    from experiments.running.launch import Inline
    from experiments.running.runner import Runner
    from experiments.running.sweep import expand, load_study, smoke_overrides

    # Two processes at once cannot prepare one data set.
    os.environ["TFDS_DATA_DIR"] = str(workdir / ".data" / str(os.getpid()))
    folder = workdir / name
    study = load_study(study_config(name))
    runs = expand(study.get_config("smoke"), smoke_overrides(study))
    code = code_fingerprint()
    check_unmixed(runs, folder, code=code)
    said = io.StringIO()
    runner = Runner(
        board=Board([Row(run, run.folder(folder)) for run in runs], Console(file=said)),
        launcher=Inline(cache=workdir / ".compiled"),
        workdir=folder,
        code=code,
        retries=0,
    )
    if runner.run() != 0:
        raise RuntimeError(said.getvalue())
    save(collect(study_config(name), folder, smoke=True), folder / "results")
    results = load(folder / "results")
    begin_readme(results, folder)
    write_study(results, folder, resamples=_RESAMPLES)
    pictures = make_pictures(results, folder)
    page = make_page(results, pictures=pictures, resamples=_RESAMPLES)
    write_text(folder / "report.html", page)
    return len(results.runs)


def main(argv: list[str]) -> None:
    from experiments.analysis.store import study_config

    sweeps = study_config("").parent
    names = STUDIES.value or sorted(path.stem for path in sweeps.glob("*.py"))
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

r"""Collects the runs of a study into files to commit, and writes its README's results.

python -m experiments.collect STUDY --workdir=DIR    # from the folders of its runs
python -m experiments.collect STUDY --workdir=DIR --partial      # as many as there are
python -m experiments.collect STUDY                  # from what is stored already

The first two write `experiments/STUDY/results/`; a run that DIR lacks is kept as it is
stored there. Thus a sweep can be spread over days and machines, with `--skip_stored` of
`experiments.run`. All write `experiments/STUDY/plots/` and the part of the README there
between `<!-- results -->` and `<!-- end of results -->`, the same bytes each time; and
`experiments/STUDY/balance_batch.csv`, if the study compares Balance-batch with random
batches, for `experiments.evidence`. A study without a folder in `experiments`, and what
`experiments.run --smoke` ran, is collected into DIR instead. STUDY is the name of a
file in `configs/sweeps`, or the path of such a file.
"""

import pathlib

from absl import flags

from experiments.analysis.collecting import collect
from experiments.analysis.evidence import CSV_NAME
from experiments.analysis.store import Study, load, save
from experiments.report.readme import begin_readme, check_place, write_study
from experiments.running.sweep import load_study, study_config, study_folder
from segloss import cli
from segloss.config import as_workdir
from segloss.errors import SeglossError

WORKDIR = flags.DEFINE_string("workdir", None, "The folder of the study's runs.")
PARTIAL = flags.DEFINE_bool(
    "partial", False, "Stores the runs that are done, though others are missing."
)
SMOKE = flags.DEFINE_bool("smoke", False, "Collects what --smoke ran in --workdir.")


def read_stored(folder: pathlib.Path) -> Study | None:
    """Returns the study stored in a folder; None if there is none, or it is damaged.

    Raises:
        ValueError: if it is damaged, with --partial, which would lose its runs.
    """
    if not folder.exists():
        return None
    try:
        return load(folder)
    except SeglossError as error:
        if PARTIAL.value:
            raise
        print(f"the stored runs are not used: {error}")
        return None


def main(argv: list[str]) -> None:
    _, name = argv
    path = study_config(name)
    folder = study_folder(load_study(path).name)
    workdir = None if WORKDIR.value is None else as_workdir(WORKDIR.value)
    if SMOKE.value and not workdir:
        raise SeglossError("--smoke needs --workdir, the folder of what it ran.")
    # A study given as a file has no folder in `experiments`.
    is_committed = folder.exists() and not (SMOKE.value or name.endswith(".py"))
    if is_committed or not workdir:
        check_place(folder / "README.md")
    if workdir:
        stored = read_stored(folder / "results") if is_committed else None
        study = collect(
            path, workdir, smoke=SMOKE.value, stored=stored, partial=PARTIAL.value
        )
        if not is_committed:
            folder = workdir
            begin_readme(study, folder)
        save(study, folder / "results")
        before = {run.key: run for run in (stored.runs if stored else ())}
        kept = sum(run is before.get(run.key) for run in study.runs)
        print(f"{len(study.runs) - kept} runs of {workdir}, {kept} stored before")
    # Load the stored results, so that both commands write the same bytes.
    study = load(folder / "results")
    write_study(study, folder)
    text = f"{folder / 'README.md'}: {len(study.runs)} runs of {len(study.arms)} arms"
    print(text + f", {study.missing} runs missing" * bool(study.missing))
    if is_committed and (folder / CSV_NAME).exists():
        print("next: python -m experiments.evidence, for the page over all studies")


if __name__ == "__main__":
    cli.run(main, arguments=("STUDY",))

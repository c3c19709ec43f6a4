r"""Collects the runs of a study into files to commit, and writes its README's results.

python -m experiments.collect STUDY --workdir=DIR    # from the folders of its runs
python -m experiments.collect STUDY                  # from what is stored already

The first writes `experiments/STUDY/results/`. Both write `experiments/STUDY/plots/` and
the part of the README there between `<!-- results -->` and `<!-- end of results -->`,
the same bytes each time. A study without a folder in `experiments`, and what
`experiments.run --smoke` ran, is collected into DIR instead. STUDY is the name of a
file in `configs/sweeps`, or the path of such a file.
"""

from absl import flags

from experiments.analysis.store import collect, load, save
from experiments.report.readme import begin_readme, check_place, write_study
from experiments.running.sweep import load_study, study_config, study_folder
from segloss import cli
from segloss.config import as_workdir
from segloss.errors import SeglossError

WORKDIR = flags.DEFINE_string("workdir", None, "The folder of the study's runs.")
SMOKE = flags.DEFINE_bool("smoke", False, "Collects what --smoke ran in --workdir.")


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
        study = collect(path, workdir, smoke=SMOKE.value)
        if not is_committed:
            folder = workdir
            begin_readme(study, folder)
        save(study, folder / "results")
    # Load the stored results, so that both commands write the same bytes.
    study = load(folder / "results")
    write_study(study, folder)
    print(f"{folder / 'README.md'}: {len(study.runs)} runs of {len(study.arms)} arms")


if __name__ == "__main__":
    cli.run(main, arguments=("STUDY",))

r"""Collects the runs of a study into files to commit, and writes its README's results.

python -m experiments.collect STUDY --workdir=DIR    # from the folders of its runs
python -m experiments.collect STUDY                  # from what is stored already

The first writes `experiments/STUDY/results/`; both write the plots beside it and what
stands between `<!-- results -->` and `<!-- end of results -->` in its README, the same
bytes each time. What `experiments.run --smoke` ran is collected within DIR.
"""

import pathlib

from absl import flags

from experiments.analysis.readme import begin_readme, check_place, write_study
from experiments.analysis.store import (
    check_known,
    collect,
    load,
    save,
    study_config,
    study_folder,
)
from segloss import cli

WORKDIR = flags.DEFINE_string("workdir", None, "Where the study's runs lie.")
SMOKE = flags.DEFINE_bool("smoke", False, "What --smoke ran, within --workdir.")


def main(argv: list[str]) -> None:
    _, name = argv
    check_known(study_config(name))
    folder = study_folder(name)
    if SMOKE.value and WORKDIR.value is None:
        raise ValueError("--smoke needs --workdir, where what it ran lies.")
    if not SMOKE.value:
        check_place(folder / "README.md")
    if WORKDIR.value is not None:
        study = collect(study_config(name), WORKDIR.value, smoke=SMOKE.value)
        if SMOKE.value:
            folder = pathlib.Path(WORKDIR.value)
            begin_readme(study, folder)
        save(study, folder / "results")
    # Read back, so that both ways go through the same bytes.
    study = load(folder / "results")
    write_study(study, folder)
    print(f"{folder / 'README.md'}: {len(study.runs)} runs of {len(study.arms)} arms")


if __name__ == "__main__":
    cli.run(main, arguments=("STUDY",))

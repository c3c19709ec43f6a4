r"""Writes a study as one HTML file that needs nothing else, and no network.

python -m experiments.report STUDY                   # from what is stored
python -m experiments.report STUDY --workdir=DIR     # with pictures from its runs

`experiments.collect` stores what it is made from. Pictures are predicted anew from the
checkpoints in DIR; they show images of the data set, so mind its licence before the
file is passed on. It is written to DIR, or to runs/STUDY/, which git ignores.
"""

import pathlib

from absl import flags

from experiments.analysis.store import load
from experiments.report.page import make_page
from experiments.report.pictures import make_pictures
from experiments.running.sweep import study_folder
from segloss import cli
from segloss.writing import write_text

WORKDIR = flags.DEFINE_string("workdir", None, "Where the study's runs lie.")
SMOKE = flags.DEFINE_bool("smoke", False, "What --smoke ran, within --workdir.")
OUTPUT = flags.DEFINE_string("output", None, "The file, if not report.html in DIR.")


def main(argv: list[str]) -> None:
    _, name = argv
    if SMOKE.value and WORKDIR.value is None:
        raise ValueError("--smoke needs --workdir, where what it ran lies.")
    workdir = pathlib.Path(WORKDIR.value) if WORKDIR.value else None
    folder = workdir if SMOKE.value else study_folder(name)
    study = load(folder / "results")
    pictures = make_pictures(study, workdir) if workdir else []
    page = make_page(study, pictures=pictures)
    output = (workdir or pathlib.Path("runs") / name) / "report.html"
    output = pathlib.Path(OUTPUT.value or output)
    write_text(output, page)
    print(f"{output}: {len(page) / 1e6:.1f} MB")


if __name__ == "__main__":
    cli.run(main, arguments=("STUDY",))

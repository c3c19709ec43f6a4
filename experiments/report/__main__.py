r"""Writes a study as one HTML file, which needs no network and no other file.

python -m experiments.report STUDY                   # from what is stored
python -m experiments.report STUDY --workdir=DIR     # with pictures from its runs

The page shows the results that `experiments.collect` stored. It is written to
DIR/report.html, or to runs/STUDY/report.html, which git ignores. Pictures are predicted
from the checkpoints in DIR. They show images of the data set, so check its licence
before you pass the file on.
"""

import pathlib

from absl import flags

from experiments.analysis.store import load
from experiments.report.page import make_page
from experiments.report.pictures import make_pictures
from experiments.running.sweep import study_folder
from segloss import cli
from segloss.errors import SeglossError
from segloss.writing import write_text

WORKDIR = flags.DEFINE_string("workdir", None, "Where the study's runs lie.")
SMOKE = flags.DEFINE_bool("smoke", False, "What --smoke ran, within --workdir.")
OUTPUT = flags.DEFINE_string("output", None, "The file, if not report.html in DIR.")


def main(argv: list[str]) -> None:
    _, name = argv
    if SMOKE.value and WORKDIR.value is None:
        raise SeglossError("--smoke needs --workdir, the folder of what it ran.")
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

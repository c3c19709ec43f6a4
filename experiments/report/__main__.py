r"""Writes a study as one HTML file that needs nothing else, and no network.

python -m experiments.report STUDY                   # from what is stored
python -m experiments.report STUDY --workdir=DIR     # with pictures from its runs

`experiments.collect` stores what it is made from. Pictures are predicted anew from the
checkpoints in DIR; they show images of the data set, so mind its licence before the
file is passed on. It is written to DIR, or to runs/STUDY/, which git ignores.
"""

import pathlib

from absl import flags

from experiments.collect import study_folder
from experiments.report.page import make_page
from experiments.store import load
from segloss import cli

FLAGS = flags.FLAGS
if "workdir" not in FLAGS:
    flags.DEFINE_string("workdir", None, "Where the study's runs lie.")
OUTPUT = flags.DEFINE_string("output", None, "The file, if not report.html in DIR.")


def main(argv: list[str]) -> None:
    from experiments.report.pictures import make_pictures

    _, name = argv
    folder = study_folder(name)
    workdir = pathlib.Path(FLAGS.workdir) if FLAGS.workdir else None
    if FLAGS.smoke:
        if workdir is None:
            raise ValueError("--smoke needs --workdir, where what it ran lies.")
        folder = workdir
    output = pathlib.Path(
        OUTPUT.value or (workdir or pathlib.Path("runs") / name) / "report.html"
    )
    study = load(folder / "results")
    pictures = make_pictures(study, workdir) if workdir else []
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(make_page(study, pictures=pictures))
    print(f"{output}: {output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    cli.run(main, arguments=("STUDY",))

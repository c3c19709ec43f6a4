"""What is committed of a study is what its stored results give, byte for byte."""

import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest

from experiments.analysis.evidence import CSV_NAME, read_evidence
from experiments.analysis.store import load
from experiments.evidence import PAGE
from experiments.instability.page import write_page
from experiments.report.evidence import write_evidence
from experiments.report.readme import replace_results, write_study

pytestmark = pytest.mark.shared_out(by="module")

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
STUDIES = sorted(path.parent.name for path in EXPERIMENTS.glob("*/results"))


def contents(folder):
    """Bytes of what `experiments.collect STUDY` writes, by file."""
    paths = [folder / "README.md", *folder.glob(CSV_NAME), *folder.glob("plots/*")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_studies_with_results_are_found():
    assert "cracks" in STUDIES


@pytest.mark.parametrize("name", STUDIES)
def test_readme_and_plots_are_those_of_the_results(name, tmp_path):
    folder = tmp_path / name
    shutil.copytree(EXPERIMENTS / name, folder)
    committed = contents(folder)
    # Nothing is left that could only be as it was.
    replace_results(folder / "README.md", "")
    # A study that lacks runs has none.
    shutil.rmtree(folder / "plots", ignore_errors=True)
    (folder / CSV_NAME).unlink(missing_ok=True)
    # What a matplotlibrc says is no part of the results.
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "red"}):
        write_study(load(folder / "results"), folder)
    made = contents(folder)
    assert made.keys() == committed.keys()
    # Names alone: bytes that differ say nothing to a reader.
    assert [path for path in made if made[path] != committed[path]] == []


def test_a_stored_study_has_nothing_left_to_train(tmp_path):
    code = load(EXPERIMENTS / "class_weights" / "results").runs[0].code
    command = (
        "-m experiments.run --config=configs/sweeps/class_weights.py --dry_run "
        f"--workdir={tmp_path / 'runs'} --skip_stored --accept_code={code}"
    )
    found = subprocess.run(
        [sys.executable, *command.split()],
        cwd=EXPERIMENTS.parent,
        text=True,
        capture_output=True,
        check=True,
    )
    assert "34 of 34 runs are stored and left out." in found.stdout
    # Its baseline is stored, and is above its bar.
    assert "Other arms wait" not in found.stdout


def test_the_page_of_the_variances_is_that_of_its_numbers(tmp_path):
    """If not: python -m experiments.instability.gradient_variance."""
    folder = tmp_path / "instability"
    shutil.copytree(EXPERIMENTS / "instability", folder)
    (folder / "gradient_variance.md").unlink()
    write_page(folder)
    made, committed = (
        x / "gradient_variance.md" for x in (folder, EXPERIMENTS / "instability")
    )
    assert made.read_bytes() == committed.read_bytes()


def test_the_page_over_all_studies_is_that_of_their_stored_intervals(tmp_path):
    """If not: python -m experiments.evidence."""
    page = tmp_path / PAGE.name
    shutil.copy(PAGE, page)
    replace_results(page, "")
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "red"}):
        write_evidence(read_evidence(EXPERIMENTS), page)
    assert page.read_bytes() == PAGE.read_bytes()
    pictures = PAGE.with_suffix("")
    made = {p.name: p.read_bytes() for p in page.with_suffix("").iterdir()}
    assert made.keys() == {p.name for p in pictures.iterdir()}
    assert [n for n in made if made[n] != (pictures / n).read_bytes()] == []

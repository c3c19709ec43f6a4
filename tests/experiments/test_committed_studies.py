"""What is committed of a study is what its stored results give, byte for byte."""

import shutil
from pathlib import Path

import matplotlib
import pytest

from experiments.analysis.store import load
from experiments.report.readme import replace_results, write_study

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
STUDIES = sorted(path.parent.name for path in EXPERIMENTS.glob("*/results"))


def contents(folder):
    """Bytes of what `experiments.collect STUDY` writes, by file."""
    paths = [folder / "README.md", *folder.glob("plots/*")]
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
    shutil.rmtree(folder / "plots")
    # What a matplotlibrc says is no part of the results.
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "red"}):
        write_study(load(folder / "results"), folder)
    made = contents(folder)
    assert made.keys() == committed.keys()
    # Names alone: bytes that differ say nothing to a reader.
    assert [path for path in made if made[path] != committed[path]] == []

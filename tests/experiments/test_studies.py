"""Every study at smoke size: from its sweep to its page."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from experiments.analysis.readme import EMPTY, write_study
from experiments.analysis.store import collect, load, save
from experiments.report.page import make_page
from experiments.report.pictures import make_pictures
from experiments.running.board import Board, Row
from experiments.running.fingerprint import code_fingerprint
from experiments.running.launch import Inline
from experiments.running.runner import Runner
from experiments.running.sweep import (
    check_comparisons,
    expand,
    load_study,
    smoke_overrides,
)

SWEEPS = Path(__file__).parents[2] / "configs" / "sweeps"
STUDIES = sorted(path.stem for path in SWEEPS.glob("*.py"))


@pytest.mark.parametrize("name", STUDIES)
def test_full_sweep_is_one_of_its_config(name):
    study = load_study(SWEEPS / f"{name}.py")
    runs = expand(study.get_config(), study.sweep())
    check_comparisons(study.comparisons, runs)
    assert all(run.config.total_steps > 100 for run in runs)


@pytest.mark.parametrize("name", STUDIES)
def test_study_runs_is_collected_and_becomes_a_page(name, tmp_path, datasets_dir):
    path = SWEEPS / f"{name}.py"
    study = load_study(path)
    base = study.get_config("smoke")
    base.data.data_dir = str(datasets_dir)
    runs = expand(base, smoke_overrides(study))
    output = io.StringIO()
    runner = Runner(
        board=Board([Row(run, run.folder(tmp_path)) for run in runs], Console(output)),
        launcher=Inline(cache=tmp_path / "unused"),
        workdir=tmp_path,
        code=code_fingerprint(),
        retries=0,
    )
    assert runner.run() == 0, output.getvalue()

    save(collect(path, tmp_path, smoke=True), tmp_path / "results")
    results = load(tmp_path / "results")
    assert len(results.runs) == len(runs)
    readme = tmp_path / "README.md"
    readme.write_text(EMPTY)
    write_study(results, tmp_path, resamples=20)
    page = make_page(results, pictures=make_pictures(results, tmp_path), resamples=20)
    (arm, baseline), *_ = study.comparisons
    for text in (readme.read_text(), page):
        assert f"{arm} against {baseline}" in text
    assert study.question in page

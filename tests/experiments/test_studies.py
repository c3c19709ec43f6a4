"""The sweeps as they are; `make smoke` runs a part of each."""

from pathlib import Path

import pytest

from experiments.running.sweep import (
    check_comparisons,
    expand,
    load_study,
)

SWEEPS = Path(__file__).parents[2] / "configs" / "sweeps"
STUDIES = sorted(path.stem for path in SWEEPS.glob("*.py"))


@pytest.mark.parametrize("name", STUDIES)
def test_full_sweep_is_one_of_its_config(name):
    study = load_study(SWEEPS / f"{name}.py")
    runs = expand(study.get_config(), study.sweep())
    check_comparisons(study.comparisons, runs)
    assert all(run.config.total_steps > 100 for run in runs)

"""Runs whose results are stored are not trained again in another place."""

import dataclasses

import pytest
from ml_collections import ConfigDict
from studies import make_run, make_study

from experiments.analysis.store import save
from experiments.running import stored
from experiments.running.fingerprint import config_fingerprint
from experiments.running.sweep import PlannedRun

pytestmark = pytest.mark.shared_out(by="module")

CODE = "c0de" * 16


@dataclasses.dataclass
class Named:
    name: str = "poles"


@pytest.fixture
def planned():
    configs = [ConfigDict({"seed": seed, "total_steps": 4}) for seed in range(3)]
    return [PlannedRun("random4", seed, {}, x) for seed, x in enumerate(configs)]


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "study_folder", tmp_path.joinpath)
    return tmp_path / "poles" / "results"


def test_runs_of_the_same_code_and_config_are_found(planned, results):
    assert stored.stored_runs(Named(), planned, code=CODE) == ([], [])
    configs = [config_fingerprint(run.config) for run in planned[:2]]
    # The third is of another config, and a run of older code has none.
    runs = [make_run(seed=s, config=x) for s, x in enumerate([*configs, "other"])]
    save(make_study(runs=tuple(runs), comparisons=(), missing=4), results)
    found, accepted = stored.stored_runs(Named(), planned, code=CODE)
    assert [run.key for run in found] == ["random4/seed=0", "random4/seed=1"]
    assert accepted == []
    assert stored.stored_runs(Named(), planned, code="beef" * 16) == ([], [])
    found, accepted = stored.stored_runs(
        Named(), planned, code="beef" * 16, accept_code=["c0dec0de"]
    )
    assert len(found) == 2
    assert accepted == [CODE]

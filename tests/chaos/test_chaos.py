"""A run that is killed again and again leaves what an undisturbed one leaves."""

import os
from pathlib import Path

import pytest
from killing import Runs, read_left

pytestmark = pytest.mark.shared_out(by="module")

MOMENTS = [
    "dataset: its folder gets its name",
    "window index is replaced",
    "save: the checkpoint gets its name",
    "final evaluation: a batch is counted",
]


def test_a_run_killed_at_four_moments_equals_one_that_was_not(tmp_path):
    runs = Runs(Path(os.environ["JAX_COMPILATION_CACHE_DIR"]))
    runs.finish(tmp_path / "whole")
    for moment in MOMENTS:
        assert runs.kill_at(tmp_path / "killed", moment), moment
    runs.finish(tmp_path / "killed")
    whole, killed = (read_left(tmp_path / name) for name in ("whole", "killed"))
    assert killed.differences(whole) == []
    assert any("checkpoints/4/optimizer" in name for name in killed.files)

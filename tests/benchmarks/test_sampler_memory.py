import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.synthetic_index import CASES, write_index
from segloss.data import SAMPLERS, ClassSets


@pytest.mark.slow
def test_ten_million_samples_fit_into_two_gib(tmp_path):
    """A fifth of them take less than a fifth of it, from the mapped index on."""
    write_index(tmp_path / "index.npy", 2_000_000, 13)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.samplers",
            "--only=greedy_cover, batch_cl=12",
            f"--index={tmp_path / 'index.npy'}",
            "--rounds=1",
        ],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    # Every sample leads a batch or is in one.
    assert row["share"] >= 0.99
    # What is kept for each: two packed sets, a place in the order and in the plan.
    assert 2e6 * (8 + 8 + 8 + 8) / 2**20 < row["mib"] < 2 * 1024 / 5


def test_index_and_cases_are_what_the_table_says(tmp_path):
    write_index(tmp_path / "index.npy", 1_000, 13)
    sets = ClassSets.from_counts(np.load(tmp_path / "index.npy", mmap_mode="r"))
    assert sets.samples_per_class()[0] == 1_000
    assert 2 <= sets.sizes().min() <= sets.sizes().max() <= 5
    assert {fields["name"] for fields in CASES.values()} == set(SAMPLERS)

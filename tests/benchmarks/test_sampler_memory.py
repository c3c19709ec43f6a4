import numpy as np
import pytest

from benchmarks.planning import measure_apart
from benchmarks.synthetic_index import CASES, write_index
from segloss.data import SAMPLERS, ClassSets


@pytest.mark.slow
def test_ten_million_samples_fit_into_two_gib(tmp_path):
    """A fifth of them take less than a fifth of it, from the mapped index on."""
    write_index(tmp_path / "index.npy", 2_000_000, 13)
    label = "greedy_cover, batch_cl=12"
    row = measure_apart(label, tmp_path / "index.npy", rounds=1)
    # Every sample leads a batch or is in one.
    assert row["share"] >= 0.99
    # What is kept for each: two packed sets, a place in the order and in the plan.
    assert 2e6 * (8 + 8 + 4 + 4) / 2**20 < row["mib"] < 2 * 1024 / 5


def test_index_and_cases_are_what_the_table_says(tmp_path):
    write_index(tmp_path / "index.npy", 1_000, 13)
    sets = ClassSets.from_counts(np.load(tmp_path / "index.npy", mmap_mode="r"))
    assert sets.samples_per_class()[0] == 1_000
    assert 2 <= sets.sizes().min() <= sets.sizes().max() <= 5
    assert {fields["name"] for fields in CASES.values()} == set(SAMPLERS)

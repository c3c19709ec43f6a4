"""How loss and gradient vary from batch to batch at fixed weights, and its page."""

import dataclasses
import math

import numpy as np
import pytest
from studies import make_run, make_study

from configs.sweeps import instability
from experiments.analysis.store import save as save_study
from experiments.instability import page
from experiments.instability.gradient_variance import (
    OfEpochs,
    make_step,
    measure,
    signal_and_noise,
)
from segloss.data import RandomBatch
from segloss.train import make_setup
from segloss.train.first_state import make_fresh_state

pytestmark = pytest.mark.shared_out(by="module")

ROW = page.Measured("dice", 0, 600, "random4", 4.0, 0.9, 0.01, 0.5, 2.0)


def test_batches_are_of_different_epochs():
    # Two batches of an epoch share no image, those of different epochs may.
    of_epoch = RandomBatch(np.ones((4, 1), bool), batch_max=2, seed=0)
    batches = OfEpochs(of_epoch)
    assert [batches[k].tolist() for k in range(5)] == [
        of_epoch[2 * k].tolist() for k in range(5)
    ]
    assert batches.batch_max == 2


def test_signal_and_noise_of_two_gradients_by_hand():
    gradients = np.array([[1.0, 0.0], [3.0, 0.0]])
    norm, variance = signal_and_noise(2, gradients.sum(0), (gradients**2).sum())
    # Mean (2, 0); trace of the covariance 2; 4 - 2 / 2 is left of the squared norm.
    assert norm == pytest.approx(np.sqrt(3))
    assert variance == pytest.approx(2 / 3)
    assert signal_and_noise(2, np.zeros(2), 2.0) == (0.0, float("inf"))


@pytest.mark.slow
def test_batches_that_differ_have_gradients_that_differ(datasets_dir):
    config = instability.get_config("smoke").unlock()
    config.data.data_dir = str(datasets_dir)
    config.augment = dict(
        scale_range=(1.0, 1.0),
        flip_probability=0.0,
        brightness=0.0,
        contrast=0.0,
        saturation=0.0,
    )
    setup = make_setup(config.lock())
    state, step = make_fresh_state(setup), make_step(setup)
    measured = measure(step, setup, state, num_batches=3)
    assert measured["images"] <= setup.sampler.batch_max
    assert measured["std"] > 1e-4
    assert measured["variance"] > 1e-4
    # The same batch again and again has no variance.
    first = setup.sampler[0]
    repeated = Repeated(first, setup.sampler.batch_max)
    setup = dataclasses.replace(setup, sampler=repeated)
    again = measure(step, setup, state, num_batches=3)
    assert again["images"] == len(first)
    assert again["std"] < 1e-6
    assert again["variance"] < 1e-6


@dataclasses.dataclass
class Repeated:
    ids: np.ndarray
    batch_max: int
    batches_per_epoch: int = 1

    def __getitem__(self, k):
        return self.ids


def rows_of(batches, variances):
    return [
        dataclasses.replace(ROW, seed=seed, batches=batches, variance=variance)
        for seed, variance in enumerate(variances)
    ]


def test_page_has_the_numbers_and_the_collapsed_classes(tmp_path):
    rows = rows_of("random4", (2.0, 4.0))
    rows += rows_of("random1", (8.0, 12.0)) + rows_of("random8", (1.0, 2.0))
    rows += rows_of("balanced1", (4.0, 18.0))
    for n, variances in ((2, (1.0, 2.0)), (4, (3.0, 3.0)), (8, (1.0, 1.0))):
        rows += rows_of(f"balanced{n}", (1.0, 2.0))
        rows += rows_of(f"balanced{n}-matched", [2 * x for x in variances])
    page.save(rows, tmp_path)
    assert page.read(tmp_path) == rows
    # All pixels of the rarest class are taken for another, except by one arm.
    runs = [
        make_run(f"dice-{arm}", s, error=(0.1, 0.2, 0.1 if "2" in arm else 10.0))
        for arm in dict.fromkeys(row.batches for row in rows)
        for s in range(2)
        if arm != "balanced2-matched"
    ]
    error = (0.1, 0.2, 10.0)
    runs += [make_run("dice-balanced2-matched", s, error=error) for s in range(2)]
    study = make_study(runs=tuple(runs), comparisons=())
    save_study(study, tmp_path / "results")
    page.write_page(tmp_path)
    text = (tmp_path / "gradient_variance.md").read_text()
    for line in (
        "## dice, network of step 600",
        "| random4 | 4.00 | 0.9 (0.9 to 0.9) | 0.01 (0.01 to 0.01) | 3 (2 to 4) |",
        "| dice | 8, 6 |",
        "| dice | balanced1 | random1 | 0.50, 1.50 | +0, +0 | neither |",
        "| dice | balanced2 | balanced2-matched | 0.50, 0.50 | -1, -1 "
        "| variance and collapsed classes |",
        "| dice | balanced4 | balanced4-matched | 0.17, 0.33 | +0, +0 | variance |",
        "| dice | balanced8 | balanced8-matched | 0.50, 1.00 | +0, +0 | neither |",
    ):
        assert line in text
    (arm,) = (x for x in text.splitlines() if x.startswith("| dice-random4 |"))
    assert arm.endswith("| 1 (1 to 1) | pole |")


def test_a_share_needs_the_same_seeds_and_two_numbers():
    ours = rows_of("random1", (8.0, math.inf, 3.0, 3.0))
    control = rows_of("random8", (2.0, 1.0, math.inf, 0.0))
    (line,) = rows_in(page.growth_table(ours + control))
    assert line == ["dice", "4, nan, nan, nan"]
    with pytest.raises(
        ValueError, match=r"needs the same seeds .* got \[0, 1, 2, 3\] "
    ):
        page.growth_table(ours + control[:3])
    with pytest.raises(ValueError, match=r"got \[0, 1, 2, 3\] and \[\]"):
        page.growth_table(ours)


def test_variance_must_be_smaller_at_every_step():
    rows, study = (
        [],
        make_study(
            runs=tuple(
                make_run(f"dice-{arm}", 0)
                for n in (1, 2, 4, 8)
                for arm in (
                    f"balanced{n}",
                    "random1" if n == 1 else f"balanced{n}-matched",
                )
            ),
            comparisons=(),
        ),
    )
    for n in (1, 2, 4, 8):
        control = "random1" if n == 1 else f"balanced{n}-matched"
        for step, of_control in ((600, 2.0), (1_200, 2.0 if n == 4 else 0.5)):
            pair = rows_of(f"balanced{n}", (1.0,)) + rows_of(control, (of_control,))
            rows += [dataclasses.replace(row, step=step) for row in pair]
    words = [row[-1] for row in rows_in(page.control_table(rows, study))]
    assert words == ["neither", "neither", "variance", "neither"]


def rows_in(table):
    columns = [list(column.cells) for column in table.columns]
    return [list(map(str, row)) for row in zip(*columns, strict=True)]

"""The rule of Balance-batch on the labels of all 10,582 images of PASCAL VOC 2012."""

import csv
import gzip
import random

import numpy as np
import pytest

from segloss.data import BalanceBatch, GreedyCover, estimate_acceptance, exposures

PAIRS = [
    *((9, batch_cl) for batch_cl in range(2, 13)),
    *((4, batch_cl) for batch_cl in range(2, 7)),
    *((6, batch_cl) for batch_cl in range(2, 9)),
]
NUM_SIMULATED = 3_000


@pytest.fixture(scope="module")
def presence(research_data):
    counts = research_data("voc_lists") / "class_pixel_counts.csv.gz"
    with gzip.open(counts, "rt") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] != "val"]
    names = list(rows[0])[4:-1]
    presence = np.array([[int(row[name]) > 0 for name in names] for row in rows])
    assert presence.shape == (10_582, 21)
    return presence


def simulate(class_sets, batch_cl, batch_max, rng):
    """Attempts of a loader that reads and discards: sizes of those that succeed."""
    sizes = []
    for _ in range(NUM_SIMULATED):
        held = set()
        for size, sample in enumerate(rng.sample(class_sets, batch_max), start=1):
            held |= sample
            if len(held) >= batch_cl:
                sizes.append(size)
                break
    return np.array(sizes)


def is_near(got, num_got, expected, num_expected, variance):
    """Within three standard errors of the difference of two means."""
    error = np.sqrt(variance * (1 / num_got + 1 / num_expected))
    return abs(got - expected) <= 3 * error + 1e-9


@pytest.mark.parametrize(("batch_max", "batch_cl"), PAIRS)
def test_batches_keep_the_rule_and_are_as_frequent_as_simulated(
    presence, batch_max, batch_cl
):
    sampler = BalanceBatch(presence, batch_cl=batch_cl, batch_max=batch_max)
    n, used, sizes = len(presence), 0, []
    for k in range(sampler.batches_per_epoch):
        ids = sampler[k]
        held = np.logical_or.accumulate(presence[ids]).sum(axis=1)
        assert len(set(ids.tolist())) == len(ids) <= batch_max
        assert held[-1] >= batch_cl
        assert (held[:-1] < batch_cl).all()
        used += len(ids)
        sizes.append(len(ids))
    # All other samples of the shuffle belong to failed attempts of batch_max each.
    attempts = len(sizes) + (n - used) / batch_max

    class_sets = [set(np.flatnonzero(row).tolist()) for row in presence]
    expected = simulate(class_sets, batch_cl, batch_max, random.Random(0))
    estimate = estimate_acceptance(presence, batch_cl=batch_cl, batch_max=batch_max)
    share = len(expected) / NUM_SIMULATED
    for got, trials in (
        (len(sizes) / attempts, attempts),
        (estimate.acceptance, 10_000),
    ):
        pooled = (got * trials + len(expected)) / (trials + NUM_SIMULATED)
        variance = pooled * (1 - pooled)
        assert is_near(got, trials, share, NUM_SIMULATED, variance)
    variance = np.var([*sizes, *expected])
    for got, trials in (
        (np.mean(sizes), len(sizes)),
        (estimate.mean_batch_size, 10_000 * estimate.acceptance),
    ):
        assert is_near(got, trials, expected.mean(), len(expected), variance)


@pytest.mark.parametrize(
    ("batch_max", "batch_cl", "epochs"),
    [(9, 8, 20), (6, 8, 20), (4, 6, 60), (9, 12, 60)],
)
def test_requeue_starves_no_sample(presence, batch_max, batch_cl, epochs):
    pair = dict(batch_cl=batch_cl, batch_max=batch_max)
    dropped = BalanceBatch(presence, **pair)
    requeued = BalanceBatch(presence, on_reject="requeue", **pair)
    counts = exposures(requeued, epochs * requeued.batches_per_epoch)
    assert counts.min() >= 1
    # Nor does it prefer few: more of the set is used, and more evenly.
    before = exposures(dropped, epochs * dropped.batches_per_epoch)
    assert counts.sum() > before.sum()
    assert counts.std() / counts.mean() < before.std() / before.mean()


@pytest.mark.parametrize(("batch_max", "batch_cl"), [(9, 8), (9, 12), (4, 6)])
def test_greedy_cover_uses_every_sample_of_every_epoch(presence, batch_max, batch_cl):
    sampler = GreedyCover(presence, batch_cl=batch_cl, batch_max=batch_max)
    for k in range(sampler.batches_per_epoch):
        ids = sampler[k]
        assert len(set(ids.tolist())) == len(ids) <= batch_max
        assert presence[ids].any(axis=0).sum() >= batch_cl
    assert exposures(sampler, sampler.batches_per_epoch).min() >= 1

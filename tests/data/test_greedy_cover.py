import numpy as np
import pytest

from segloss.data import BalanceBatch, GreedyCover, exposures

# 400 samples of the background and 1 to 3 of 30 classes, class c as 1 / (c + 1).
RNG = np.random.default_rng(5)
SHARES = 1 / np.arange(2, 32)
PRESENCE = np.zeros((400, 31), bool)
PRESENCE[:, 0] = True
for row in PRESENCE:
    held = RNG.choice(30, RNG.integers(1, 4), replace=False, p=SHARES / SHARES.sum())
    row[1 + held] = True


def num_classes(ids):
    return PRESENCE[ids].any(axis=0).sum()


@pytest.mark.parametrize(("batch_cl", "batch_max"), [(4, 3), (10, 6), (13, 6), (1, 2)])
def test_keeps_the_promise_of_balance_batch_with_every_sample(batch_cl, batch_max):
    sampler = GreedyCover(PRESENCE, batch_cl=batch_cl, batch_max=batch_max, seed=1)
    for k in range(2 * sampler.batches_per_epoch):
        ids = sampler[k]
        assert len(set(ids)) == len(ids) <= batch_max
        assert num_classes(ids[:-1]) < batch_cl <= num_classes(ids)
    assert exposures(sampler, sampler.batches_per_epoch).min() >= 1


def test_shares_are_more_even_than_those_of_balance_batch():
    pair = dict(batch_cl=13, batch_max=6)
    spread = {}
    for sampler in (BalanceBatch(PRESENCE, **pair), GreedyCover(PRESENCE, **pair)):
        counts = exposures(sampler, 50 * sampler.batches_per_epoch)
        spread[type(sampler)] = counts.std() / counts.mean()
    assert spread[GreedyCover] < 0.8 * spread[BalanceBatch]


def test_samples_of_equal_class_sets_have_equal_shares():
    # {0}: 30 samples, {1}: 10, {2}: 10. Batches of three classes need one of each, so
    # every sample of {0} once an epoch, and those of {1} and {2} three times.
    presence = np.repeat(np.eye(3, dtype=bool), [30, 10, 10], axis=0)
    sampler = GreedyCover(presence, batch_cl=3, batch_max=3)
    assert sampler.batches_per_epoch == 30
    counts = exposures(sampler, 30)
    np.testing.assert_array_equal(counts, [1] * 30 + [3] * 20)


def test_samples_that_fit_no_batch_are_left_out():
    # Row 0 adds most, but only the rows 1 and 2 hold all six classes.
    presence = np.zeros((4, 6), bool)
    presence[0, [0, 1, 3, 4]] = presence[1, :3] = presence[2, 3:] = presence[3, 5] = 1
    with pytest.warns(UserWarning, match="within batch_max=2 leaves 50% of the"):
        sampler = GreedyCover(presence, batch_cl=6, batch_max=2)
    assert all(sorted(sampler[k]) == [1, 2] for k in range(5))


@pytest.mark.parametrize(("num_classes", "batch_max"), [(5, 2), (6, 3)])
def test_cover_that_the_search_overlooks_is_used(num_classes, batch_max):
    # Rows 0 and 1 hold all classes, each hidden among 2,000 that hold one.
    singles = np.repeat(np.eye(num_classes), 2_000, axis=0)
    presence = np.concatenate([np.zeros((2, num_classes)), singles])
    presence[0, :3] = presence[1, 3:] = 1
    with pytest.warns(UserWarning, match="leaves 100% of the samples out"):
        sampler = GreedyCover(presence > 0, batch_cl=num_classes, batch_max=batch_max)
    assert all(sorted(sampler[k]) == [0, 1] for k in range(3))


def test_pair_out_of_reach_is_refused():
    presence = np.eye(4, dtype=bool)[[0, 0, 0, 1]]
    assert {len(GreedyCover(presence, batch_cl=1, batch_max=3)[k]) for k in (0, 9)} == {
        1
    }
    with pytest.raises(ValueError, match=r"GreedyCover: .* reachable .* is 2"):
        GreedyCover(presence, batch_cl=3, batch_max=3)


def test_samples_without_any_class_are_refused():
    with pytest.raises(ValueError, match=r"GreedyCover: no 2 samples .* is 0"):
        GreedyCover(np.zeros((4, 3), bool), batch_cl=1, batch_max=2)


def test_background_can_be_excluded_and_sets_can_be_small():
    sampler = GreedyCover(
        PRESENCE, batch_cl=10, batch_max=6, count_background=False, seed=3
    )
    for k in range(sampler.batches_per_epoch):
        assert num_classes(sampler[k]) >= 11
    few = GreedyCover(np.eye(3, dtype=bool), batch_cl=3, batch_max=9)
    assert sorted(few[5]) == [0, 1, 2]

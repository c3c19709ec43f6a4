import itertools
import pickle

import numpy as np
import pytest

from segloss.data import BalanceBatch, RandomBatch, most_distinct_classes

# 60 samples of 1 to 3 of 12 classes, class c in proportion to 1 / (c + 1).
RNG = np.random.default_rng(7)
SHARES = 1 / np.arange(1, 13)
PRESENCE = np.zeros((60, 12), bool)
for row in PRESENCE:
    row[RNG.choice(12, RNG.integers(1, 4), replace=False, p=SHARES / SHARES.sum())] = 1


def classes_of(ids):
    return set(np.flatnonzero(PRESENCE[list(ids)].any(axis=0)))


def epoch_of(sampler, epoch=0):
    n = sampler.batches_per_epoch
    return [sampler[k] for k in range(epoch * n, (epoch + 1) * n)]


def deal_by_the_paper(order, batch_cl, batch_max):
    """The rule with a loader that reads and discards."""
    loaded = []
    for sample in order:
        loaded.append(sample)
        if len(classes_of(loaded)) >= batch_cl:
            yield loaded
            loaded = []
        elif len(loaded) == batch_max:
            loaded = []


@pytest.mark.parametrize(("batch_cl", "batch_max"), [(2, 3), (5, 4), (7, 6)])
def test_balance_batch_is_the_rule_of_the_paper(batch_cl, batch_max):
    sampler = BalanceBatch(PRESENCE, batch_cl=batch_cl, batch_max=batch_max, seed=3)
    order = np.random.default_rng([3, 0]).permutation(60)
    expected = list(deal_by_the_paper(order, batch_cl, batch_max))
    got = epoch_of(sampler)
    assert [b.tolist() for b in got] == [list(b) for b in expected]
    assert all(b.dtype == np.int64 for b in got)


@pytest.mark.parametrize("on_reject", ["drop", "requeue"])
@pytest.mark.parametrize("exact", [False, True])
def test_balance_batch_keeps_its_promise_in_every_epoch(exact, on_reject):
    sampler = BalanceBatch(
        PRESENCE, batch_cl=6, batch_max=5, exact=exact, on_reject=on_reject
    )
    for k in range(3 * sampler.batches_per_epoch):
        ids = sampler[k]
        assert len(set(ids)) == len(ids) <= 5
        assert len(classes_of(ids)) >= 6
        assert len(classes_of(ids[:-1])) < 6
        if exact:
            assert len(classes_of(ids)) == 6


def test_requeue_uses_samples_at_most_once_and_loses_fewer():
    kwargs = dict(batch_cl=6, batch_max=4, seed=1)
    dropped = epoch_of(BalanceBatch(PRESENCE, **kwargs))
    requeued = epoch_of(BalanceBatch(PRESENCE, on_reject="requeue", **kwargs))
    used = np.concatenate(requeued)
    assert len(set(used)) == len(used)
    assert len(used) > len(np.concatenate(dropped))


def test_exact_sets_aside_what_goes_past_and_takes_it_next():
    # {0}, {1, 2}, {1} with batch_cl=2: {0} and {1, 2} never share a batch.
    presence = np.array([[1, 0, 0], [0, 1, 1], [0, 1, 0]], bool)
    for seed in range(20):
        sampler = BalanceBatch(presence, batch_cl=2, batch_max=2, seed=seed, exact=True)
        batches = [sorted(b) for b in epoch_of(sampler)]
        assert all(b in ([0, 2], [1], [1, 2]) for b in batches), batches


@pytest.mark.parametrize(
    "make",
    [
        lambda: BalanceBatch(PRESENCE, batch_cl=5, batch_max=4, seed=2),
        lambda: RandomBatch(PRESENCE, batch_max=7, seed=2),
    ],
    ids=["balance_batch", "random"],
)
def test_batch_k_is_the_same_however_it_is_reached(make):
    one_by_one = [make()[k].tolist() for k in range(60)]
    backwards, copied = make(), pickle.loads(pickle.dumps(make()))
    assert [backwards[k].tolist() for k in reversed(range(60))] == one_by_one[::-1]
    assert copied[59].tolist() == one_by_one[59]


def test_what_is_returned_may_be_written_to():
    sampler = RandomBatch(PRESENCE, batch_max=7)
    before = sampler[0].tolist()
    sampler[0][:] = -1
    assert sampler[0].tolist() == before


def test_epochs_and_seeds_differ():
    sampler = RandomBatch(PRESENCE, batch_max=7)
    epochs = [np.concatenate(epoch_of(sampler, e)).tolist() for e in range(3)]
    other = np.concatenate(epoch_of(RandomBatch(PRESENCE, batch_max=7, seed=1)))
    for a, b in itertools.combinations([*epochs, other.tolist()], 2):
        assert a != b


def test_random_batch_uses_each_sample_once_an_epoch():
    batches = epoch_of(RandomBatch(PRESENCE, batch_max=6))
    assert sorted(np.concatenate(batches)) == list(range(60))
    assert {len(b) for b in batches} == {6}


def test_random_batch_of_a_small_set_holds_all_of_it():
    assert sorted(RandomBatch(PRESENCE[:3], batch_max=8)[5]) == [0, 1, 2]


def test_unreachable_pair_names_the_largest_reachable():
    # Greedy takes the row of four and then one more class; the two rows of three do
    # better, so the answer needs the exact solution.
    presence = np.zeros((4, 6), bool)
    presence[0, [0, 1, 3, 4]] = presence[1, :3] = presence[2, 3:] = presence[3, 5] = (
        True
    )
    assert most_distinct_classes(presence, batch_max=2) == 6
    assert most_distinct_classes(presence[[0, 3]], batch_max=1) == 4
    with pytest.raises(ValueError, match=r"largest batch_cl reachable.* is 4"):
        BalanceBatch(presence, batch_cl=5, batch_max=1)
    with pytest.raises(ValueError, match=r"exactly 2 .* is 1"):
        BalanceBatch(presence, batch_cl=2, batch_max=3, exact=True)


def test_pair_met_by_one_draw_in_a_million_is_refused_as_impractical():
    presence = np.zeros((500, 8), bool)
    presence[:, 0] = True
    presence[np.arange(8), np.arange(8)] = True
    with pytest.raises(ValueError, match="can be met, but 1000000 random draws"):
        BalanceBatch(presence, batch_cl=8, batch_max=7)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(batch_cl=0, batch_max=2), "BalanceBatch: batch_cl must be >= 1, got 0"),
        (dict(batch_cl=1, batch_max=0), "BalanceBatch: batch_max must be >= 1, got 0"),
        (dict(batch_cl=1, batch_max=1, seed=-1), "seed must be >= 0, got -1"),
        (dict(batch_cl=1, batch_max=1, on_reject="x"), "on_reject must be .* got 'x'"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        BalanceBatch(PRESENCE, **kwargs)


def test_no_sample_and_no_such_batch():
    with pytest.raises(ValueError, match="RandomBatch: presence must hold a sample"):
        RandomBatch(PRESENCE[:0], batch_max=1)
    with pytest.raises(IndexError, match="batch must be >= 0, got -1"):
        RandomBatch(PRESENCE, batch_max=1)[-1]

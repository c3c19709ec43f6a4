import inspect

import numpy as np
import pytest

from segloss.data import BalanceBatch
from segloss.data.samplers import planning

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


def test_pair_met_by_one_draw_in_a_million_is_refused_as_impractical():
    # One of 500 samples holds each of the classes 1 to 7, so two of them in seven draws
    # take (500 / 7)**2 / 2, about 300 draws for the first pair of the 21.
    presence = np.zeros((500, 8), bool)
    presence[:, 0] = True
    presence[np.arange(8), np.arange(8)] = True
    message = r"none of 1,000,\d+ random attempts succeeded; .* is batch_cl=3 "
    with pytest.raises(ValueError, match=message):
        BalanceBatch(presence, batch_cl=8, batch_max=7)


def test_pair_of_many_attempts_warns_with_their_number_and_the_nearest_practical():
    # Class 1 is in one of 2,000 samples and class 2 in one of two, so two samples hold
    # both and the background in about one of 2,000 attempts, and {0, 2} in 3 of 4.
    presence = np.zeros((2_000, 3), bool)
    presence[:, 0] = True
    presence[::2, 2] = True
    presence[1, 1] = True
    message = (
        r"takes about [\d,]+ attempts per batch, more than max_attempts=100, .*"
        r"is batch_cl=2 within batch_max=2, about 1 attempts"
    )
    with pytest.warns(UserWarning, match=message):
        sampler = BalanceBatch(presence, batch_cl=3, batch_max=2, max_attempts=100)
    assert 1 in sampler[7]
    with pytest.warns(UserWarning, match="exact=False or another batch_cl may take"):
        BalanceBatch(presence, batch_cl=3, batch_max=2, max_attempts=100, exact=True)


def test_pair_of_which_random_attempts_find_no_class_still_warns():
    # A foreground class in one of a million samples: the 10,000 attempts that look for
    # a practical pair see only background.
    presence = np.zeros((1_000_000, 2), bool)
    presence[:, 0] = True
    presence[1234, 1] = True
    message = (
        r"takes about 1,000,000 attempts per batch, .* even batch_cl=1 takes more "
        r"within batch_max=1, so raise batch_max\."
    )
    with pytest.warns(UserWarning, match=message):
        sampler = BalanceBatch(
            presence, batch_cl=1, batch_max=1, count_background=False
        )
    assert sampler[5].tolist() == [1234]


def test_background_need_not_count():
    presence = np.array([[1, 0, 1], [1, 1, 0], [1, 1, 0]], bool)
    counted = BalanceBatch(presence, batch_cl=2, batch_max=2)
    assert {len(counted[k]) for k in range(9)} == {1}
    without = BalanceBatch(presence, batch_cl=2, batch_max=2, count_background=False)
    assert all(sorted(without[k]) in ([0, 1], [0, 2]) for k in range(9))
    with pytest.raises(ValueError, match=r"largest batch_cl reachable .* is 2"):
        BalanceBatch(presence, batch_cl=3, batch_max=3, count_background=False)


def test_one_class_an_absent_class_and_a_small_set():
    presence = np.array([[0, 1, 0]] * 4, bool)
    sampler = BalanceBatch(presence, batch_cl=1, batch_max=9)
    assert sorted(np.concatenate(epoch_of(sampler))) == [0, 1, 2, 3]
    assert {len(b) for b in epoch_of(sampler)} == {1}
    with pytest.raises(ValueError, match=r"largest batch_cl reachable .* is 1"):
        BalanceBatch(presence, batch_cl=2, batch_max=9)
    few = BalanceBatch(np.eye(3, dtype=bool), batch_cl=3, batch_max=9)
    assert sorted(few[5]) == [0, 1, 2]


def test_more_classes_than_a_word_has_bits():
    # Each of 60 samples holds three of 130 classes, across the borders of the words.
    presence = np.zeros((60, 130), bool)
    presence[np.arange(60)[:, None], np.arange(60)[:, None] + [0, 10, 70]] = True
    sampler = BalanceBatch(presence, batch_cl=12, batch_max=6)
    for ids in epoch_of(sampler):
        held = [presence[ids[:i]].any(axis=0).sum() for i in (len(ids) - 1, len(ids))]
        assert held[0] < 12 <= held[1]


def test_a_fraction_of_a_class_is_refused():
    with pytest.raises(ValueError, match=r"batch_cl must be an integer >= 1, got 2\.5"):
        inspect.unwrap(planning.check_pair)("BalanceBatch", 2.5, 4)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(batch_cl=0, batch_max=2), "batch_cl must be an integer >= 1, got 0"),
        (dict(batch_cl=1, batch_max=0), "batch_max must be an integer >= 1, got 0"),
        (dict(batch_cl=1, batch_max=1, seed=-1), "seed must be >= 0, got -1"),
        (dict(batch_cl=1, batch_max=1, on_reject="x"), "on_reject must be .* got 'x'"),
        (dict(batch_cl=1, batch_max=1, max_attempts=0), "max_attempts must be >= 1"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        BalanceBatch(PRESENCE, **kwargs)

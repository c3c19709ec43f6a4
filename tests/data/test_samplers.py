"""What all samplers share, and those that promise nothing of a batch."""

import itertools
import pickle
import threading

import numpy as np
import pytest

from segloss.data import (
    SAMPLERS,
    BalanceBatch,
    ClassIndex,
    ClassSets,
    ClassUniform,
    ForegroundOversample,
    MatchedRandom,
    RandomBatch,
    RareClass,
    RepeatFactor,
    exposures,
)
from segloss.registry import bind

# Six samples in ten hold class 1, one in ten class 2, none class 3; all class 0.
PRESENCE = np.zeros((60, 4), bool)
PRESENCE[:, 0] = PRESENCE[:36, 1] = PRESENCE[30:36, 2] = True
PIXELS = np.array([8_000, 1_900, 100, 0])
FIELDS = {
    "balance_batch": dict(batch_cl=3),
    "greedy_cover": dict(batch_cl=3),
    "matched_random": dict(batch_cl=3),
    "repeat_factor": dict(threshold=0.5),
}


def make(name, presence=PRESENCE, batch_max=7, **given):
    given = dict(seed=2, class_pixels=PIXELS) | given
    fields = dict(batch_max=batch_max) | FIELDS.get(name, {})
    return bind("sampler", SAMPLERS, name, fields, **given)(presence)


def ids_of(sampler, num_batches):
    return np.concatenate([sampler[k] for k in range(num_batches)])


@pytest.mark.parametrize("name", SAMPLERS)
def test_batch_k_is_the_same_however_it_is_reached(name):
    one_by_one = [make(name)[k].tolist() for k in range(40)]
    backwards, copied = make(name), pickle.loads(pickle.dumps(make(name)))
    assert [backwards[k].tolist() for k in reversed(range(40))] == one_by_one[::-1]
    assert copied[39].tolist() == one_by_one[39]
    packed = make(name, ClassSets.of(PRESENCE))
    assert [packed[k].tolist() for k in range(40)] == one_by_one
    assert all(0 < len(b) <= 7 for b in one_by_one)
    assert packed[0].dtype == np.int64


@pytest.mark.parametrize("name", SAMPLERS)
def test_epochs_and_seeds_differ(name):
    first = make(name)
    n = first.batches_per_epoch
    runs = [[first[e * n + k].tolist() for k in range(n)] for e in range(3)]
    other = make(name, seed=3)
    runs.append([other[k].tolist() for k in range(n)])
    for a, b in itertools.combinations(runs, 2):
        assert a != b


@pytest.mark.parametrize("name", SAMPLERS)
def test_no_sample_no_such_batch_and_bad_arguments(name):
    where = SAMPLERS[name].__name__
    with pytest.raises(ValueError, match=f"{where}: presence must hold a sample"):
        make(name, PRESENCE[:0])
    with pytest.raises(ValueError, match=f"{where}: batch_max must be an integer"):
        make(name, batch_max=0)
    with pytest.raises(ValueError, match=f"{where}: seed must be >= 0, got -1"):
        make(name, seed=-1)
    with pytest.raises(IndexError, match=f"{where}: batch must be >= 0, got -1"):
        make(name)[-1]


def test_what_is_returned_may_be_written_to():
    sampler = make("random")
    before = sampler[0].tolist()
    sampler[0][:] = -1
    assert sampler[0].tolist() == before


def test_threads_plan_an_epoch_once_and_agree():
    sampler, planned, got = make("balance_batch"), [], {}
    make_plan = sampler._make_plan
    sampler._make_plan = lambda epoch: planned.append(epoch) or make_plan(epoch)
    n = sampler.batches_per_epoch

    def read(thread):
        got[thread] = [sampler[n + k].tolist() for k in range(n)]

    threads = [threading.Thread(target=read, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert planned == [1]
    assert all(batches == got[0] for batches in got.values())


def test_exposures_count_what_the_batches_hold():
    sampler = make("class_uniform")
    expected = np.bincount(ids_of(sampler, 11), minlength=60)
    np.testing.assert_array_equal(exposures(sampler, 11), expected)
    assert exposures(sampler, 0).sum() == 0
    with pytest.raises(ValueError, match="num_batches must be >= 0, got -1"):
        exposures(sampler, -1)


def test_random_batch_uses_each_sample_once_an_epoch():
    sampler = RandomBatch(PRESENCE, batch_max=6)
    assert sorted(ids_of(sampler, 10)) == list(range(60))
    assert {len(sampler[k]) for k in range(10)} == {6}
    assert sorted(RandomBatch(PRESENCE[:3], batch_max=8)[5]) == [0, 1, 2]


@pytest.mark.parametrize(
    "options", [{}, dict(exact=True), dict(on_reject="requeue")], ids=str
)
def test_matched_random_has_the_sizes_of_balance_batch_and_other_samples(options):
    given = dict(batch_cl=3, batch_max=7, seed=4) | options
    balanced = BalanceBatch(PRESENCE, **given)
    matched = MatchedRandom(PRESENCE, **given)
    n = balanced.batches_per_epoch
    assert matched.batches_per_epoch == n
    ks = range(60 * n)
    assert [len(matched[k]) for k in ks] == [len(balanced[k]) for k in ks]
    assert all(len(set(matched[k].tolist())) == len(matched[k]) for k in ks)
    assert any(set(matched[k]) != set(balanced[k]) for k in range(n))
    # Every batch of Balance-batch needs class 2, which one sample in ten holds.
    counts = exposures(matched, len(ks))
    assert counts[30:36].sum() / counts.sum() == pytest.approx(0.1, abs=0.02)
    assert matched.batch_cl is None
    assert not matched.owed(0).any()


def test_repeat_factors_are_those_of_the_formula_and_so_are_the_counts():
    sampler = RepeatFactor(PRESENCE, batch_max=6, threshold=0.9)
    # sqrt(.9 / .6) = 1.2247 for class 1, sqrt(.9 / .1) = 3 for class 2.
    expected = np.array([1.2247449] * 30 + [3.0] * 6 + [1.0] * 24)
    np.testing.assert_allclose(sampler.repeats, expected)
    # 78.74 an epoch on average, of which at most 5 are left over.
    counts = exposures(sampler, 400 * sampler.batches_per_epoch)
    shares = counts / counts.sum() * expected.sum()
    np.testing.assert_allclose(shares, expected, rtol=0.07)


def test_class_first_samplers_draw_classes_as_they_say():
    # 1,200,000 draws; a share p has the deviation sqrt(p (1 - p) / 1.2e6) < 0.00046.
    presence, size, num_batches = np.tile(PRESENCE, (100, 1)), 6_000, 200

    def shares(sampler):
        counts = exposures(sampler, num_batches).reshape(100, 60).sum(axis=0)
        return counts / (num_batches * size)

    # A third each for the classes 0, 1 and 2, of 60, 36 and 6 samples.
    only_0, with_1, with_2 = 1 / 180, 1 / 180 + 1 / 108, 1 / 180 + 1 / 108 + 1 / 18
    got = shares(ClassUniform(presence, batch_max=size))
    groups = [got[36:].sum(), got[:30].sum(), got[30:36].sum()]
    expected = [24 * only_0, 30 * with_1, 6 * with_2]
    np.testing.assert_allclose(groups, expected, atol=0.0015)

    rare = RareClass(presence, batch_max=size, class_pixels=PIXELS, temperature=0.5)
    # Pixel shares .8, .19, .01: softmax of 2 * (.2, .81, .99).
    p0, p1, p2 = 0.108200, 0.366494, 0.525306
    np.testing.assert_allclose(rare.class_probs, [p0, p1, p2, 0], atol=1e-6)
    got = shares(rare)
    np.testing.assert_allclose(got[36:].sum(), 24 / 60 * p0, atol=0.0015)
    expected = 6 / 60 * p0 + 6 / 36 * p1 + p2
    np.testing.assert_allclose(got[30:36].sum(), expected, atol=0.0015)


def test_rare_class_at_the_temperature_of_the_paper_does_not_overflow():
    rare = RareClass(PRESENCE, batch_max=2, class_pixels=PIXELS)
    # Of 1.26 % the rarest has all but exp(-18): .19 - .01 = .18 over .01.
    np.testing.assert_allclose(rare.class_probs[1], np.exp(-18.0), rtol=1e-5)
    assert set(np.unique(ids_of(rare, 500))) == set(range(30, 36))
    # The rarest class of all, which no sample holds, leaves the others their weights.
    assert rare.class_probs[3] == 0


def test_last_third_of_a_batch_holds_foreground():
    presence = np.zeros((200, 2), bool)
    presence[:, 0] = presence[:4, 1] = True
    sampler = ForegroundOversample(presence, batch_max=9)
    batches = np.array([sampler[k] for k in range(2_000)])
    assert (batches[:, 6:] < 4).all()
    # Of the six others, 12,000 in all, one in fifty holds it: 240 +- 15.
    assert 180 < (batches[:, :6] < 4).sum() < 300
    whole = ForegroundOversample(presence, batch_max=3, foreground_fraction=1)
    assert (ids_of(whole, 50) < 4).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: RepeatFactor(PRESENCE, batch_max=2, threshold=1.5),
            r"RepeatFactor: threshold must be in \(0, 1\], got 1.5",
        ),
        (
            lambda: RareClass(
                PRESENCE, batch_max=2, class_pixels=PIXELS, temperature=0
            ),
            "RareClass: temperature must be > 0, got 0",
        ),
        (
            lambda: RareClass(PRESENCE, batch_max=2, class_pixels=0 * PIXELS),
            "RareClass: class_pixels must be counts of 4 classes",
        ),
        (
            lambda: ForegroundOversample(
                PRESENCE, batch_max=2, foreground_fraction=-0.1
            ),
            r"foreground_fraction must be in \[0, 1\], got -0.1",
        ),
        (
            lambda: ForegroundOversample(PRESENCE[:, :1], batch_max=2),
            "ForegroundOversample: presence must hold a class besides 0",
        ),
        (
            lambda: ClassUniform(PRESENCE & False, batch_max=2),
            "ClassUniform: presence must hold a class, got none",
        ),
    ],
)
def test_what_cannot_be_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_class_sets_of_a_mapped_index_hold_what_has_enough_pixels(tmp_path):
    counts = np.random.default_rng(0).integers(0, 4, (70_000, 70), np.int32)
    ClassIndex(counts, "synthetic").save(tmp_path / "index.npy")
    mapped = ClassIndex.load(tmp_path / "index.npy").pixel_counts
    sets = ClassSets.from_counts(mapped, min_pixels=2)
    assert sets.words.shape == (70_000, 2)
    np.testing.assert_array_equal(sets.presence(), counts >= 2)
    np.testing.assert_array_equal(sets.sizes(), (counts >= 2).sum(axis=1))
    np.testing.assert_array_equal(sets.samples_per_class(), (counts >= 2).sum(axis=0))
    np.testing.assert_array_equal(sets.holders(69), np.flatnonzero(counts[:, 69] >= 2))
    without = sets.without_background().presence()
    assert not without[:, 0].any()
    np.testing.assert_array_equal(without[:, 1:], counts[:, 1:] >= 2)
    with pytest.raises(ValueError, match="ClassSets: min_pixels must be >= 1, got 0"):
        ClassSets.from_counts(mapped, min_pixels=0)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("num_samples", [1, 5, 60])
def test_no_batch_is_smaller_than_batch_min(name, num_samples):
    presence = PRESENCE[30:][:num_samples] if num_samples < 60 else PRESENCE
    sampler = make(name, presence)
    sizes = {len(sampler[k]) for k in range(40)}
    assert 1 <= sampler.batch_min <= min(sizes)
    if name in ("balance_batch", "greedy_cover", "matched_random"):
        # Samples 30 to 35 hold three classes, so one of them can be a batch of its own.
        assert sampler.batch_min == 1
    else:
        assert {sampler.batch_min} == sizes


@pytest.mark.parametrize("name", ["balance_batch", "greedy_cover"])
def test_batch_min_is_2_if_no_sample_alone_has_enough_classes(name):
    presence = np.kron(np.eye(3, dtype=bool), np.ones((4, 1), bool))
    sampler = make(name, presence, class_pixels=None)
    assert sampler.batch_min == 2
    assert min(len(sampler[k]) for k in range(20)) >= 3


def test_batch_min_of_exact_batches_counts_samples_that_fit_exactly():
    exact = dict(batch_max=7, batch_cl=2, exact=True)
    # Of the samples that fit, some have exactly the two classes.
    assert BalanceBatch(PRESENCE, **exact).batch_min == 1
    presence = np.array([[True, False, False], [False, True, False], [True] * 3] * 4)
    assert BalanceBatch(presence, **exact).batch_min == 2

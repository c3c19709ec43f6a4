import itertools

import numpy as np
import pytest

from segloss.data import (
    BalanceBatch,
    ClassSets,
    GreedyCover,
    bound_distinct_classes,
    estimate_acceptance,
    most_distinct_classes,
)
from segloss.data.samplers import planning

# Greedy takes the row of four and then one more class; the two rows of three do better,
# so the answer needs the exact solution.
TRAP = np.zeros((4, 6), bool)
TRAP[0, [0, 1, 3, 4]] = TRAP[1, :3] = TRAP[2, 3:] = TRAP[3, 5] = True


def test_acceptance_of_a_set_whose_attempts_can_be_counted():
    # Half the samples hold class 0, half class 1. Two of six: alike in 2 of 5 cases,
    # so 3 of 5 attempts succeed, each with 2 samples of 2 classes, and per 2 samples
    # used 2 / 3 attempts fail, which is 4 / 3 samples discarded, 2 / 3 per sample.
    presence = np.array([[1, 0], [0, 1]] * 3, bool)
    got = estimate_acceptance(presence, batch_cl=2, batch_max=2, trials=40_000)
    assert abs(got.acceptance - 0.6) < 3 * np.sqrt(0.6 * 0.4 / 40_000)
    assert (got.mean_batch_size, got.mean_distinct_classes) == (2.0, 2.0)
    assert got.draws_per_used_sample == pytest.approx(1 / got.acceptance)
    # Three of six: alike in 2 of 20 cases; else the second differs in 3 of 5.
    got = estimate_acceptance(presence, batch_cl=2, batch_max=3, trials=40_000)
    assert abs(got.acceptance - 0.9) < 3 * np.sqrt(0.9 * 0.1 / 40_000)
    # A third of the successes take 3 samples: (3 / 10) / (9 / 10).
    assert abs(got.mean_batch_size - 7 / 3) < 3 * np.sqrt(2 / 9 / 36_000)


def test_acceptance_is_a_line_for_people():
    got = planning.Acceptance(0.1123, 8.42, 9.88, 12.13, 12, 9, 10_000)
    assert str(got) == (
        "batch_cl=12 within 9 samples: 11 % of attempts succeed, mean batch 8.4, 12.1 "
        "classes; a loader that reads and discards would read 9.9 images per image "
        "used; this one reads 1"
    )
    seldom = planning.Acceptance(0.00526, 8.7, 199.5, 14.0, 14, 9, 10_000)
    assert " 0.526 % of attempts" in str(seldom)
    nearly = planning.Acceptance(0.9982, 4.4, 1.0, 6.2, 6, 9, 10_000)
    assert " 99.8 % of attempts" in str(nearly)
    always = estimate_acceptance(TRAP, batch_cl=1, batch_max=2, trials=10)
    assert "100 % of attempts succeed, mean batch 1.0" in str(always)
    # The two rows of three among 400 others: one attempt in 80,000.
    presence = np.concatenate([TRAP[1:3], np.zeros((400, 6), bool)])
    never = estimate_acceptance(presence, batch_cl=6, batch_max=2, trials=100)
    assert (never.acceptance, never.draws_per_used_sample) == (0.0, np.inf)
    assert str(never).endswith("none of 100 attempts succeeded")


def test_unreachable_pair_names_the_largest_reachable():
    assert most_distinct_classes(TRAP, batch_max=2) == 6
    assert most_distinct_classes(TRAP[[0, 3]], batch_max=1) == 4
    assert most_distinct_classes(TRAP, batch_max=2, at_most=4) == 4
    with pytest.raises(ValueError, match=r"largest batch_cl reachable.* is 4"):
        BalanceBatch(TRAP, batch_cl=5, batch_max=1)
    with pytest.raises(ValueError, match=r"exactly 2 .* smaller number .* is 1"):
        BalanceBatch(TRAP, batch_cl=2, batch_max=3, exact=True)
    with pytest.raises(ValueError, match=r"estimate_acceptance: .* is 4"):
        estimate_acceptance(TRAP, batch_cl=5, batch_max=1, trials=10)


def test_bounds_hold_the_optimum_and_meet_where_it_is_computed(monkeypatch):
    rng = np.random.default_rng(1)
    sets = [rng.random((14, 30)) < 0.12 for _ in range(6)] + [TRAP]
    optima = [
        max(
            s[list(ids)].any(axis=0).sum()
            for ids in itertools.combinations(range(len(s)), 3)
        )
        for s in sets
    ]
    assert [bound_distinct_classes(s, batch_max=3) for s in sets] == [
        (best, best) for best in optima
    ]
    monkeypatch.setattr(planning, "_EXACT_UP_TO", 0)
    bounds = [bound_distinct_classes(s, batch_max=3) for s in sets]
    for (least, most), best in zip(bounds, optima, strict=True):
        assert (1 - 1 / np.e) * best <= least <= best <= most
    assert any(least < most for least, most in bounds)


def test_large_sets_are_refused_by_the_proven_bound_and_tried_within_it(monkeypatch):
    monkeypatch.setattr(planning, "_EXACT_UP_TO", 0)
    # Greedy finds 5 of the 6 classes; all are within reach of the bound, and of chance.
    assert bound_distinct_classes(TRAP, batch_max=2) == (5, 6)
    assert sorted(BalanceBatch(TRAP, batch_cl=6, batch_max=2)[0]) == [1, 2]
    # Two of the three hold seven classes; their sizes alone would allow for eight.
    presence = np.zeros((3, 9), bool)
    presence[0, :4] = presence[1, 3:7] = presence[2, 6:] = True
    message = r"batch_max=2 is at least 7 \(found\) and at most 8 \(proven\)"
    for sampler in (BalanceBatch, GreedyCover):
        with pytest.raises(ValueError, match=message):
            sampler(presence, batch_cl=9, batch_max=2)
    with pytest.raises(ValueError, match=r"GreedyCover: found no .* and no proof"):
        GreedyCover(presence, batch_cl=8, batch_max=2)


def test_fewer_samples_than_batch_max_are_all_drawn():
    got = estimate_acceptance(np.eye(3, dtype=bool), batch_cl=3, batch_max=9, trials=50)
    assert (got.acceptance, got.mean_batch_size) == (1.0, 3.0)
    packed = ClassSets.of(np.eye(3, dtype=bool))
    assert estimate_acceptance(packed, batch_cl=3, batch_max=9, trials=50) == got


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("batch_cl", 0, "batch_cl must be an integer >= 1, got 0"),
        ("batch_max", 0, "batch_max must be an integer >= 1, got 0"),
        ("trials", 0, "estimate_acceptance: trials must be >= 1, got 0"),
    ],
)
def test_bad_arguments_are_named(field, value, message):
    fields = dict(batch_cl=2, batch_max=2, trials=10) | {field: value}
    with pytest.raises(ValueError, match=message):
        estimate_acceptance(TRAP, **fields)

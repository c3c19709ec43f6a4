"""Predicts the effect of `batch_cl` and `batch_max` of Balance-batch."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Int, UInt64
from scipy import optimize, sparse

from segloss.data.samplers.class_sets import ClassSets, Presence
from segloss.errors import SeglossError

# The integer program is solved for at most this many distinct class sets.
_EXACT_UP_TO = 1_000
# Time limit of the integer program where bounds suffice.
_SECONDS = 10


@dataclasses.dataclass(frozen=True)
class Acceptance:
    """Statistics of random attempts at Balance-batch; `str` gives a one-line summary.

    An attempt draws samples until they have `batch_cl` classes; it fails if `batch_max`
    samples do not.

    Attributes:
        acceptance: share of the attempts that reach `batch_cl` classes.
        mean_batch_size: mean number of samples of the successful attempts.
        draws_per_used_sample: number of samples drawn, including discarded ones, per
            sample used.
        mean_distinct_classes: mean number of classes of the successful attempts.
        batch_cl: number of distinct classes required.
        batch_max: largest number of samples of an attempt.
        trials: number of attempts. If none succeeded, the means are NaN and
            `draws_per_used_sample` is infinite.
    """

    acceptance: float
    mean_batch_size: float
    draws_per_used_sample: float
    mean_distinct_classes: float
    batch_cl: int
    batch_max: int
    trials: int

    def __str__(self) -> str:
        pair = f"batch_cl={self.batch_cl} within {self.batch_max} samples: "
        if self.acceptance == 0:
            return f"{pair}none of {self.trials:,} attempts succeeded"
        percent = 100 * self.acceptance
        plain = 10 <= percent < 99.5 or percent == 100
        digits = f"{percent:.0f}" if plain else f"{percent:.3g}"
        return (
            f"{pair}{digits} % of attempts succeed, mean batch "
            f"{self.mean_batch_size:.1f}, {self.mean_distinct_classes:.1f} classes; "
            "a loader that reads and discards would read "
            f"{self.draws_per_used_sample:.1f} images per image used; this one reads 1"
        )


def estimate_acceptance(
    presence: Presence,
    *,
    batch_cl: int,
    batch_max: int,
    trials: int = 10_000,
    seed: int = 0,
) -> Acceptance:
    """Estimates how often attempts of Balance-batch succeed, by simulation.

    An attempt succeeds if its first `batch_max` random samples have at least `batch_cl`
    distinct classes. The last attempt of an epoch, which may run out of samples, is not
    modelled.

    Args:
        presence: True where a sample has a class, `[n, c]`, or `ClassSets`.
        batch_cl: number of distinct classes that a batch must have.
        batch_max: largest number of samples in a batch.
        trials: number of attempts to simulate, at least 1.
        seed: seed of the draws, at least 0.

    Raises:
        ValueError: if an argument is out of range, or no `batch_max` samples have
            `batch_cl` classes.

    >>> import numpy as np
    >>> presence = np.eye(4, dtype=bool)  # each sample has one of four classes
    >>> estimate = estimate_acceptance(presence, batch_cl=3, batch_max=4)
    >>> estimate.acceptance, estimate.mean_batch_size
    (1.0, 3.0)
    """
    where = "estimate_acceptance"
    check_pair(where, batch_cl, batch_max)
    if trials < 1:
        raise SeglossError(f"{where}: trials must be >= 1, got {trials}.")
    sets = ClassSets.of(presence)
    classes = _classes_by_draw(sets, batch_max, trials, seed)
    enough = classes >= batch_cl
    reached = enough[:, -1]
    if not reached.any():
        check_reachable(where, sets, batch_cl, batch_max)
        return Acceptance(0.0, np.nan, np.inf, np.nan, batch_cl, batch_max, trials)
    last = enough[reached].argmax(axis=1)
    used = (last + 1).sum()
    discarded = (~reached).sum() * batch_max
    return Acceptance(
        acceptance=float(reached.mean()),
        mean_batch_size=float(last.mean() + 1),
        draws_per_used_sample=float(1 + discarded / used),
        mean_distinct_classes=float(
            np.take_along_axis(classes[reached], last[:, None], axis=1).mean()
        ),
        batch_cl=batch_cl,
        batch_max=batch_max,
        trials=trials,
    )


def nearest_pair(
    sets: ClassSets, *, batch_max: int, max_attempts: int
) -> tuple[int, float] | None:
    """Returns the largest practical `batch_cl`, and its share of successful attempts.

    Practical means that a batch takes at most `max_attempts` random attempts of
    `batch_max` samples on average. Returns None if even `batch_cl=1` takes more.
    """
    trials = max(10_000, 10 * max_attempts)
    most = _classes_by_draw(sets, batch_max, trials, seed=0)[:, -1]
    at_least = np.bincount(most)[::-1].cumsum()[::-1] / trials
    nearest = int(np.flatnonzero(at_least * max_attempts >= 1)[-1])
    return (nearest, float(at_least[nearest])) if nearest else None


def _classes_by_draw(
    sets: ClassSets, batch_max: int, trials: int, seed: int
) -> Int[np.ndarray, "t m"]:
    """Simulates `trials` attempts of up to `batch_max` random samples.

    Returns, for each attempt, the number of distinct classes after each sample.
    """
    rng = np.random.default_rng(seed)
    size = min(batch_max, len(sets))
    per_shuffle = len(sets) // size
    rows = []
    for start in range(0, trials, per_shuffle):
        attempts = min(per_shuffle, trials - start)
        ids = rng.choice(len(sets), attempts * size, replace=False)
        held = sets.words[ids].reshape(attempts, size, -1)
        held = np.bitwise_or.accumulate(held, axis=1)
        rows.append(np.bitwise_count(held).sum(axis=2, dtype=np.int64))
    return np.concatenate(rows)


def check_pair(where: str, batch_cl: int, batch_max: int) -> None:
    """Raises a ValueError that starts with `where` unless both are integers >= 1."""
    for name, value in dict(batch_cl=batch_cl, batch_max=batch_max).items():
        if not isinstance(value, int | np.integer) or value < 1:
            raise SeglossError(f"{where}: {name} must be an integer >= 1, got {value}.")


def check_reachable(
    where: str, sets: ClassSets, batch_cl: int, batch_max: int, *, exact: bool = False
) -> None:
    """Raises an error if provably no `batch_max` samples have `batch_cl` classes.

    They must have at least `batch_cl` classes; with `exact`, exactly so many, and then
    nothing is checked if there are more than 1,000 different class sets.

    Raises:
        ValueError: the message starts with `where` and gives the largest reachable
            `batch_cl`, or bounds of it.
    """
    if exact:
        distinct = sets.distinct()
        if len(distinct) > _EXACT_UP_TO:
            return
        least = most = most_distinct_classes(
            distinct, batch_max=batch_max, at_most=batch_cl
        )
    else:
        least, most = bound_distinct_classes(sets, batch_max=batch_max, enough=batch_cl)
    if most >= batch_cl:
        return
    if exact:
        raise SeglossError(
            f"{where}: no {batch_max} samples hold exactly {batch_cl} distinct classes;"
            f" the largest smaller number that can be reached is {most}."
        )
    reachable = (
        f"is {most}"
        if least == most
        else f"is at least {least} (found) and at most {most} (proven)"
    )
    raise SeglossError(
        f"{where}: no {batch_max} samples hold at least {batch_cl} distinct classes; "
        f"the largest batch_cl reachable with batch_max={batch_max} {reachable}."
    )


def covering_sets(
    where: str, sets: ClassSets, batch_cl: int, batch_max: int
) -> ClassSets:
    """Finds at most `batch_max` class sets with `batch_cl` or more classes in total.

    Raises:
        ValueError: if there are none, or the search did not find any. The message
            starts with `where`.
    """
    distinct = sets.distinct()
    chosen, _ = _cover_greedily(distinct.words, batch_max)
    held = np.bitwise_count(np.bitwise_or.accumulate(distinct.words[chosen]))
    held = held.sum(axis=1, dtype=np.int64)
    if held.size and held[-1] >= batch_cl:
        chosen = chosen[: np.argmax(held >= batch_cl) + 1]
    else:
        check_reachable(where, sets, batch_cl, batch_max)
        chosen = None
        if len(distinct) <= _EXACT_UP_TO:
            chosen = _cover_exactly(distinct, batch_max, None, _SECONDS)
        if chosen is None:
            raise SeglossError(
                f"{where}: found no {batch_max} samples that hold {batch_cl} distinct "
                f"classes, and no proof that none exist; lower batch_cl."
            )
    return dataclasses.replace(sets, words=distinct.words[chosen])


def bound_distinct_classes(
    presence: Presence, *, batch_max: int, enough: int | None = None
) -> tuple[int, int]:
    """Bounds the most distinct classes that `batch_max` samples can have together.

    Returns a lower and an upper bound. Greedy selection gives the lower one, at least
    1 - 1/e of the optimum. Each of its steps gives an upper bound, the classes so far
    plus the `batch_max` largest gains; the smallest is returned (Nemhauser et al. 1978,
    doi:10.1007/BF01588971). If the bounds differ and there are at most 1,000 different
    class sets, an integer program finds the optimum, and both bounds are equal, unless
    it takes longer than 10 seconds.

    Args:
        presence: True where a sample has a class, `[n, c]`, or `ClassSets`.
        batch_max: largest number of samples in the union.
        enough: skip the integer program if greedy selection finds this many classes;
            None skips it only if greedy selection is optimal.

    >>> import numpy as np
    >>> bound_distinct_classes(np.eye(4, dtype=bool), batch_max=3)
    (3, 3)
    """
    distinct = ClassSets.of(presence).distinct()
    chosen, most = _cover_greedily(distinct.words, batch_max)
    least = _count(np.bitwise_or.reduce(distinct.words[chosen]))
    wanted = most if enough is None else min(most, enough)
    if least < wanted and len(distinct) <= _EXACT_UP_TO:
        found = _cover_exactly(distinct, batch_max, None, _SECONDS)
        if found is not None:
            least = most = _count(np.bitwise_or.reduce(distinct.words[found]))
    return least, most


def most_distinct_classes(
    presence: Presence, *, batch_max: int, at_most: int | None = None
) -> int:
    """Returns the most distinct classes that `batch_max` samples can have together.

    This is maximum coverage, solved exactly as an integer program over the different
    class sets.

    Args:
        presence: True where a sample has a class, `[n, c]`, or `ClassSets`.
        batch_max: largest number of samples in the union.
        at_most: ignore unions of more classes than this; None considers all.

    >>> import numpy as np
    >>> most_distinct_classes(np.eye(4, dtype=bool), batch_max=3)
    3
    """
    distinct = ClassSets.of(presence).distinct()
    chosen = _cover_exactly(distinct, batch_max, at_most)
    return _count(np.bitwise_or.reduce(distinct.words[chosen]))


def _cover_greedily(
    words: UInt64[np.ndarray, "p w"], batch_max: int
) -> tuple[list[int], int]:
    """Chooses up to `batch_max` rows of `words`, each with the most new classes.

    Also returns an upper bound on the number of classes of any choice.
    """
    held, chosen = np.zeros_like(words[0]), []
    most = _count(np.bitwise_or.reduce(words))
    for _ in range(min(batch_max, len(words))):
        gains = np.bitwise_count(words & ~held).sum(axis=1, dtype=np.int64)
        largest = np.partition(gains, -min(batch_max, len(gains)))[-batch_max:]
        most = min(most, _count(held) + int(largest.sum()))
        if gains.max() == 0:
            break
        chosen.append(int(gains.argmax()))
        held |= words[chosen[-1]]
    return chosen, most


def _cover_exactly(
    distinct: ClassSets,
    batch_max: int,
    at_most: int | None,
    seconds: float | int = np.inf,
) -> Int[np.ndarray, " m"] | None:
    """Returns the rows of at most `batch_max` class sets with the largest union.

    Unions of more than `at_most` classes are ignored; None considers all. Returns None
    if the optimum is not proven within `seconds`.
    """
    rows = np.arange(len(distinct))
    if at_most is None:
        rows = rows[_is_maximal(distinct.words)]
    patterns = distinct.presence()[rows].astype(float)
    n, c = patterns.shape
    # Unknowns: n patterns chosen, then c classes covered, each 0 or 1.
    chosen = np.r_[np.ones(n), np.zeros(c)]
    covered = np.r_[np.zeros(n), np.ones(c)]
    holds = sparse.csr_array(patterns.T)
    constraints = [
        optimize.LinearConstraint(chosen, ub=batch_max),
        optimize.LinearConstraint(sparse.hstack([holds, -sparse.eye_array(c)]), lb=0),
    ]
    if at_most is not None:
        # Every class of a chosen pattern is covered and counts against the limit.
        claims = sparse.hstack([holds, -batch_max * sparse.eye_array(c)])
        constraints += [
            optimize.LinearConstraint(covered, ub=at_most),
            optimize.LinearConstraint(claims, ub=0),
        ]
    solution = optimize.milp(
        -covered,
        integrality=np.ones(n + c),
        bounds=optimize.Bounds(0, 1),
        constraints=constraints,
        options={"time_limit": seconds} if np.isfinite(seconds) else {},
    )
    return rows[solution.x[:n] > 0.5] if solution.status == 0 else None


def _is_maximal(words: UInt64[np.ndarray, "p w"]) -> Bool[np.ndarray, " p"]:
    """Returns True for the class sets that are no subset of another one in `words`."""
    inside = [(words & ~other == 0).all(axis=1) for other in words]
    return np.sum(inside, axis=0) == 1  # each set is a subset of itself


def _count(words: UInt64[np.ndarray, " w"]) -> int:
    return int(np.bitwise_count(words).sum())

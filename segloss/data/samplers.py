"""Which samples make up batch k, planned from the class index: no image is read.

A sampler is a pure function of its arguments and k. `sampler[k]` is the int64 ids of
batch k for any k >= 0, `batch_max` the most ids that a batch can hold.
"""

import abc
import operator
from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Int
from scipy import optimize, sparse

# A pair that so many draws have not met is refused as impractical.
_MAX_DRAWS = 1_000_000


class _EpochSampler(abc.ABC):
    """Random access to batches that are planned epoch by epoch.

    Every epoch has as many batches as the first shuffle of epoch 0 yields. One that
    comes short goes on with a further shuffle, one that runs over is cut; so batch k
    lies in epoch `k // batches_per_epoch` and costs the planning of that epoch alone.
    """

    def __init__(self, num_samples: int, batch_max: int, seed: int):
        if num_samples < 1:
            raise ValueError(
                f"{type(self).__name__}: presence must hold a sample, got none."
            )
        if batch_max < 1:
            raise ValueError(
                f"{type(self).__name__}: batch_max must be >= 1, got {batch_max}."
            )
        if seed < 0:
            raise ValueError(f"{type(self).__name__}: seed must be >= 0, got {seed}.")
        self.num_samples = num_samples
        self.batch_max = batch_max
        self.seed = seed
        self._plans: dict[int, list[Int[np.ndarray, " b"]]] = {}

    def __getitem__(self, k: int) -> Int[np.ndarray, " b"]:
        k = operator.index(k)
        if k < 0:
            raise IndexError(f"{type(self).__name__}: batch must be >= 0, got {k}.")
        epoch, position = divmod(k, self.batches_per_epoch)
        plan = self._plans.get(epoch)
        if plan is None:
            plan = self._plan(epoch)
            # Loader threads straddle two epochs at most; each replaces the dict whole.
            kept = {e: p for e, p in self._plans.copy().items() if e >= epoch - 1}
            self._plans = kept | {epoch: plan}
        return plan[position].copy()

    def _plan(self, epoch: int) -> list[Int[np.ndarray, " b"]]:
        batches: list[Sequence[int]] = []
        for order in self._shuffles(epoch):
            batches += self._deal(order)
            if len(batches) >= self.batches_per_epoch:
                break
        return [np.array(b, np.int64) for b in batches[: self.batches_per_epoch]]

    def _shuffles(self, epoch: int) -> Iterator[Int[np.ndarray, " n"]]:
        rng = np.random.default_rng([self.seed, epoch])
        while True:
            yield rng.permutation(self.num_samples)

    @abc.abstractmethod
    def _deal(self, order: Int[np.ndarray, " n"]) -> list[Sequence[int]]:
        """Deals one shuffle of the samples out into batches."""


class RandomBatch(_EpochSampler):
    """Plain random batches: each epoch is shuffled and cut, the rest dropped.

    Args:
        presence: True where a sample holds a class, `[n, c]`; only n is used.
        batch_max: samples per batch; a set that is smaller gives batches of all of it.
        seed: seed of the shuffles, at least 0.

    Raises:
        ValueError: if there is no sample, or `batch_max` or `seed` is out of range.
    """

    def __init__(
        self, presence: Bool[np.ndarray, "n c"], *, batch_max: int, seed: int = 0
    ):
        super().__init__(len(presence), batch_max, seed)
        self.batches_per_epoch = max(1, self.num_samples // batch_max)

    def _deal(self, order: Int[np.ndarray, " n"]) -> list[Sequence[int]]:
        ids = order.tolist()
        starts = range(0, self.batches_per_epoch * self.batch_max, self.batch_max)
        return [ids[start : start + self.batch_max] for start in starts]


class BalanceBatch(_EpochSampler):
    """Batches of at least `batch_cl` distinct classes within `batch_max` samples.

    The rule of Balance-batch (Huang, Tang, Su): shuffle the epoch; load samples until
    the batch holds at least `batch_cl` distinct classes and then stop; if `batch_max`
    samples were loaded and it does not, discard them and start again. The class index
    says what a sample holds, so "load" reads nothing.

    Args:
        presence: True where a sample holds a class, `[n, c]`.
        batch_cl: distinct classes that a batch must hold.
        batch_max: most samples that a batch may hold.
        seed: seed of the shuffles, at least 0.
        exact: stop at `batch_cl` classes exactly: a sample that would go past is set
            aside and tried first in the next batch.
        on_reject: "drop" loses discarded samples until the next epoch, "requeue" puts
            them at the end of this one, which ends once a whole turn forms no batch.

    Raises:
        ValueError: if an argument is out of range, or no batch can satisfy the pair;
            the message says the largest `batch_cl` that can be reached.
    """

    def __init__(
        self,
        presence: Bool[np.ndarray, "n c"],
        *,
        batch_cl: int,
        batch_max: int,
        seed: int = 0,
        exact: bool = False,
        on_reject: str = "drop",
    ):
        super().__init__(len(presence), batch_max, seed)
        if batch_cl < 1:
            raise ValueError(f"BalanceBatch: batch_cl must be >= 1, got {batch_cl}.")
        if on_reject not in ("drop", "requeue"):
            raise ValueError(
                "BalanceBatch: on_reject must be 'drop' or 'requeue', "
                f"got {on_reject!r}."
            )
        self.batch_cl = batch_cl
        self.exact = exact
        self.on_reject = on_reject
        # Class sets as Python integers: a union is one `|`, its size one bit_count.
        packed = np.packbits(presence, axis=1)
        self._class_sets = [int.from_bytes(row.tobytes()) for row in packed]
        self.batches_per_epoch = self._first_yield(presence)

    def _first_yield(self, presence: Bool[np.ndarray, "n c"]) -> int:
        """Batches of the first shuffle with any, which proves the pair can be met."""
        for attempt, order in enumerate(self._shuffles(0)):
            if batches := self._deal(order):
                return len(batches)
            if attempt == 0:
                self._check_reachable(presence)
            draws = (attempt + 1) * self.num_samples
            if draws >= _MAX_DRAWS:
                raise ValueError(
                    f"BalanceBatch: batch_cl={self.batch_cl} within batch_max="
                    f"{self.batch_max} can be met, but {draws} random draws gave no "
                    "such batch; lower batch_cl or raise batch_max."
                )
        raise AssertionError("shuffles never end")

    def _check_reachable(self, presence: Bool[np.ndarray, "n c"]) -> None:
        reachable = most_distinct_classes(
            presence,
            batch_max=self.batch_max,
            at_most=self.batch_cl if self.exact else None,
        )
        if reachable < self.batch_cl:
            raise ValueError(
                f"BalanceBatch: no {self.batch_max} samples hold "
                f"{'exactly' if self.exact else 'at least'} {self.batch_cl} distinct "
                f"classes; the largest batch_cl reachable with batch_max="
                f"{self.batch_max} is {reachable}."
            )

    def _deal(self, order: Int[np.ndarray, " n"]) -> list[Sequence[int]]:
        queue = deque(order.tolist())
        if self.exact:  # what goes past batch_cl by itself fits no batch
            fits = (
                i for i in queue if self._class_sets[i].bit_count() <= self.batch_cl
            )
            queue = deque(fits)
        batches: list[Sequence[int]] = []
        turned = 0  # samples requeued since the last batch
        while queue and turned < len(queue):
            batch, complete = self._draw(queue)
            if complete:
                batches.append(batch)
                turned = 0
            elif self.on_reject == "requeue":
                queue.extend(batch)
                turned += len(batch)
        return batches

    def _draw(self, queue: deque[int]) -> tuple[list[int], bool]:
        """Takes one attempt off the queue: its samples, and whether they are enough."""
        sets, wanted = self._class_sets, self.batch_cl
        batch: list[int] = []
        aside: list[int] = []
        held = 0
        while queue and len(batch) < self.batch_max and held.bit_count() < wanted:
            sample = queue.popleft()
            merged = held | sets[sample]
            if self.exact and merged.bit_count() > wanted:
                aside.append(sample)
            else:
                batch.append(sample)
                held = merged
        queue.extendleft(reversed(aside))
        return batch, held.bit_count() >= wanted


def most_distinct_classes(
    presence: Bool[np.ndarray, "n c"], *, batch_max: int, at_most: int | None = None
) -> int:
    """The most distinct classes that any `batch_max` samples hold together.

    Maximum coverage, solved exactly as an integer programme over the distinct class
    sets. With `at_most`, only unions of at most so many classes count.

    Args:
        presence: True where a sample holds a class, `[n, c]`.
        batch_max: most samples in the union.
        at_most: largest union that counts; None is any.
    """
    patterns = np.unique(presence, axis=0).astype(float)
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
        # A class of a chosen pattern is covered, so it counts against the limit.
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
    )
    return round(-solution.fun)


SAMPLERS = {"balance_batch": BalanceBatch, "random": RandomBatch}

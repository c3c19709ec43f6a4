"""Balance-batch: a minimum number of distinct classes in every batch."""

import warnings

import numpy as np
from jaxtyping import Bool

from segloss.data.samplers.class_sets import ClassSets, Presence
from segloss.data.samplers.epochs import EpochSampler, Plan
from segloss.data.samplers.planning import (
    check_pair,
    check_reachable,
    estimate_acceptance,
    nearest_pair,
)
from segloss.errors import SeglossError

# If this many attempts fail, `batch_cl` and `batch_max` are refused: planning must end.
_LAST_ATTEMPT = 1_000_000
# Requeued samples are dealt again while at least this fraction of them finds a batch.
_WORTHWHILE = 0.01


class BalanceBatch(EpochSampler):
    """Batches of at most `batch_max` samples with at least `batch_cl` distinct classes.

    The rule of Balance-batch (Huang et al. 2019, doi:10.1109/LSP.2019.2956367): shuffle
    the epoch and load samples until the batch has at least `batch_cl` distinct classes.
    If it still has fewer after `batch_max` samples, discard them and start a new batch.
    Classes are looked up in the class index, so discarded samples are never read.

    Classes that occur in no sample never count. If the dataset has fewer than
    `batch_max` samples, a batch holds at most all of them.

    Args:
        presence: True where a sample has a class, `[n, c]`, or `ClassSets`.
        batch_cl: number of distinct classes that a batch must have.
        batch_max: largest number of samples in a batch.
        seed: seed of the shuffles, at least 0.
        exact: True makes batches of exactly `batch_cl` classes. A sample that would
            exceed them is set aside and tried first in the next batch.
        on_reject: "drop" discards the samples of a failed attempt. "requeue" shuffles
            and deals discarded samples again, until less than one percent of them are
            placed in a batch. Every epoch has as many batches as the first one; if an
            epoch yields fewer, some samples are used twice.
        count_background: True counts class 0 as one of the `batch_cl` classes.
        max_attempts: if a batch takes more attempts than this on average, a warning
            names the largest `batch_cl` that does not.

    Raises:
        ValueError: if an argument is out of range, if no `batch_max` samples have
            `batch_cl` classes, or if one million attempts fail. The message gives the
            largest reachable or practical `batch_cl`, or bounds of it.

    >>> import numpy as np
    >>> presence = np.eye(4, dtype=bool)  # each sample has one of four classes
    >>> sampler = BalanceBatch(presence, batch_cl=3, batch_max=4)
    >>> len(set(sampler[0].tolist())), sampler.batches_per_epoch
    (3, 1)
    """

    def __init__(
        self,
        presence: Presence,
        *,
        batch_cl: int,
        batch_max: int,
        seed: int = 0,
        exact: bool = False,
        on_reject: str = "drop",
        count_background: bool = True,
        max_attempts: int = 1_000,
    ):
        super().__init__(presence, batch_max, seed)
        check_pair(self._name, batch_cl, batch_max)
        if on_reject not in ("drop", "requeue"):
            raise SeglossError(
                f"{self._name}: on_reject must be 'drop' or 'requeue', "
                f"got {on_reject!r}."
            )
        if max_attempts < 1:
            raise SeglossError(
                f"{self._name}: max_attempts must be >= 1, got {max_attempts}."
            )
        self.batch_cl = batch_cl
        self.first_class = 0 if count_background else 1
        self.exact = exact
        self.on_reject = on_reject
        sets = ClassSets.of(presence)
        self.class_sets = sets if count_background else sets.without_background()
        self._too_large = None
        if exact:  # a sample with more than batch_cl classes fits into no batch
            self._too_large = self.class_sets.sizes() > batch_cl
            if self._too_large.all():
                raise SeglossError(
                    f"{self._name}: every sample has more than batch_cl={batch_cl} "
                    "classes, so exact=True allows no batch; raise batch_cl."
                )
        first = self._first_deal(max_attempts)
        self.batches_per_epoch = len(first)
        self._plans = {0: first}

    def owed(self, k: int) -> Bool[np.ndarray, "b c"]:
        """Returns True for the classes of each sample that its crop must keep.

        They are the classes that no sample before it in batch k has.
        """
        return self.class_sets.added_by(self[k])

    @property
    def batch_min(self) -> int:
        """Every batch has at least this many samples; most batches have more.

        It is 1 if some sample has enough classes alone, else 2.
        """
        sizes = self.class_sets.sizes()
        enough = sizes == self.batch_cl if self.exact else sizes >= self.batch_cl
        return 1 if enough.any() else min(2, super().batch_min)

    def describe(self) -> str:
        """Returns a line that predicts the acceptance rate and the batch size.

        It is empty with `exact=True`.
        """
        if self.exact:  # `estimate_acceptance` does not model exact=True
            return ""
        pair = {"batch_cl": self.batch_cl, "batch_max": self.batch_max}
        return str(estimate_acceptance(self.class_sets, **pair))

    def _first_deal(self, max_attempts: int) -> Plan:
        """Returns the first distribution of samples into batches that has any batch.

        Raises ValueError after a million attempts; warns above `max_attempts`.
        """
        rng, attempts, batches = self._rng(0), 0, 0
        while batches == 0:
            plan, attempted, batches = self._deal_once(rng)
            if batches == 0 and attempts == 0:
                check_reachable(
                    self._name,
                    self.class_sets,
                    self.batch_cl,
                    self.batch_max,
                    exact=self.exact,
                )
            # A deal without complete attempts has still looked at all samples.
            attempts += max(attempted, -(-self.num_samples // self.batch_max))
            if batches == 0 and attempts >= _LAST_ATTEMPT:
                raise SeglossError(
                    f"{self._pair}: none of {attempts:,} random attempts succeeded; "
                    f"{self._suggestion(max_attempts)}."
                )
        if attempts > max_attempts * batches:
            warnings.warn(
                f"{self._pair} takes about {attempts / batches:,.0f} attempts per "
                f"batch, more than max_attempts={max_attempts:,}, so an epoch uses few "
                f"of the samples; {self._suggestion(max_attempts)}.",
                stacklevel=3,
            )
        return plan

    @property
    def _pair(self) -> str:
        return (
            f"{self._name}: batch_cl={self.batch_cl} within batch_max={self.batch_max}"
        )

    def _suggestion(self, max_attempts: int) -> str:
        if self.exact:  # `nearest_pair` does not model exact=True
            return "exact=False or another batch_cl may take fewer"
        pair = nearest_pair(
            self.class_sets, batch_max=self.batch_max, max_attempts=max_attempts
        )
        if pair is None:
            return (
                f"even batch_cl=1 takes more within batch_max={self.batch_max}, so "
                "raise batch_max"
            )
        nearest, acceptance = pair
        return (
            f"the nearest practical pair is batch_cl={nearest} within "
            f"batch_max={self.batch_max}, about {1 / acceptance:,.0f} attempts"
        )

    def _deal(self, rng: np.random.Generator, missing: int | None = None) -> Plan:
        share = 1 if missing is None else missing / self.batches_per_epoch
        return self._deal_once(rng, share)[0]

    def _deal_once(
        self, rng: np.random.Generator, share: float | int = 1
    ) -> tuple[Plan, int, int]:
        """Distributes a random share (0 to 1) of the samples into batches.

        Returns all batches; and the numbers of attempts and batches before discarded
        samples are dealt again.
        """
        if share == 1:
            order = self._shuffle_all(rng)
        else:  # a few batches to complete an epoch need no shuffle of all samples
            size = min(self.num_samples, int(share * self.num_samples) + self.batch_max)
            order = rng.choice(self.num_samples, size, replace=False)
        if self._too_large is not None:
            order = order[~self._too_large[order]]
        plan, left, attempts = self._turn(order)
        plans = [plan]
        while self.on_reject == "requeue" and len(plans[-1]):
            placed = len(plans[-1].ids)
            if placed < _WORTHWHILE * (placed + len(left)):
                break
            turn, left, _ = self._turn(rng.permutation(left))
            plans.append(turn)
        return Plan.join(plans), attempts, len(plan)

    def _turn(self, order: np.ndarray) -> tuple[Plan, np.ndarray, int]:
        # Imported here, since importing numba takes most of a second.
        from segloss.data.samplers import kernels

        # Copied in shuffled order: random access in the loop would be slower.
        words = self.class_sets.words[order]
        ids, offsets, left, attempts = kernels.deal_by_rule(
            order, words, self.batch_cl, self.batch_max, self.exact
        )
        return Plan(ids, offsets), left, attempts

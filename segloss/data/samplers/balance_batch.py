"""Balance-batch: so many distinct classes in every batch."""

import warnings

import numpy as np

from segloss.data.samplers.class_sets import ClassSets, Presence
from segloss.data.samplers.epochs import EpochSampler, Plan
from segloss.data.samplers.planning import check_pair, check_reachable, nearest_pair

# A pair that so many attempts have not met is refused: planning must come to an end.
_LAST_ATTEMPT = 1_000_000
# Requeued samples are dealt again as long as this share of them finds a batch.
_WORTHWHILE = 0.01


class BalanceBatch(EpochSampler):
    """Batches of at least `batch_cl` distinct classes within `batch_max` samples.

    The rule of Balance-batch (Huang et al. 2019, doi:10.1109/LSP.2019.2956367): shuffle
    the epoch; load samples until the batch holds at least `batch_cl` distinct classes
    and then stop; if `batch_max` samples were loaded and it does not, discard them and
    start again. The class index says what a sample holds, so "load" reads nothing.

    A class that no sample holds never counts. Where the set has fewer than `batch_max`
    samples, all of them are the most that a batch can hold.

    Args:
        presence: True where a sample holds a class, `[n, c]`, or the class sets.
        batch_cl: distinct classes that a batch must hold.
        batch_max: most samples that a batch may hold.
        seed: seed of the shuffles, at least 0.
        exact: stop at `batch_cl` classes exactly: a sample that would go past is set
            aside and tried first in the next batch.
        on_reject: "drop" discards for this deal; "requeue" shuffles and deals what was
            discarded again, until a turn places less than a hundredth. All epochs have
            as many batches as the first, so one that comes short uses some samples
            twice.
        count_background: whether class 0 counts as one of the `batch_cl`.
        max_attempts: attempts per batch from which on a warning calls the pair
            impractical, and names the nearest that is not.

    Raises:
        ValueError: if an argument is out of range, or no batch can satisfy the pair;
            the message says the largest `batch_cl` that can be reached, or its bounds.
            Also if a million attempts do not satisfy it.
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
        super().__init__(len(presence), batch_max, seed)
        check_pair(self._name, batch_cl, batch_max)
        if on_reject not in ("drop", "requeue"):
            raise ValueError(
                f"{self._name}: on_reject must be 'drop' or 'requeue', "
                f"got {on_reject!r}."
            )
        if max_attempts < 1:
            raise ValueError(
                f"{self._name}: max_attempts must be >= 1, got {max_attempts}."
            )
        self.batch_cl = batch_cl
        self.exact = exact
        self.on_reject = on_reject
        sets = ClassSets.of(presence)
        self.class_sets = sets if count_background else sets.without_background()
        self._too_large = None
        if exact:  # what goes past batch_cl by itself fits no batch
            self._too_large = self.class_sets.sizes() > batch_cl
            if self._too_large.all():
                raise ValueError(
                    f"{self._name}: every sample alone holds more than batch_cl="
                    f"{batch_cl} classes, so exact=True forms no batch; raise batch_cl."
                )
        first = self._first_deal(max_attempts)
        self.batches_per_epoch = len(first)
        self._plans = {0: first}

    def _first_deal(self, max_attempts: int) -> Plan:
        """The first deal with any batch, which proves that the pair can be met."""
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
            # A deal that ended early has still looked at all samples.
            attempts += max(attempted, -(-self.num_samples // self.batch_max))
            if batches == 0 and attempts >= _LAST_ATTEMPT:
                raise ValueError(
                    f"{self._pair} was met by none of {attempts:,} random attempts; "
                    f"{self._suggestion(max_attempts)}."
                )
        if attempts > max_attempts * batches:
            warnings.warn(
                f"{self._pair} takes about {attempts / batches:,.0f} attempts per "
                f"batch, more than max_attempts={max_attempts:,}, so an epoch uses few "
                f"samples; {self._suggestion(max_attempts)}.",
                stacklevel=3,
            )
        return plan

    @property
    def _pair(self) -> str:
        return (
            f"{self._name}: batch_cl={self.batch_cl} within batch_max={self.batch_max}"
        )

    def _suggestion(self, max_attempts: int) -> str:
        if self.exact:  # acceptances are estimated without it
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
        """Batches of a share of the samples; attempts and batches of the first turn."""
        if share == 1:
            order = rng.permutation(self.num_samples)
        else:  # a few batches to make up an epoch need no shuffle of all samples
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
        # Importing numba takes most of a second, which other samplers are spared.
        from segloss.data.samplers import kernels

        # Copied into order first: the loop would wait for memory at every sample.
        words = self.class_sets.words[order]
        ids, offsets, left, attempts = kernels.deal_by_rule(
            order, words, self.batch_cl, self.batch_max, self.exact
        )
        return Plan(ids, offsets), left, attempts

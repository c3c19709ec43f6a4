"""The promise of Balance-batch kept by choosing, not by trying."""

import warnings

import numpy as np

from segloss.data.samplers.class_sets import ClassSets, Presence
from segloss.data.samplers.epochs import EpochSampler, Plan
from segloss.data.samplers.planning import check_pair, covering_sets

# Samples looked at per missing class, at first and after a failure.
_DEPTH = 4
_DEEP = 64
# Share of the samples in no batch from which on a warning says so.
_MOST_LEFT_OUT = 0.01


class GreedyCover(EpochSampler):
    """Batches of at least `batch_cl` distinct classes, without a discard.

    An epoch is shuffled. Each sample in turn that no batch holds yet leads one. The
    batch is filled up with samples that hold a class it lacks, and stops as soon as it
    has `batch_cl`: first of all those that add enough classes for the slots left, of
    these the least used so far, of these the one with the rarest class.

    What it samples from: nothing uniform, and nothing independent. Samples of equal
    class sets are alike to it, so in the long run they have equal shares. Over an
    epoch each sample is in at least one batch, and in more the scarcer its classes are
    beside what the batches need; the shares are as even as this allows, not equal. In
    a batch the samples complement each other: given one of them, the others hold
    classes that it lacks more often than chance would have it. A loss that is a mean
    over samples is therefore one over another distribution than the data set's.

    Exceptions: an epoch is cut to the number of batches of the first, so that its last
    few leads may miss their turn. A sample with which the search finds no batch is left
    out, which only pairs close to the largest reachable bring about; where it finds
    none at all, the batches repeat a cover that is computed once.

    A class that no sample holds never counts. Where the set has fewer than `batch_max`
    samples, all of them are the most that a batch can hold.

    Args:
        presence: True where a sample holds a class, `[n, c]`, or the class sets.
        batch_cl: distinct classes that a batch must hold.
        batch_max: most samples that a batch may hold.
        seed: seed of the shuffles, at least 0.
        count_background: whether class 0 counts as one of the `batch_cl`.

    Raises:
        ValueError: if an argument is out of range, or no batch can satisfy the pair;
            the message says the largest `batch_cl` that can be reached, or its bounds.
    """

    def __init__(
        self,
        presence: Presence,
        *,
        batch_cl: int,
        batch_max: int,
        seed: int = 0,
        count_background: bool = True,
    ):
        super().__init__(len(presence), batch_max, seed)
        check_pair(self._name, batch_cl, batch_max)
        self.batch_cl = batch_cl
        sets = ClassSets.of(presence)
        self.class_sets = sets if count_background else sets.without_background()
        self._cover = covering_sets(self._name, self.class_sets, batch_cl, batch_max)
        holders = self.class_sets.samples_per_class()
        by_rarity = np.argsort(holders, kind="stable")
        self._rare_first = by_rarity[holders[by_rarity] > 0]
        first = self._deal(self._rng(0))
        self.batches_per_epoch = len(first)
        self._plans = {0: first}
        left_out = 1 - len(np.unique(first.ids)) / self.num_samples
        if left_out > _MOST_LEFT_OUT:
            warnings.warn(
                f"{self._name}: batch_cl={batch_cl} within batch_max={batch_max} "
                f"leaves {left_out:.0%} of the samples out, for which no batch was "
                "found; lower batch_cl or raise batch_max.",
                stacklevel=2,
            )

    def _deal(self, rng: np.random.Generator, missing: int | None = None) -> Plan:
        # Importing numba takes most of a second, which other samplers are spared.
        from segloss.data.samplers import kernels

        order = rng.permutation(self.num_samples)
        places, offsets = kernels.deal_covers(
            self.class_sets.words[order],
            self._rare_first,
            self.class_sets.num_classes,
            self.batch_cl,
            self.batch_max,
            self.num_samples if missing is None else missing,
            _DEPTH,
            _DEEP,
        )
        if len(offsets) > 1:
            return Plan(order[places], offsets)
        words = self.class_sets.words[order]
        ids = [order[(words == s).all(axis=1).argmax()] for s in self._cover.words]
        return Plan.cut(np.array(ids), self.batch_max)

"""Greedy cover: the guarantee of Balance-batch without rejected attempts."""

import warnings

import numpy as np
from jaxtyping import Bool

from segloss.data.samplers.class_sets import ClassSets, Presence
from segloss.data.samplers.epochs import EpochSampler, Plan
from segloss.data.samplers.planning import check_pair, covering_sets

# Candidates per missing class, in the first search and in the one after a failure.
_DEPTH = 4
_DEEP = 64
# A warning is given if a larger share of the samples than this is in no batch.
_MOST_LEFT_OUT = 0.01


class GreedyCover(EpochSampler):
    """Batches of at least `batch_cl` distinct classes, built without rejections.

    An epoch is shuffled. In this order, each sample that is not in a batch yet becomes
    the lead (the first sample) of a new one. Samples with missing classes are added
    until the batch has `batch_cl` classes. The next sample is chosen by three criteria
    in turn: it adds enough classes for the remaining slots; it has been used least; it
    has the rarest class.

    The resulting distribution is neither uniform nor independent. Samples with equal
    class sets have equal shares in the long run. In an epoch each sample is in at least
    one batch, and samples are in more batches the scarcer their classes are compared
    with the demand of the batches. The samples of a batch complement each other: they
    have different classes more often than random samples. A loss that averages over
    samples therefore follows another distribution than that of the dataset.

    Exceptions: every epoch is truncated to the number of batches of the first, so its
    last leads may be left out. A lead for which the search finds no batch is left out
    too; this happens only if `batch_cl` is close to the largest number reachable with
    `batch_max`. If the search finds no batch at all, every batch has samples with the
    same few class sets, which have `batch_cl` classes together and are computed once.

    Classes that occur in no sample never count. If the dataset has fewer than
    `batch_max` samples, a batch holds at most all of them.

    Args:
        presence: True where a sample has a class, `[n, c]`, or `ClassSets`.
        batch_cl: number of distinct classes that a batch must have.
        batch_max: largest number of samples in a batch.
        seed: seed of the shuffles, at least 0.
        count_background: True counts class 0 as one of the `batch_cl` classes.

    Raises:
        ValueError: if an argument is out of range, or no `batch_max` samples have
            `batch_cl` classes. The message gives the largest reachable `batch_cl`, or
            bounds of it.

    >>> import numpy as np
    >>> presence = np.array([[True, False]] * 3 + [[False, True]])  # class 1 is rare
    >>> sampler = GreedyCover(presence, batch_cl=2, batch_max=2)
    >>> [3 in sampler[k] for k in range(sampler.batches_per_epoch)]
    [True, True, True]
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
        super().__init__(presence, batch_max, seed)
        check_pair(self._name, batch_cl, batch_max)
        self.batch_cl = batch_cl
        self.first_class = 0 if count_background else 1
        sets = ClassSets.of(presence)
        self.class_sets = sets if count_background else sets.without_background()
        self._cover = covering_sets(self._name, self.class_sets, batch_cl, batch_max)
        holders = self.class_sets.samples_per_class()
        by_rarity = np.argsort(holders, kind="stable")
        self._rare_first = by_rarity[holders[by_rarity] > 0]
        first = self._deal(self._rng(0))
        self.batches_per_epoch = len(first)
        self._plans = {0: first}
        used = np.zeros(self.num_samples, bool)
        used[first.ids] = True
        left_out = 1 - used.mean()
        if left_out > _MOST_LEFT_OUT:
            warnings.warn(
                f"{self._name}: batch_cl={batch_cl} within batch_max={batch_max} "
                f"leaves {left_out:.0%} of the samples out, because no batch was found "
                "for them; lower batch_cl or raise batch_max.",
                stacklevel=2,
            )

    def owed(self, k: int) -> Bool[np.ndarray, "b c"]:
        """Returns True for the classes of each sample that its crop must keep.

        They are the classes that no sample before it in batch k has.
        """
        return self.class_sets.added_by(self[k])

    @property
    def batch_min(self) -> int:
        """Every batch has at least this many samples; most batches have more.

        It is 1 if some sample has `batch_cl` classes alone, else 2.
        """
        enough = self.class_sets.sizes() >= self.batch_cl
        return 1 if enough.any() else min(2, super().batch_min)

    def _deal(self, rng: np.random.Generator, missing: int | None = None) -> Plan:
        # Imported here, since importing numba takes most of a second.
        from segloss.data.samplers import kernels

        order = self._shuffle_all(rng)
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

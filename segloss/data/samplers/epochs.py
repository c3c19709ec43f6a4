"""Base class of the samplers, which plan their batches epoch by epoch.

`sampler[k]` is an int64 array with the sample ids of batch k, for any k >= 0. It
depends only on the sampler's arguments and k.
"""

import abc
import dataclasses
import operator
import threading
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Int, Int64

from segloss.data.samplers.class_sets import Presence, count_classes
from segloss.errors import SeglossError


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """The batches of an epoch, or of some of it, as flat arrays to save memory.

    Attributes:
        ids: concatenated sample ids of all batches; int32 if the sampler dealt such.
        offsets: batch `i` is `ids[offsets[i] : offsets[i + 1]]`.
        classes: for each of `ids`, the class for which the sample was drawn, -1 for
            none. None if the sampler does not draw samples for a single class.
    """

    ids: Int[np.ndarray, " m"]
    offsets: Int64[np.ndarray, " b_and_1"]
    classes: Int64[np.ndarray, " m"] | None = None

    @classmethod
    def cut(
        cls,
        ids: Int[np.ndarray, " m"],
        batch_max: int,
        classes: Int64[np.ndarray, " m"] | None = None,
    ) -> "Plan":
        """Cuts `ids`, and `classes` likewise, into consecutive batches of `batch_max`.

        The remainder is dropped. Fewer than `batch_max` ids give one short batch.
        """
        size = min(batch_max, len(ids))
        offsets = np.arange(0, len(ids) + 1, size)
        end = offsets[-1]
        return cls(ids[:end], offsets, None if classes is None else classes[:end])

    @classmethod
    def join(cls, plans: "Sequence[Plan]", max_batches: int | None = None) -> "Plan":
        """Concatenates plans; keeps the first `max_batches` batches, or all if None."""
        if len(plans) == 1 and max_batches in (None, len(plans[0])):
            return plans[0]
        sizes = np.concatenate([np.diff(plan.offsets) for plan in plans])[:max_batches]
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        ids = np.concatenate([plan.ids for plan in plans])[: offsets[-1]]
        if plans[0].classes is None:
            return cls(ids, offsets)
        classes = np.concatenate([plan.classes for plan in plans])[: offsets[-1]]
        return cls(ids, offsets, classes)

    def __len__(self) -> int:
        return len(self.offsets) - 1


class EpochSampler(abc.ABC):
    """Base class of samplers: random access to batches that are planned by epoch.

    `sampler[k]` is an int64 array of sample ids, those of batch k. `sampler.owed(k)`
    marks the classes for which each of these samples was chosen.

    A deal distributes the samples into batches once, in random order. Every epoch has
    the number of batches of the first deal of epoch 0: an epoch with too few continues
    with another deal, and an epoch with too many is truncated. Batch k is therefore in
    epoch `k // batches_per_epoch`, and only that epoch must be planned to get it.

    Attributes:
        num_samples: number of samples; sample ids are less than this.
        batch_max: largest number of samples in a batch.
        seed: seed of all random draws.
        num_classes: number of classes.
        batches_per_epoch: number of batches of an epoch, at least 1. Subclasses set it
            unless all batches have `batch_max` samples.
        batch_cl: least number of distinct classes in every batch; None if the sampler
            promises none.
        first_class: 1 if class 0, the background, does not count towards `batch_cl`;
            0 if it does.
        takes_for_classes: True if the sampler chooses a sample for some of its classes,
            which `owed` marks. False if `owed` marks none.
        owes_one: True if `owed` marks at most one class of each sample.
    """

    batch_cl: int | None = None
    first_class: int = 0
    takes_for_classes: ClassVar[bool] = True
    owes_one: ClassVar[bool] = False

    def __init__(self, presence: Presence, batch_max: int, seed: int):
        num_samples = len(presence)
        if num_samples < 1:
            raise SeglossError(f"{self._name}: presence must hold a sample, got none.")
        if not isinstance(batch_max, int | np.integer) or batch_max < 1:
            raise SeglossError(
                f"{self._name}: batch_max must be an integer >= 1, got {batch_max}."
            )
        if seed < 0:
            raise SeglossError(f"{self._name}: seed must be >= 0, got {seed}.")
        self.num_samples = num_samples
        self.num_classes = count_classes(presence)
        self.batch_max = batch_max
        self.seed = seed
        self.batches_per_epoch = max(1, num_samples // batch_max)
        self._plans: dict[int, Plan] = {}
        self._planning = threading.Lock()

    def __getitem__(self, k: int) -> Int64[np.ndarray, " b"]:
        plan, places = self._find(k)
        return plan.ids[places].astype(np.int64)

    def owed(self, k: int) -> Bool[np.ndarray, "b c"]:
        """Returns True for the classes for which each sample of batch k was chosen.

        Row i is for the sample `self[k][i]`. A training crop must keep these classes,
        or the network sees a batch that the sampler did not plan; see
        `Windows.keep_classes`.
        """
        plan, places = self._find(k)
        owed = np.zeros((places.stop - places.start, self.num_classes), bool)
        if plan.classes is not None:
            classes = plan.classes[places]
            owed[classes >= 0, classes[classes >= 0]] = True
        return owed

    @property
    def batch_min(self) -> int:
        """Every batch has at least this many samples; at least 1."""
        return min(self.batch_max, self.num_samples)

    def describe(self) -> str:
        """Returns a line about the sampler to show before training; may be empty."""
        return ""

    def __getstate__(self) -> dict[str, Any]:
        # Plans are not pickled: worker processes plan for themselves.
        return {k: v for k, v in vars(self).items() if k not in ("_plans", "_planning")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _plans={}, _planning=threading.Lock())

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _find(self, k: int) -> tuple[Plan, slice]:
        """Returns the plan that contains batch k, and the batch's slice of its ids."""
        k = operator.index(k)
        if k < 0:
            raise IndexError(f"{self._name}: batch must be >= 0, got {k}.")
        epoch, position = divmod(k, self.batches_per_epoch)
        plan = self._epoch(epoch)
        return plan, slice(*plan.offsets[position : position + 2].tolist())

    def _epoch(self, epoch: int) -> Plan:
        plan = self._plans.get(epoch)
        if plan is not None:
            return plan
        with self._planning:  # only one loader thread plans the epoch
            if epoch not in self._plans:
                # Threads are in two adjacent epochs at most.
                kept = {e: p for e, p in self._plans.items() if abs(e - epoch) == 1}
                self._plans = kept | {epoch: self._make_plan(epoch)}
            return self._plans[epoch]

    def _make_plan(self, epoch: int) -> Plan:
        rng = self._rng(epoch)
        plans, missing = [], self.batches_per_epoch
        while missing > 0:
            plans.append(self._deal(rng, missing))
            missing -= len(plans[-1])
        return Plan.join(plans, self.batches_per_epoch)

    def _all_ids(self) -> Int[np.ndarray, " n"]:
        """Returns the ids of all samples, as int32 to save memory, if that holds them.

        Shuffles draw the same order for int32 and int64.
        """
        fits = self.num_samples <= np.iinfo(np.int32).max
        return np.arange(self.num_samples, dtype=np.int32 if fits else np.int64)

    def _shuffle_all(self, rng: np.random.Generator) -> Int[np.ndarray, " n"]:
        ids = self._all_ids()
        rng.shuffle(ids)
        return ids

    def _rng(self, epoch: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, epoch])

    @abc.abstractmethod
    def _deal(self, rng: np.random.Generator, missing: int | None = None) -> Plan:
        """Distributes the samples into batches once; may return no batch.

        If `missing` is given, at most the first `missing` batches will be used.
        """


def exposures(sampler: EpochSampler, num_batches: int) -> Int64[np.ndarray, " n"]:
    """Counts how often each sample occurs in batches 0 to `num_batches - 1`.

    Args:
        sampler: the sampler to examine.
        num_batches: number of batches to count; an epoch has
            `sampler.batches_per_epoch`.

    Raises:
        ValueError: if `num_batches` is negative.

    >>> import numpy as np
    >>> from segloss.data import RandomBatch
    >>> sampler = RandomBatch(np.ones((4, 1), bool), batch_max=2)
    >>> exposures(sampler, num_batches=4)
    array([2, 2, 2, 2])
    """
    if num_batches < 0:
        raise SeglossError(f"exposures: num_batches must be >= 0, got {num_batches}.")
    counts = np.zeros(sampler.num_samples, np.int64)
    for first in range(0, num_batches, sampler.batches_per_epoch):
        plan = sampler._epoch(first // sampler.batches_per_epoch)
        end = plan.offsets[min(len(plan), num_batches - first)]
        counts += np.bincount(plan.ids[:end], minlength=sampler.num_samples)
    return counts

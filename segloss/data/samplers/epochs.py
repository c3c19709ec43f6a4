"""Base class of the samplers, which plan their batches epoch by epoch.

A sampler is a pure function of its arguments and k. `sampler[k]` is an int64 array with
the ids of batch k, for any k >= 0; `batch_max` is the largest number of ids in a batch.
"""

import abc
import dataclasses
import operator
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """A sequence of batches, stored in flat arrays.

    Attributes:
        ids: concatenated sample ids of all batches.
        offsets: batch `i` is `ids[offsets[i] : offsets[i + 1]]`.
    """

    ids: Int64[np.ndarray, " m"]
    offsets: Int64[np.ndarray, " b_and_1"]

    @classmethod
    def cut(cls, ids: Int64[np.ndarray, " m"], batch_max: int) -> "Plan":
        """Cuts ids into batches of `batch_max` and drops the remainder.

        Fewer than `batch_max` ids give one short batch.
        """
        size = min(batch_max, len(ids))
        offsets = np.arange(0, len(ids) + 1, size)
        return cls(ids[: offsets[-1]], offsets)

    @classmethod
    def join(cls, plans: "Sequence[Plan]", max_batches: int | None = None) -> "Plan":
        """Concatenates plans and keeps at most the first `max_batches` batches."""
        if len(plans) == 1 and max_batches in (None, len(plans[0])):
            return plans[0]
        sizes = np.concatenate([np.diff(plan.offsets) for plan in plans])[:max_batches]
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        ids = np.concatenate([plan.ids for plan in plans])[: offsets[-1]]
        return cls(ids, offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> Int64[np.ndarray, " n"]:
        return self.ids[self.offsets[i] : self.offsets[i + 1]]


class EpochSampler(abc.ABC):
    """Base class of samplers: random access to batches that are planned by epoch.

    A deal distributes the shuffled samples into batches once. Every epoch has the
    number of batches of the first deal of epoch 0: an epoch with too few continues with
    another deal, and an epoch with too many is truncated. Batch k is therefore in epoch
    `k // batches_per_epoch`, and only that epoch must be planned to get it.

    Attributes:
        num_samples: number of samples; ids are less than this.
        batch_max: largest number of ids in a batch.
        seed: seed of all random draws.
        batches_per_epoch: number of batches of an epoch, at least 1; set by subclasses.
    """

    batches_per_epoch: int

    def __init__(self, num_samples: int, batch_max: int, seed: int):
        if num_samples < 1:
            raise ValueError(f"{self._name}: presence must hold a sample, got none.")
        if not isinstance(batch_max, int | np.integer) or batch_max < 1:
            raise ValueError(
                f"{self._name}: batch_max must be an integer >= 1, got {batch_max}."
            )
        if seed < 0:
            raise ValueError(f"{self._name}: seed must be >= 0, got {seed}.")
        self.num_samples = num_samples
        self.batch_max = batch_max
        self.seed = seed
        self._plans: dict[int, Plan] = {}
        self._planning = threading.Lock()

    def __getitem__(self, k: int) -> Int64[np.ndarray, " b"]:
        k = operator.index(k)
        if k < 0:
            raise IndexError(f"{self._name}: batch must be >= 0, got {k}.")
        epoch, position = divmod(k, self.batches_per_epoch)
        return self._epoch(epoch)[position].copy()

    @property
    def batch_min(self) -> int:
        """A number of ids that no batch falls below, at least 1."""
        return min(self.batch_max, self.num_samples)

    def describe(self) -> str:
        """Returns what a run should say about the sampler before it starts."""
        return ""

    def __getstate__(self) -> dict[str, Any]:
        # Plans are not pickled: worker processes plan for themselves.
        return {k: v for k, v in vars(self).items() if k not in ("_plans", "_planning")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _plans={}, _planning=threading.Lock())

    @property
    def _name(self) -> str:
        return type(self).__name__

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

    def _rng(self, epoch: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, epoch])

    @abc.abstractmethod
    def _deal(self, rng: np.random.Generator, missing: int | None = None) -> Plan:
        """Distributes the samples into batches once; may return no batch.

        If `missing` is given, only the first `missing` batches will be used.
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
        raise ValueError(f"exposures: num_batches must be >= 0, got {num_batches}.")
    counts = np.zeros(sampler.num_samples, np.int64)
    for first in range(0, num_batches, sampler.batches_per_epoch):
        plan = sampler._epoch(first // sampler.batches_per_epoch)
        end = plan.offsets[min(len(plan), num_batches - first)]
        counts += np.bincount(plan.ids[:end], minlength=sampler.num_samples)
    return counts

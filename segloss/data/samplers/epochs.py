"""Batches planned epoch by epoch: the face that all samplers share.

A sampler is a pure function of its arguments and k. `sampler[k]` is the int64 ids of
batch k for any k >= 0, `batch_max` the most ids that a batch can hold.
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
    """Batches one after the other in flat arrays.

    Attributes:
        ids: the samples of all batches.
        offsets: batch `i` is `ids[offsets[i] : offsets[i + 1]]`.
    """

    ids: Int64[np.ndarray, " m"]
    offsets: Int64[np.ndarray, " b_and_1"]

    @classmethod
    def cut(cls, ids: Int64[np.ndarray, " m"], batch_max: int) -> "Plan":
        """Batches of `batch_max`, the rest dropped; one short batch if that is all."""
        size = min(batch_max, len(ids))
        offsets = np.arange(0, len(ids) + 1, size)
        return cls(ids[: offsets[-1]], offsets)

    @classmethod
    def join(cls, plans: "Sequence[Plan]", max_batches: int | None = None) -> "Plan":
        """The batches of all plans, at most the first `max_batches` of them."""
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
    """Random access to batches that are planned epoch by epoch.

    Every epoch has as many batches as the first deal of epoch 0 yields. One that comes
    short goes on with a further deal, one that runs over is cut; so batch k lies in
    epoch `k // batches_per_epoch` and costs the planning of that epoch alone.

    Attributes:
        num_samples: ids are less than this.
        batch_max: the most ids that a batch can hold.
        seed: seed of all draws.
        batches_per_epoch: set by the subclass, at least 1.
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

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes plan for themselves.
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
        with self._planning:  # so that loader threads do not all plan the same epoch
            if epoch not in self._plans:
                # They straddle two epochs at most.
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
        """Deals the samples out into batches once; may yield none.

        No more batches than `missing` are used, where that is said.
        """


def exposures(sampler: EpochSampler, num_batches: int) -> Int64[np.ndarray, " n"]:
    """How often each sample occurs in the batches 0 to `num_batches` - 1.

    Args:
        sampler: what chooses the samples.
        num_batches: how many batches to count; `sampler.batches_per_epoch` is an epoch.

    Raises:
        ValueError: if `num_batches` is negative.
    """
    if num_batches < 0:
        raise ValueError(f"exposures: num_batches must be >= 0, got {num_batches}.")
    counts = np.zeros(sampler.num_samples, np.int64)
    for first in range(0, num_batches, sampler.batches_per_epoch):
        plan = sampler._epoch(first // sampler.batches_per_epoch)
        end = plan.offsets[min(len(plan), num_batches - first)]
        counts += np.bincount(plan.ids[:end], minlength=sampler.num_samples)
    return counts

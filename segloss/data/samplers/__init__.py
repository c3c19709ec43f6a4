"""Samplers choose the samples of each batch by their classes, without reading images.

`sampler[k]` is an int64 array of the sample ids of batch k. It depends only on the
sampler's arguments and k.
"""

from segloss.data.samplers.balance_batch import BalanceBatch
from segloss.data.samplers.baselines import (
    ClassUniform,
    ForegroundOversample,
    RandomBatch,
    RareClass,
    RepeatFactor,
)
from segloss.data.samplers.class_sets import ClassSets
from segloss.data.samplers.epochs import EpochSampler, exposures
from segloss.data.samplers.greedy_cover import GreedyCover
from segloss.data.samplers.matched_random import MatchedRandom
from segloss.data.samplers.planning import (
    Acceptance,
    bound_distinct_classes,
    estimate_acceptance,
    most_distinct_classes,
)

SAMPLERS = {
    "balance_batch": BalanceBatch,
    "class_uniform": ClassUniform,
    "foreground_oversample": ForegroundOversample,
    "greedy_cover": GreedyCover,
    "matched_random": MatchedRandom,
    "random": RandomBatch,
    "rare_class": RareClass,
    "repeat_factor": RepeatFactor,
}

__all__ = [
    "SAMPLERS",
    "Acceptance",
    "BalanceBatch",
    "ClassSets",
    "ClassUniform",
    "EpochSampler",
    "ForegroundOversample",
    "GreedyCover",
    "MatchedRandom",
    "RandomBatch",
    "RareClass",
    "RepeatFactor",
    "bound_distinct_classes",
    "estimate_acceptance",
    "exposures",
    "most_distinct_classes",
]

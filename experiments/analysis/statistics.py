"""Bootstrap intervals of differences of scores, over seeds and test images."""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from segloss import metrics
from segloss.errors import SeglossError

PerImage = Int[np.ndarray, "s n c c"]
# Maps confusion matrices to one score of each, `[*b]`, or to several, `[*b, k]`.
Score = Callable[[Int[np.ndarray, "*b c c"]], Any]

_CONFIDENCE = 0.95
# Number of resamples whose summed confusion matrices are in memory at once.
_AT_ONCE = 250


@dataclasses.dataclass(frozen=True)
class Interval:
    """A difference and its 95 % interval: numbers, or arrays for several scores.

    Attributes:
        estimate: the difference on all seeds and images.
        low: 2.5 % of the resamples have a smaller difference.
        high: 2.5 % of the resamples have a larger difference.
        defined: share of the resamples in which the difference is not NaN.
    """

    estimate: Any
    low: Any
    high: Any
    defined: Any

    def __getitem__(self, place: Any) -> "Interval":
        """The interval of the score at index `place`, if there are several scores."""
        return Interval(*(field[place] for field in dataclasses.astuple(self)))


@dataclasses.dataclass(frozen=True)
class Spread:
    """The mean of a score over seeds, and its smallest (`low`) and largest (`high`)."""

    mean: float
    low: float
    high: float


def mean_scores(per_image: PerImage, score: Score = metrics.mean_iou) -> Any:
    """Scores the summed confusion matrices of each seed; returns mean and range.

    `per_image` has a confusion matrix per seed and image. Seeds whose score is NaN are
    left out. If `score` returns several scores, the result is a list of `Spread`.
    """
    scores = np.asarray(score(per_image.sum(axis=1, dtype=np.int64)))
    columns = scores.reshape(len(scores), -1).T
    spreads = [_spread(column[~np.isnan(column)]) for column in columns]
    return spreads[0] if scores.ndim == 1 else spreads


def difference(
    treatment: PerImage,
    baseline: PerImage,
    score: Score = metrics.mean_iou,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Score of `treatment` minus that of `baseline`, with a 95 % bootstrap interval.

    Each resample draws seeds and images with replacement, the same for both arms, sums
    the confusion matrices of the images drawn, and averages the difference of the
    scores over the seeds drawn. What makes an image or a seed hard for both arms thus
    cancels.

    An interval from three seeds is too narrow, so one that barely leaves out 0 is no
    proof. In simulations where seeds vary more than images
    (`tests/experiments/test_statistics.py`), 79 % of the intervals hold the true
    difference with 3 seeds, 92 % with 12. With one seed, only images are drawn.

    A score of 0/0 is NaN, such as the IoU of a class that no image drawn holds. The
    mean leaves out seeds for which either arm's score is NaN. The interval leaves out
    resamples in which this is so for all seeds.

    Args:
        treatment: confusion matrices by seed and image.
        baseline: the same for the other arm, with the same seeds and images in order.
        score: maps confusion matrices to scores, such as `segloss.metrics.mean_iou`.
        resamples: the number of resamples.
        seed: seed of the random generator.

    Raises:
        ValueError: if the shapes differ, or there are fewer than two images.
    """
    if treatment.shape != baseline.shape:
        raise SeglossError(
            f"difference: treatment {treatment.shape} and baseline {baseline.shape} "
            "must have the same seeds, images and classes."
        )
    num_seeds, num_images = treatment.shape[:2]
    if num_images < 2:
        raise SeglossError(
            f"difference: an interval needs at least 2 images, got {num_images}."
        )
    arms = [x.reshape(num_seeds, num_images, -1) for x in (treatment, baseline)]
    # Sums of counts are exact in float64, whose matrix products are fast.
    arms = [x.astype(np.float64) for x in arms]

    def statistic(*drawn, axis):
        *seeds, images = drawn
        seeds = seeds[0] if seeds else np.zeros((*images.shape[:-1], 1), np.int64)
        counts, weights = _count(images, num_images), _count(seeds, num_seeds)
        by_seed = [
            _scores(t, counts, score) - _scores(b, counts, score)
            for t, b in zip(*arms, strict=True)
        ]
        return _weighted_mean(np.stack(by_seed, axis=-1), weights)

    ids = [np.arange(num_seeds)] if num_seeds > 1 else []
    ids.append(np.arange(num_images))
    with warnings.catch_warnings():
        # SciPy warns of resamples without a value, which are left out below.
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        # Not BCa: a jackknife over three seeds estimates the skew badly, and not at all
        # where the seeds agree.
        drawn = stats.bootstrap(
            ids,
            statistic,
            vectorized=True,
            paired=False,
            n_resamples=resamples,
            batch=_AT_ONCE,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).bootstrap_distribution
    estimate = statistic(*(i[None] for i in ids), axis=-1)[..., 0][()]
    return Interval(estimate, *_quantiles(drawn), (~np.isnan(drawn)).mean(axis=-1))


def _spread(scores: Float[np.ndarray, " s"]) -> Spread:
    if not scores.size:
        return Spread(np.nan, np.nan, np.nan)
    return Spread(*(float(f(scores)) for f in (np.mean, np.min, np.max)))


def _count(drawn: Int[np.ndarray, "r k"], size: int) -> Float[np.ndarray, "r size"]:
    """Counts how often each of `size` indices was drawn, for each resample (row)."""
    rows = np.arange(len(drawn))[:, None] * size
    counts = np.bincount((rows + drawn).ravel(), minlength=len(drawn) * size)
    return counts.reshape(len(drawn), size).astype(np.float64)


def _scores(
    per_image: Float[np.ndarray, "n cc"], counts: Float[np.ndarray, "r n"], score: Score
) -> Float[np.ndarray, "*k r"]:
    summed = (counts @ per_image).astype(np.int64)
    side = round(summed.shape[1] ** 0.5)
    scores = np.asarray(score(summed.reshape(-1, side, side)))
    return np.moveaxis(scores, 0, -1)


def _weighted_mean(
    values: Float[np.ndarray, "*k r s"], weights: Float[np.ndarray, "r s"]
) -> Float[np.ndarray, "*k r"]:
    """Weighted mean over the last axis, without NaN; NaN if all weights are then 0."""
    known = weights * ~np.isnan(values)
    total = (known * np.nan_to_num(values)).sum(axis=-1)
    size = known.sum(axis=-1)
    return np.divide(total, size, out=np.full_like(total, np.nan), where=size > 0)


def _quantiles(drawn: Float[np.ndarray, "*k r"]) -> Any:
    ends = (1 - _CONFIDENCE) / 2 * 100, (1 + _CONFIDENCE) / 2 * 100
    with warnings.catch_warnings():
        # A row without any value is NaN, as it should be.
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanpercentile(drawn, ends, axis=-1)

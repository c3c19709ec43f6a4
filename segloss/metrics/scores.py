"""Scores on the host, from one confusion matrix of a whole split, or from several.

Rows are labels, columns are predictions. 0/0 is NaN, and means over classes leave NaN
out. The matrix is int64, because a split can pass 2**31 pixels. Where a score takes
`[*b, c, c]`, it gives `[*b]` or `[*b, c]`, each as on its own.
"""

import math
from typing import Any

import numpy as np
from jaxtyping import Float, Integer

Confusion = Integer[np.ndarray, "c c"]
Confusions = Integer[np.ndarray, "*b c c"]
PerClass = Float[np.ndarray, "*b c"]
Score = float | Float[np.ndarray, "*b"]


def iou_per_class(confusion: Confusions) -> PerClass:
    """TP / (TP + FP + FN), NaN where a class is neither labelled nor predicted."""
    hits, labelled, predicted = _counts(confusion)
    return _divide(hits, labelled + predicted - hits)


def dice_per_class(confusion: Confusions) -> PerClass:
    """2 TP / (2 TP + FP + FN), NaN where a class is neither labelled nor predicted."""
    hits, labelled, predicted = _counts(confusion)
    return _divide(2 * hits, labelled + predicted)


def precision_per_class(confusion: Confusions) -> PerClass:
    """TP / (TP + FP), NaN where a class is never predicted."""
    hits, _, predicted = _counts(confusion)
    return _divide(hits, predicted)


def recall_per_class(confusion: Confusions) -> PerClass:
    """TP / (TP + FN), the accuracy of a class; NaN where it is never labelled."""
    hits, labelled, _ = _counts(confusion)
    return _divide(hits, labelled)


def f1_per_class(confusion: Confusions) -> PerClass:
    """Harmonic mean of precision and recall, which is Dice by its other name."""
    return dice_per_class(confusion)


def mean_iou(confusion: Confusions) -> Score:
    """Mean IoU of the classes that are labelled or predicted."""
    return _mean(iou_per_class(confusion))


def mean_accuracy(confusion: Confusions) -> Score:
    """Mean recall of the classes that are labelled."""
    return _mean(recall_per_class(confusion))


def frequency_weighted_iou(confusion: Confusions) -> Score:
    """Mean IoU weighted by each class's share of the labelled pixels."""
    _, labelled, _ = _counts(confusion)
    # A class that is not labelled weighs nothing, though its IoU may be NaN.
    iou = np.where(labelled > 0, iou_per_class(confusion), 0)
    return _score((labelled * iou).sum(axis=-1), labelled.sum(axis=-1))


def pixel_accuracy(confusion: Confusions) -> Score:
    """Share of the pixels whose predicted class is the label."""
    hits, labelled, _ = _counts(confusion)
    return _score(hits.sum(axis=-1), labelled.sum(axis=-1))


def cohen_kappa(confusion: Confusion) -> float:
    """Agreement beyond chance: (p_o - p_e) / (1 - p_e), Cohen 1960.

    p_o is the pixel accuracy, p_e what independent draws from the two margins reach.
    NaN where p_e is 1, one class being all that is labelled and predicted.
    """
    hits, total, labelled, predicted = _exact_counts(confusion)
    chance = sum(g * p for g, p in zip(labelled, predicted, strict=True))
    return _ratio(hits * total - chance, total**2 - chance)


def matthews_corrcoef(confusion: Confusion) -> float:
    """Correlation of labels and predictions, R_K of Gorodkin 2004 for many classes.

    NaN where the labels, or the predictions, are all of one class.
    """
    hits, total, labelled, predicted = _exact_counts(confusion)
    covariance = hits * total - sum(
        g * p for g, p in zip(labelled, predicted, strict=True)
    )
    spread_labelled = total**2 - sum(g * g for g in labelled)
    spread_predicted = total**2 - sum(p * p for p in predicted)
    return _ratio(covariance, math.sqrt(spread_labelled * spread_predicted))


def summary(confusion: Confusion) -> dict[str, float]:
    """The scores of a whole split by name."""
    return {
        "mean_iou": mean_iou(confusion),
        "frequency_weighted_iou": frequency_weighted_iou(confusion),
        "mean_accuracy": mean_accuracy(confusion),
        "pixel_accuracy": pixel_accuracy(confusion),
        "mean_f1": _mean(f1_per_class(confusion)),
        "cohen_kappa": cohen_kappa(confusion),
        "matthews_corrcoef": matthews_corrcoef(confusion),
    }


def _counts(confusion: Confusions) -> tuple[PerClass, PerClass, PerClass]:
    """True positives, labelled and predicted pixels of each class."""
    confusion = confusion.astype(np.float64)
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    return hits, confusion.sum(axis=-1), confusion.sum(axis=-2)


def _exact_counts(confusion: Confusion) -> tuple[int, int, list[int], list[int]]:
    """Hits, all pixels, labelled and predicted pixels of each class, as Python ints.

    Their products pass int64, and float64 would lose the difference of two of them.
    """
    labelled, predicted = confusion.sum(axis=1).tolist(), confusion.sum(axis=0).tolist()
    return int(np.trace(confusion)), sum(labelled), labelled, predicted


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    nan = np.full_like(numerator, np.nan, dtype=np.float64)
    return np.divide(numerator, denominator, out=nan, where=denominator > 0)


def _ratio(numerator: float | int, denominator: float | int) -> float:
    return float(numerator / denominator) if denominator > 0 else math.nan


def _score(numerator: Any, denominator: Any) -> Score:
    ratio = _divide(np.asarray(numerator), np.asarray(denominator))
    return ratio if ratio.ndim else float(ratio)


def _mean(scores: PerClass) -> Score:
    known = ~np.isnan(scores)
    total = np.where(known, scores, 0).sum(axis=-1)
    return _score(total, known.sum(axis=-1))

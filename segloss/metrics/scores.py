"""Scores computed on the host from confusion matrices.

Rows are labels, columns are predictions. A matrix is `[c, c]`, or `[c, c + 1]` if the
last column counts predictions that are no class, as that of `confusion_matrix` does:
they are errors of the labelled class, and false positives of none. 0/0 is NaN, and
means over classes skip NaN. Add up the matrix of a data set in int64, because it can
exceed 2**31 pixels. A score that accepts `[*b, c, c]` treats each matrix independently
and returns `[*b]` or `[*b, c]`.

All scores raise a ValueError for a matrix of another shape, and if a count is negative:
`confusion_matrix` makes them negative for valid labels that are no class.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Integer

from segloss.errors import SeglossError
from segloss.metrics.pixels import check_counts

# With c or c + 1 columns.
Confusion = Integer[np.ndarray, "c columns"]
Confusions = Integer[np.ndarray, "*b c columns"]
PerClass = Float[np.ndarray, "*b c"]
Score = float | Float[np.ndarray, "*b"]


def iou_per_class(confusion: Confusions) -> PerClass:
    """IoU of each class: TP / (TP + FP + FN).

    NaN for a class that is neither labelled nor predicted.

    >>> import numpy as np
    >>> confusion = np.array([[1, 1, 0], [0, 4, 0], [0, 0, 0]])
    >>> iou_per_class(confusion).round(4).tolist()  # 1/2, 4/5
    [0.5, 0.8, nan]
    """
    hits, labelled, predicted = _counts("iou_per_class", confusion)
    return _divide(hits, labelled + predicted - hits)


def dice_per_class(confusion: Confusions) -> PerClass:
    """Dice score of each class: 2 TP / (2 TP + FP + FN).

    NaN for a class that is neither labelled nor predicted.

    >>> import numpy as np
    >>> confusion = np.array([[1, 1, 0], [0, 4, 0], [0, 0, 0]])
    >>> dice_per_class(confusion).round(4).tolist()  # 2/3, 8/9
    [0.6667, 0.8889, nan]
    """
    hits, labelled, predicted = _counts("dice_per_class", confusion)
    return _divide(2 * hits, labelled + predicted)


def precision_per_class(confusion: Confusions) -> PerClass:
    """Precision of each class: TP / (TP + FP), NaN for a class never predicted.

    Rows of `confusion` are labels, columns predictions.

    >>> import numpy as np
    >>> confusion = np.array([[1, 1, 0], [0, 4, 0], [0, 0, 0]])
    >>> precision_per_class(confusion).round(4).tolist()  # 1/1, 4/5
    [1.0, 0.8, nan]
    """
    hits, _, predicted = _counts("precision_per_class", confusion)
    return _divide(hits, predicted)


def recall_per_class(confusion: Confusions) -> PerClass:
    """Recall of each class: TP / (TP + FN), NaN for a class never labelled.

    Also called the accuracy of the class. Rows of `confusion` are labels, columns
    predictions.

    >>> import numpy as np
    >>> confusion = np.array([[1, 1, 0], [0, 4, 0], [0, 0, 0]])
    >>> recall_per_class(confusion).round(4).tolist()  # 1/2, 4/4
    [0.5, 1.0, nan]
    """
    hits, labelled, _ = _counts("recall_per_class", confusion)
    return _divide(hits, labelled)


def f1_per_class(confusion: Confusions) -> PerClass:
    """F1 score of each class: harmonic mean of precision and recall, equal to Dice.

    NaN for a class that is neither labelled nor predicted.

    >>> import numpy as np
    >>> confusion = np.array([[1, 1, 0], [0, 4, 0], [0, 0, 0]])
    >>> f1_per_class(confusion).round(4).tolist()  # 2/3, 8/9
    [0.6667, 0.8889, nan]
    """
    return dice_per_class(confusion)


def mean_iou(confusion: Confusions, *, ignore_classes: Sequence[int] = ()) -> Score:
    """Mean IoU over the classes that are labelled or predicted.

    The IoU of `ignore_classes`, such as the background, is left out of the mean. Their
    pixels still count as errors of the other classes.

    >>> import numpy as np
    >>> confusion = np.array([[1, 1], [0, 4]])
    >>> round(mean_iou(confusion), 4)  # (1/2 + 4/5) / 2
    0.65
    >>> mean_iou(confusion, ignore_classes=[0])
    0.8
    """
    iou = iou_per_class(confusion)
    if not all(0 <= c < iou.shape[-1] for c in ignore_classes):
        raise SeglossError(
            f"mean_iou: ignore_classes must be class ids in [0, {iou.shape[-1]}), got "
            f"{tuple(ignore_classes)}."
        )
    return _mean(np.delete(iou, np.array(ignore_classes, int), axis=-1))


def mean_accuracy(confusion: Confusions) -> Score:
    """Mean recall over the classes that are labelled.

    Rows of `confusion` are labels, columns predictions.

    >>> import numpy as np
    >>> confusion = np.array([[1, 1], [0, 4]])
    >>> round(mean_accuracy(confusion), 4)  # (1/2 + 4/4) / 2
    0.75
    """
    return _mean(recall_per_class(confusion))


def frequency_weighted_iou(confusion: Confusions) -> Score:
    """Mean IoU, weighted by the fraction of pixels labelled with each class.

    Rows of `confusion` are labels, columns predictions.

    >>> import numpy as np
    >>> confusion = np.array([[1, 1], [0, 4]])
    >>> round(frequency_weighted_iou(confusion), 4)  # 2/6 * 1/2 + 4/6 * 4/5
    0.7
    """
    _, labelled, _ = _counts("frequency_weighted_iou", confusion)
    # A class without labels has weight 0, but its IoU may be NaN.
    iou = np.where(labelled > 0, iou_per_class(confusion), 0)
    return _score((labelled * iou).sum(axis=-1), labelled.sum(axis=-1))


def pixel_accuracy(confusion: Confusions) -> Score:
    """Fraction of correctly classified pixels, the diagonal of `confusion`.

    >>> import numpy as np
    >>> confusion = np.array([[1, 1], [0, 4]])
    >>> round(pixel_accuracy(confusion), 4)  # 5/6
    0.8333
    """
    hits, labelled, _ = _counts("pixel_accuracy", confusion)
    return _score(hits.sum(axis=-1), labelled.sum(axis=-1))


def cohen_kappa(confusion: Confusion) -> float:
    """Cohen's kappa, agreement beyond chance: (p_o - p_e) / (1 - p_e), Cohen 1960.

    p_o is the pixel accuracy and p_e the accuracy expected if labels and predictions
    were drawn independently with their class frequencies. NaN if p_e is 1: all pixels
    are labelled and predicted as one class.

    >>> import numpy as np
    >>> confusion = np.array([[1, 1], [0, 4]])
    >>> round(cohen_kappa(confusion), 4)  # (5/6 - 22/36) / (1 - 22/36) = 4/7
    0.5714
    """
    hits, total, labelled, predicted = _exact_counts("cohen_kappa", confusion)
    chance = sum(g * p for g, p in zip(labelled, predicted, strict=True))
    return _ratio(hits * total - chance, total**2 - chance)


def matthews_corrcoef(confusion: Confusion) -> float:
    """Matthews correlation coefficient of labels and predictions.

    For more than two classes it is R_K of Gorodkin 2004. NaN if the labels, or the
    predictions, are all of one class.

    >>> import numpy as np
    >>> confusion = np.array([[1, 1], [0, 4]])
    >>> round(matthews_corrcoef(confusion), 4)  # 8 / sqrt(16 * 10)
    0.6325
    """
    hits, total, labelled, predicted = _exact_counts("matthews_corrcoef", confusion)
    covariance = hits * total - sum(
        g * p for g, p in zip(labelled, predicted, strict=True)
    )
    spread_labelled = total**2 - sum(g * g for g in labelled)
    spread_predicted = total**2 - sum(p * p for p in predicted)
    return _ratio(covariance, math.sqrt(spread_labelled * spread_predicted))


def summary(
    confusion: Confusion, *, ignore_classes: Sequence[int] = ()
) -> dict[str, float]:
    """Returns scores over all classes by name.

    The names are "mean_iou", "frequency_weighted_iou", "mean_accuracy",
    "pixel_accuracy", "mean_f1", "cohen_kappa" and "matthews_corrcoef". Rows of
    `confusion` are labels, columns predictions. If `ignore_classes` names classes by
    id, "mean_iou_without_ignored" is the mean IoU of the others.

    >>> import numpy as np
    >>> scores = summary(np.array([[1, 1], [0, 4]]))
    >>> round(scores["mean_iou"], 4), round(scores["cohen_kappa"], 4)
    (0.65, 0.5714)
    """
    scores = {
        "mean_iou": mean_iou(confusion),
        "frequency_weighted_iou": frequency_weighted_iou(confusion),
        "mean_accuracy": mean_accuracy(confusion),
        "pixel_accuracy": pixel_accuracy(confusion),
        "mean_f1": _mean(f1_per_class(confusion)),
        "cohen_kappa": cohen_kappa(confusion),
        "matthews_corrcoef": matthews_corrcoef(confusion),
    }
    if ignore_classes:
        rest = mean_iou(confusion, ignore_classes=ignore_classes)
        scores["mean_iou_without_ignored"] = rest
    return scores


def _counts(
    function: str, confusion: Confusions
) -> tuple[PerClass, PerClass, PerClass]:
    """Returns the true positives, labelled pixels and predicted pixels per class."""
    _check(function, confusion)
    confusion = confusion.astype(np.float64)
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    predicted = confusion.sum(axis=-2)[..., : confusion.shape[-2]]
    return hits, confusion.sum(axis=-1), predicted


def _exact_counts(
    function: str, confusion: Confusion
) -> tuple[int, int, list[int], list[int]]:
    """Returns correct pixels, all pixels, and labelled and predicted pixels per class.

    Predictions that are no class are a last class, which no label has. The counts are
    Python ints: products of counts can overflow int64, and float64 would lose digits
    when they are subtracted.
    """
    _check(function, confusion)
    if confusion.dtype.kind == "f" and not (confusion % 1 == 0).all():
        raise SeglossError(
            f"{function}: confusion must hold numbers of pixels, got fractions; do not "
            "normalise it."
        )
    labelled, predicted = confusion.sum(axis=1).tolist(), confusion.sum(axis=0).tolist()
    labelled += [0] * (len(predicted) - len(labelled))
    return int(np.trace(confusion)), sum(labelled), labelled, predicted


def _check(function: str, confusion: Confusions) -> None:
    """Raises ValueError for a matrix of another shape, or with negative counts."""
    rows, columns = confusion.shape[-2:] if confusion.ndim > 1 else (0, 0)
    if rows < 1 or columns not in (rows, rows + 1):
        raise SeglossError(
            f"{function}: confusion must be [c, c] or [c, c + 1], got shape "
            f"{confusion.shape}."
        )
    check_counts(function, confusion)


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

"""Compares arms: differences of scores with intervals, and verdicts in words."""

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from experiments import SCORES
from experiments.analysis.statistics import Interval, difference
from experiments.analysis.store import Run, Study, confusions
from segloss import metrics

# Scores of class 1, for datasets of two classes.
BINARY_SCORES = {
    "iou": "IoU",
    "f1": "F1",
    "precision": "precision",
    "recall": "recall",
}
# Verdicts on an interval; the words also fit studies that compare losses.
BETTER, WORSE, NO_DIFFERENCE = "better", "worse", "no difference shown"
TOO_FEW_IMAGES = "too few images"
# Number of test images that a class needs for a verdict. With fewer, resamples hardly
# differ and intervals are too narrow. In simulations of three seeds without any gain,
# the interval of a class leaves out 0 in 8 of 10 cases if one image has the class, in 4
# if two have it, in 1 if four have it, and in no fewer if eight have it, which is due
# to the few seeds. One image more than four, to be safe.
MIN_IMAGES = 5
# Arms have seen equally many images if their numbers differ by at most this share.
_EQUAL_IMAGES = 0.02


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Differences of an arm minus its baseline, each with a 95 % interval.

    Attributes:
        equal: what both arms trained on equally many of: "steps", "images".
        scores: differences of `SCORES`, by key.
        per_class: differences of IoU, by class name.
        images: number of test images that have each class, by class name.
        binary: differences of `BINARY_SCORES` of class 1; empty unless there are two
            classes.
    """

    arm: str
    baseline: str
    equal: tuple[str, ...]
    scores: dict[str, Interval]
    per_class: dict[str, Interval]
    images: dict[str, int]
    binary: dict[str, Interval]

    @property
    def name(self) -> str:
        """`ARM against BASELINE`, for headings."""
        return f"{self.arm} against {self.baseline}"

    @property
    def at(self) -> str:
        """`equal` in words, such as "equal steps and images"."""
        if self.equal:
            return f"equal {' and '.join(self.equal)}"
        return "neither equal steps nor images"

    def class_verdict(self, name: str) -> str:
        """Says what the 95 % interval of a class's difference of IoU shows.

        Returns "too few images" if some test images have the class, but fewer than
        `MIN_IMAGES`. Otherwise returns the `verdict` on the interval: "better",
        "worse", "no difference shown" or "not defined".
        """
        if 0 < self.images[name] < MIN_IMAGES:
            return TOO_FEW_IMAGES
        return verdict(self.per_class[name])

    def classes(self, word: str) -> dict[str, Interval]:
        """The classes whose `class_verdict` is `word`, with their intervals."""
        return {
            name: interval
            for name, interval in self.per_class.items()
            if self.class_verdict(name) == word
        }


def compare(study: Study, *, resamples: int = 2000) -> list[Comparison]:
    """Compares the arms that a study lists, with `resamples` bootstrap resamples."""
    return [
        _compare(*study.pairs(arm, baseline), resamples=resamples)
        for arm, baseline in study.comparisons
    ]


def verdict(interval: Interval) -> str:
    """Says on which side of 0 an interval lies, its ends rounded as they are printed.

    Returns "better" (above 0), "worse" (below 0), "no difference shown" (0 lies within
    or at an end) or "not defined" (its ends are NaN).
    """
    if math.isnan(interval.low):
        return "not defined"
    low, high = (_in_points(x) for x in (interval.low, interval.high))
    if low <= 0 <= high:
        return NO_DIFFERENCE
    return BETTER if low > 0 else WORSE


def points(interval: Interval) -> str:
    """Formats a difference with its interval, times 100: "+1.20 (+0.31 to +2.05)".

    Adds ", of N %" if the score is defined in only that share of the resamples; a dash
    stands for NaN.
    """
    if math.isnan(interval.low):
        return "\N{EN DASH}"
    estimate, low, high = (
        f"{_in_points(x):+.2f}"
        for x in (interval.estimate, interval.low, interval.high)
    )
    # Rounded down, so that 100 % is printed only if it is all of the resamples.
    share = math.floor(1000 * interval.defined) / 10
    share = "" if interval.defined == 1 else f", of {share:g} %"
    return f"{estimate} ({low} to {high}{share})"


def _in_points(share: float) -> float:
    # Adding 0 turns -0.0 into 0.0.
    return round(100 * float(share), 2) + 0.0


def headline(comparison: Comparison) -> str:
    """States the difference of mean IoU, its interval and its verdict in a sentence."""
    overall = comparison.scores["mean_iou"]
    return (
        f"{comparison.name}, {comparison.at}: mean IoU {points(overall)} points: "
        f"{verdict(overall)}."
    )


def conclusion(comparison: Comparison) -> str:
    """States a comparison in words, with the classes that are better and worse."""
    parts = [headline(comparison)]
    if comparison.binary:
        parts.append(f"{binary_conclusion(comparison)}.")
    for word in (BETTER, WORSE):
        named = [f"{name} {points(x)}" for name, x in comparison.classes(word).items()]
        if named:
            parts.append(f"{word.capitalize()}: {', '.join(named)}.")
    for word in (NO_DIFFERENCE, TOO_FEW_IMAGES):
        if quiet := len(comparison.classes(word)):
            parts.append(
                f"{word.capitalize()}: {quiet} of {len(comparison.per_class)} classes."
            )
    return " ".join(parts)


def binary_conclusion(comparison: Comparison) -> str:
    """States the difference of F1 of class 1, if there are two classes."""
    name, f1 = list(comparison.per_class)[1], comparison.binary["f1"]
    return f"F1 of {name} {points(f1)} points: {verdict(f1)}"


def images_with_class(run: Run) -> dict[str, int]:
    """Counts the images with labels of each class among those a run was scored on."""
    counts = (run.per_image.sum(axis=2) > 0).sum(axis=0)
    return dict(zip(run.class_names, map(int, counts), strict=True))


def _compare(
    treatment: Sequence[Run], baseline: Sequence[Run], *, resamples: int
) -> Comparison:
    names = treatment[0].class_names
    binary = tuple(BINARY_SCORES) if len(names) == 2 else ()
    # One bootstrap for all scores: they share the resamples.
    of_all = difference(
        confusions(treatment),
        confusions(baseline),
        functools.partial(_all_scores, binary=binary),
        resamples=resamples,
    )
    intervals = iter([of_all[i] for i in range(len(of_all.estimate))])
    return Comparison(
        arm=treatment[0].arm,
        baseline=baseline[0].arm,
        equal=_what_is_equal(treatment, baseline),
        scores={score: next(intervals) for score in SCORES},
        per_class={name: next(intervals) for name in names},
        images=images_with_class(treatment[0]),
        binary={score: next(intervals) for score in binary},
    )


def _all_scores(
    confusion: Int[np.ndarray, "*b c c"], *, binary: Sequence[str]
) -> Float[np.ndarray, "*b k"]:
    # Mean over the labelled classes only: a class that is only predicted would count,
    # as 0, in the arm that predicts it, and not in the other.
    labelled = confusion.sum(axis=-1) > 0
    per_class = np.where(labelled, metrics.iou_per_class(confusion), np.nan)
    with np.errstate(invalid="ignore"):
        mean_iou = np.nansum(per_class, axis=-1) / labelled.sum(axis=-1)
    others = [score for score in SCORES if score != "mean_iou"]
    columns = [
        mean_iou,
        *(getattr(metrics, score)(confusion) for score in others),
        *np.moveaxis(per_class, -1, 0),
        *(binary_score(confusion, score) for score in binary),
    ]
    return np.stack(columns, axis=-1)


def binary_score(
    confusion: Int[np.ndarray, "*b c c"], score: str
) -> Float[np.ndarray, "*b"]:
    """The score of class 1; `score` is a key of `BINARY_SCORES`."""
    return getattr(metrics, f"{score}_per_class")(confusion)[..., 1]


def _what_is_equal(
    treatment: Sequence[Run], baseline: Sequence[Run]
) -> tuple[str, ...]:
    steps = {run.total_steps for run in (*treatment, *baseline)}
    images = [np.mean([r.images_seen for r in runs]) for runs in (treatment, baseline)]
    is_equal = {
        "steps": len(steps) == 1,
        "images": abs(images[0] - images[1]) <= _EQUAL_IMAGES * max(images),
    }
    return tuple(name for name, equal in is_equal.items() if equal)

"""Tells whether a study reached the scores that were fixed before its first run."""

from experiments.analysis.statistics import mean_scores
from experiments.analysis.store import Study, confusions
from segloss import metrics
from segloss.errors import SeglossError


def reached_bars(study: Study) -> bool | None:
    """Returns whether each arm of `Study.bars` has its mean IoU, the mean of its seeds.

    One answer for all comparisons: if each stood and fell with the score of its own
    baseline, which it subtracts, those that count would be biased downwards. None if
    the study has no bars.

    Raises:
        ValueError: if an arm of `Study.bars` has no runs.
    """
    scores = _scores(study)
    return all(scores[arm] >= x for arm, x in study.bars.items()) if scores else None


def bars_of(study: Study) -> str:
    """States the bars, the scores and whether they count; empty if there are no bars.

    Raises:
        ValueError: if an arm of `Study.bars` has no runs.
    """
    if not study.bars:
        return ""
    arms = " and ".join(
        f"{arm} must reach a mean IoU of {100 * study.bars[arm]:g} %, and has "
        f"{100 * score:.2f} %"
        for arm, score in _scores(study).items()
    )
    return f"Fixed before the first run: {arms}. " + (
        "So the study reached its bars, and all its differences count."
        if reached_bars(study)
        else "So the study stayed below its bars, and its differences say little of "
        "networks that have learned."
    )


def _scores(study: Study) -> dict[str, float]:
    arms = study.arms
    for arm in study.bars:
        if arm not in arms:
            raise SeglossError(
                f"study {study.name}: BARS names the arm {arm!r}; the runs have "
                f"{', '.join(arms)}."
            )
    return {
        arm: float(mean_scores(confusions(arms[arm]), metrics.mean_iou).mean)
        for arm in study.bars
    }

"""Selects what studies say of Balance-batch, and stores it as a table per study."""

import csv
import dataclasses
import io
import pathlib
import typing
from collections.abc import Iterable, Sequence

import numpy as np

from experiments.analysis.bars import reached_bars
from experiments.analysis.compare import Comparison
from experiments.analysis.statistics import Interval, mean_scores
from experiments.analysis.store import Study, confusions
from experiments.analysis.tables import describe
from segloss import metrics
from segloss.errors import SeglossError

CSV_NAME = "balance_batch.csv"
# The losses of the paper, in words; each is a group, and all others are one.
PAPERS = {
    "cross-entropy": "cross-entropy",
    "soft dice": "soft Dice",
    "soft iou": "soft IoU",
}
OTHERS = "other losses"
# The values of `Comparison.at`, in the order in which they are shown.
KINDS = (
    "equal steps",
    "equal images",
    "equal steps and images",
    "neither equal steps nor images",
)
_RANDOM = ("random", "matched_random")


@dataclasses.dataclass(frozen=True)
class Evidence:
    """A comparison of Balance-batch with random batches, both with the same loss.

    Attributes:
        data: fingerprint of the dataset with all its splits.
        loss: the loss in words; see `describe`.
        kind: what both arms trained on equally many of, one of `KINDS`.
        seeds: number of seeds that both arms have, from which the difference is.
        gini: Gini coefficient of the classes' shares of the scored pixels.
        rarest_images: share of the scored images that hold the class that fewest hold.
        baseline_mean_iou: mean over all seeds of the baseline, in percent.
        reached: whether the study reached its bars, the scores that its arms of random
            batches must have (`Study.bars`); None if none were fixed.
        difference: difference of mean IoU in points.
        low: lower end of its 95 % interval.
        high: upper end of its 95 % interval.
    """

    study: str
    data: str
    arm: str
    baseline: str
    loss: str
    kind: str
    seeds: int
    gini: float
    rarest_images: float
    baseline_mean_iou: float
    reached: bool | None
    difference: float
    low: float
    high: float

    @property
    def interval(self) -> Interval:
        """The difference as a share, such as `verdict` and `points` take it."""
        return Interval(self.difference / 100, self.low / 100, self.high / 100, 1.0)

    @property
    def bars(self) -> str:
        """`reached` in a word."""
        return {True: "reached", False: "below", None: "none"}[self.reached]

    @property
    def group(self) -> str:
        """The loss if it is one of the paper's, otherwise "other losses"."""
        return PAPERS.get(self.loss, OTHERS)


def gini(shares: Sequence[float]) -> float:
    """Gini coefficient of the shares of n classes: from 0 (equal) to 1 - 1 / n.

    Yang et al. 2022 (arXiv:2205.13775) suggest it as the measure of how long-tailed a
    dataset is. Classes with a share of 0 are left out, as the mean IoU leaves them out.

    >>> gini([0.25, 0.25, 0.5, 0.0])
    0.16666666666666666
    """
    x = np.sort(np.asarray(shares, np.float64))
    x = x[x > 0]
    ranks = np.arange(1, len(x) + 1)
    return float(((2 * ranks - len(x) - 1) * x).sum() / (len(x) * x.sum()))


def select_evidence(study: Study, comparisons: Iterable[Comparison]) -> list[Evidence]:
    """Selects the comparisons of Balance-batch with random batches of the same loss."""
    arms, reached, found = study.arms, reached_bars(study), []
    for comparison in comparisons:
        baseline = arms[comparison.baseline]
        ours, theirs = arms[comparison.arm][0], baseline[0]
        if (
            ours.sampler["name"] != "balance_batch"
            or theirs.sampler["name"] not in _RANDOM
            or ours.loss != theirs.loss
        ):
            continue
        overall = comparison.scores["mean_iou"]
        losses = [ours.loss] if isinstance(ours.loss, dict) else ours.loss
        images = [n for n in comparison.images.values() if n]
        mean_iou = mean_scores(confusions(baseline), metrics.mean_iou).mean
        pairs, _ = study.pairs(comparison.arm, comparison.baseline)
        found.append(
            Evidence(
                study=study.name,
                data=theirs.data,
                arm=comparison.arm,
                baseline=comparison.baseline,
                loss=" + ".join(map(describe, losses)),
                kind=comparison.at,
                seeds=len(pairs),
                gini=gini(theirs.pixel_share),
                rarest_images=min(images) / len(theirs.per_image),
                baseline_mean_iou=100 * mean_iou,
                reached=reached,
                difference=100 * float(overall.estimate),
                low=100 * float(overall.low),
                high=100 * float(overall.high),
            )
        )
    return found


def to_csv(found: Iterable[Evidence]) -> str:
    """Returns a header and a line per comparison, numbers with six decimals.

    With fewer, a number would now and then be rounded otherwise than in the README.
    """
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow([field.name for field in dataclasses.fields(Evidence)])
    for one in found:
        writer.writerow(
            f"{value:.6f}" if isinstance(value, float) else value
            for value in dataclasses.astuple(one)
        )
    return lines.getvalue()


def read_evidence(experiments: str | pathlib.Path) -> list[Evidence]:
    """Reads `balance_batch.csv` of each study, in the order of their names.

    Args:
        experiments: the folder of all studies.

    Raises:
        ValueError: if a file has other columns or holds a value of another type.
    """
    names = [field.name for field in dataclasses.fields(Evidence)]
    types = typing.get_type_hints(Evidence)
    found = []
    for path in sorted(pathlib.Path(experiments).glob(f"*/{CSV_NAME}")):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                try:
                    values = {n: _parse(types[n], row[n]) for n in names}
                except (KeyError, TypeError, ValueError) as error:
                    raise SeglossError(
                        f"{path}: {error!r}; python -m experiments.collect "
                        f"{path.parent.name} writes it anew."
                    ) from None
                found.append(Evidence(**values))
    return found


def _parse(kind: typing.Any, text: str) -> typing.Any:
    if kind == bool | None:
        return {"True": True, "False": False, "": None}[text]
    return kind(text)

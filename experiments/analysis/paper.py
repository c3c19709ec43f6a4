"""Reads the numbers that the paper reports, for comparison with ours."""

import csv
import dataclasses
import pathlib
from collections.abc import Sequence

from experiments import SCORES
from experiments.analysis.store import Run, Study
from segloss.errors import SeglossError

PAPER_CSV = pathlib.Path(__file__).parents[1] / "paper.csv"
_LOSSES = {
    "ce": "softmax_cross_entropy",
    "soft_iou": "soft_iou",
    "soft_dice": "soft_dice",
}


@dataclasses.dataclass(frozen=True)
class Reported:
    """One number of the paper, from a line of `paper.csv`.

    Attributes:
        loss: name of the loss in `segloss.losses`.
        sampler: "random" or "balance_batch".
        batch_max: most images in a batch.
        batch_cl: fewest classes in a batch; None for random batches.
        metric: key of `SCORES`.
        value: the score in percent.
    """

    figure: str
    page: str
    loss: str
    sampler: str
    batch_max: int
    batch_cl: int | None
    metric: str
    value: float


def read_reported(
    losses: str | Sequence[str] | None, path: str | pathlib.Path = PAPER_CSV
) -> list[Reported]:
    """Reads the lines of `paper.csv` with a loss: "ce", "soft_iou" or "soft_dice".

    `losses` names one or several of them; None gives an empty list.

    Raises:
        ValueError: if a line has an unknown loss or metric.
    """
    if losses is None:
        return []
    losses = [losses] if isinstance(losses, str) else losses
    with pathlib.Path(path).open(newline="") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows, start=2):
        for field, known in (("loss", _LOSSES), ("metric", SCORES)):
            if row[field] not in known:
                raise SeglossError(
                    f"{path}, line {number}: {field} must be one of "
                    f"{', '.join(known)}, got {row[field]!r}."
                )
    typed = {
        "loss": _LOSSES.get,
        "batch_max": int,
        "batch_cl": lambda text: int(text) if text else None,
        "value": float,
    }
    return [
        Reported(**{name: typed.get(name, str)(text) for name, text in row.items()})
        for row in rows
        if row["loss"] in losses
    ]


def arm_like(study: Study, reported: Reported) -> tuple[Run, ...]:
    """Returns the runs of the arm with the loss, sampler and batches of `reported`.

    Of several such arms, it is the one with the fewest steps, because the paper
    compares at equal steps. Empty if there is none.
    """

    def is_like(run: Run) -> bool:
        loss = run.loss["name"] if isinstance(run.loss, dict) else None
        ours = [run.sampler.get(name) for name in ("name", "batch_max", "batch_cl")]
        theirs = [reported.sampler, reported.batch_max, reported.batch_cl]
        return [loss, *ours] == [reported.loss, *theirs]

    like = [runs for runs in study.arms.values() if is_like(runs[0])]
    return min(like, key=lambda runs: runs[0].total_steps, default=())

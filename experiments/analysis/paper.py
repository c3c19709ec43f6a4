"""The numbers that the paper reports, for comparison with ours."""

import csv
import dataclasses
import pathlib

from experiments import SCORES
from experiments.analysis.store import Run, Study

PAPER_CSV = pathlib.Path(__file__).parents[1] / "paper.csv"
_LOSSES = {
    "ce": "softmax_cross_entropy",
    "soft_iou": "soft_iou",
    "soft_dice": "soft_dice",
}


@dataclasses.dataclass(frozen=True)
class Reported:
    """One number of the paper, as a line of `paper.csv` has it."""

    figure: str
    page: str
    loss: str  # as segloss names it
    sampler: str  # "random" or "balance_batch"
    batch_max: int
    batch_cl: int | None
    metric: str  # one of `SCORES`
    value: float  # in percent


def read_reported(
    loss: str | None, path: str | pathlib.Path = PAPER_CSV
) -> list[Reported]:
    """What the paper reports of "ce", "soft_iou" or "soft_dice"; None is nothing.

    Raises:
        ValueError: if a row has another loss or another metric.
    """
    if loss is None:
        return []
    with pathlib.Path(path).open(newline="") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows, start=2):
        for field, known in (("loss", _LOSSES), ("metric", SCORES)):
            if row[field] not in known:
                raise ValueError(
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
        if row["loss"] == loss
    ]


def arm_like(study: Study, reported: Reported) -> tuple[Run, ...]:
    """Our runs with that loss and those batches.

    Of several arms, the one with the fewest steps: arms with more steps see as many
    images as another arm, and those of the paper do not.
    """

    def is_like(run: Run) -> bool:
        loss = run.loss["name"] if isinstance(run.loss, dict) else None
        ours = [run.sampler.get(name) for name in ("name", "batch_max", "batch_cl")]
        theirs = [reported.sampler, reported.batch_max, reported.batch_cl]
        return [loss, *ours] == [reported.loss, *theirs]

    like = [runs for runs in study.arms.values() if is_like(runs[0])]
    return min(like, key=lambda runs: runs[0].total_steps, default=())

"""The numbers that the paper reports, to stand beside ours."""

import csv
import dataclasses
import pathlib

from experiments.analysis.compare import SCORES
from experiments.analysis.store import Run, Study

PAPER_CSV = pathlib.Path(__file__).parents[1] / "paper.csv"
_LOSSES = {
    "ce": "softmax_cross_entropy",
    "soft_iou": "soft_iou",
    "soft_dice": "soft_dice",
}


@dataclasses.dataclass(frozen=True)
class Reported:
    """One number of the paper.

    Attributes:
        figure: that shows it, as the paper numbers them.
        page: where.
        loss: as segloss names it.
        sampler: "random" or "balance_batch".
        batch_max: samples of a batch at most.
        batch_cl: distinct classes wanted; None for random batches.
        metric: one of `SCORES`.
        value: in percent.
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
    loss: str | None, path: str | pathlib.Path = PAPER_CSV
) -> list[Reported]:
    """What the paper reports of "ce", "soft_iou" or "soft_dice"; None is nothing.

    Raises:
        ValueError: if a row has another loss or another metric.
    """
    path = pathlib.Path(path)
    if loss is None:
        return []
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows, start=2):
        for field, known in (("loss", _LOSSES), ("metric", SCORES)):
            if row[field] not in known:
                raise ValueError(
                    f"{path}, line {number}: {field} must be one of "
                    f"{', '.join(known)}, got {row[field]!r}."
                )
    return [
        Reported(
            figure=row["figure"],
            page=row["page"],
            loss=_LOSSES[row["loss"]],
            sampler=row["sampler"],
            batch_max=int(row["batch_max"]),
            batch_cl=int(row["batch_cl"]) if row["batch_cl"] else None,
            metric=row["metric"],
            value=float(row["value"]),
        )
        for row in rows
        if row["loss"] == loss
    ]


def arm_like(study: Study, reported: Reported) -> tuple[Run, ...]:
    """Our runs of that loss and those batches; of several arms the one of fewest steps.

    Those of more steps see as many images as another arm, which the paper's do not.
    """
    wanted = (
        reported.loss,
        reported.sampler,
        reported.batch_max,
        reported.batch_cl,
    )
    like = [runs for runs in study.arms.values() if _batches_of(runs[0]) == wanted]
    return min(like, key=lambda runs: runs[0].total_steps, default=())


def _batches_of(run: Run) -> tuple[str | None, str, int | None, int | None]:
    loss = run.loss["name"] if isinstance(run.loss, dict) else None
    sampler = run.sampler
    return loss, sampler["name"], sampler.get("batch_max"), sampler.get("batch_cl")

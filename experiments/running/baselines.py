"""Holds a sweep back until its baselines have learned."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence

from experiments.analysis.run_folder import Run
from experiments.running.board import DONE, Row


@dataclasses.dataclass(frozen=True)
class Baselines:
    """Arms that must reach a mean IoU before any other arm is trained.

    Differences from a network that has not learned say little. So a study fixes scores
    for its baselines, which are trained first: a few runs tell whether all others are
    worth their hours.

    Attributes:
        bars: the mean IoU, from 0 to 1, that the seeds of an arm must have on average,
            by the name of the arm.
        stored: runs that are not on the board, since their results are stored.
    """

    bars: Mapping[str, float] = dataclasses.field(default_factory=dict)
    stored: Sequence[Run] = ()

    def hold_back(self, rows: Sequence[Row]) -> bool:
        """Whether other arms must wait, or cannot be trained at all."""
        unfinished = any(r.state != DONE for r in rows if r.run.arm in self.bars)
        return unfinished or bool(self.missed(rows))

    def missed(self, rows: Sequence[Row]) -> str:
        """Says which arms are below their bars, once all their runs are done.

        Without any of them: the empty text.
        """
        found = []
        for arm, bar in self.bars.items():
            own = [row for row in rows if row.run.arm == arm]
            if any(row.state != DONE for row in own):
                continue
            done = [run.summary for run in self.stored if run.arm == arm]
            done += [row.summary for row in own]
            # It is None where no class has a score.
            scores = [x for one in done if (x := one["mean_iou"]) is not None]
            reached = statistics.fmean(scores) if scores else 0.0
            if reached < bar:
                found.append(
                    f"{arm} must reach a mean IoU of {bar:g}, got {reached:.4f}"
                )
        return "; ".join(found)

"""Early stopping: ends a run whose score no longer rises."""

import dataclasses
import math


@dataclasses.dataclass
class Patience:
    """Counts the evaluations since the best one.

    Attributes:
        limit: number of evaluations in a row without a higher score after which the run
            ends; None means never.
        best: the highest score so far; None if there is none.
        best_step: step of the best score; None if there is none.
        waited: number of evaluations since the best one.
    """

    limit: int | None
    best: float | None = None
    best_step: int | None = None
    waited: int = 0

    def add(self, step: int, score: float | None) -> None:
        """Counts an evaluation; a score that is NaN or None is no gain."""
        known = score is not None and not math.isnan(score)
        if known and (self.best is None or score > self.best):
            self.best, self.best_step, self.waited = score, step, 0
        else:
            self.waited += 1

    @property
    def is_exhausted(self) -> bool:
        """Whether the run should end."""
        return self.limit is not None and self.waited >= self.limit

    def describe(self, name: str) -> str:
        """Says why the run ends; `name` is that of the score."""
        best = (
            "it is undefined"
            if self.best is None
            else f"its best is {self.best:.4f} at step {self.best_step}"
        )
        return (
            f"{name} has not risen in {self.waited} evaluations (evaluate.patience="
            f"{self.limit}); {best}"
        )

"""Checkpoints by orbax: the newest, and the best by mean IoU."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from segloss.train.step import TrainState
from segloss.writing import write_json

_NOT_SCORED = -1.0


def check_which(which: str) -> None:
    """Raises ValueError unless `which` names a kept checkpoint: "newest" or "best"."""
    if which not in ("newest", "best"):
        raise ValueError(f"checkpoint must be 'newest' or 'best', got {which!r}.")


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint read back; `meta` is what was saved beside the state."""

    state: TrainState
    step: int
    meta: dict[str, Any]


class Checkpoints:
    """Directory of checkpoints `STEP/`, written in the background.

    Args:
        directory: made where it is missing, unless `read_only`.
        read_only: only restores; the directory must exist.

    Raises:
        FileNotFoundError: if `read_only` and there is no checkpoint.
    """

    def __init__(self, directory: Path, *, read_only: bool = False):
        if read_only and not directory.is_dir():
            raise FileNotFoundError(
                f"no checkpoint lies in {directory}; train with this --workdir first."
            )
        self.directory = directory
        policy = AnyPreservationPolicy(
            [
                LatestN(n=1),
                BestN(get_metric_fn=lambda metrics: metrics["mean_iou"], n=1),
            ]
        )
        self._manager = ocp.CheckpointManager(
            directory.absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policy,
                best_fn=lambda metrics: metrics["mean_iou"],
                # Not orbax's own `read_only`, which warns on every terminal.
                create=not read_only,
                cleanup_tmp_directories=not read_only,
            ),
        )

    def save(
        self, state: TrainState, *, mean_iou: float | None, meta: dict[str, Any]
    ) -> None:
        """Starts to write the state as checkpoint `state.step`.

        A checkpoint that exists already is not written again, but takes the new score.

        Args:
            state: one device's copy, on the host.
            mean_iou: score of this state; None where it was not evaluated.
            meta: what can be written as JSON.
        """
        step = int(state.step)
        exists = step in self._manager.all_steps()
        if exists and mean_iou is None:
            return
        # What was not evaluated, or has no class to score, ranks below all that was.
        if mean_iou is None or math.isnan(mean_iou):
            mean_iou = _NOT_SCORED
        if exists:
            self._replace_score(step, mean_iou)
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                meta=ocp.args.JsonSave(meta),
            ),
            metrics={"mean_iou": mean_iou},
        )

    def _replace_score(self, step: int, mean_iou: float) -> None:
        # Orbax cannot change a checkpoint, and deleting it first could lose it. It
        # stores the metrics as a file of JSON, which is replaced atomically.
        self._manager.wait_until_finished()
        write_json(
            self.directory / str(step) / "metrics" / "metrics", {"mean_iou": mean_iou}
        )
        self._manager.reload()

    def restore(self, like: TrainState, *, which: str = "newest") -> Restored | None:
        """Reads a checkpoint; None if there is none.

        Args:
            like: a state of the same structure, of which only the shapes are read.
            which: "newest" or "best".

        Raises:
            ValueError: if `which` is neither, or the checkpoint is of another model.
        """
        step = self._find(which)
        if step is None:
            return None
        like = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
        template = ocp.args.StandardRestore(like)
        misfit = (
            f"checkpoint {self.directory / str(step)} does not fit this model and "
            "optimizer; use the config it was trained with."
        )
        try:
            parts = self._manager.restore(step, args=ocp.args.Composite(state=template))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(misfit) from error
        # Orbax takes a tree of the same names whatever the shapes.
        if jax.tree.map(np.shape, parts.state) != jax.tree.map(np.shape, like):
            raise ValueError(misfit)
        return Restored(state=parts.state, step=step, meta=self.read_meta(which))

    def read_meta(self, which: str = "newest") -> dict[str, Any]:
        """What was saved beside the state.

        Raises:
            FileNotFoundError: if there is no checkpoint.
        """
        step = self._find(which)
        if step is None:
            raise FileNotFoundError(f"no checkpoint lies in {self.directory}.")
        args = ocp.args.Composite(meta=ocp.args.JsonRestore())
        return self._manager.restore(step, args=args).meta

    def _find(self, which: str) -> int | None:
        check_which(which)
        newest = self._manager.latest_step()
        return newest if which == "newest" else self._manager.best_step() or newest

    @property
    def newest_step(self) -> int | None:
        """Step of the newest checkpoint; None if there is none."""
        return self._manager.latest_step()

    def close(self) -> None:
        """Waits for what is being written."""
        self._manager.close()

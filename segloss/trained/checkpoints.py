"""Saves and restores checkpoints by orbax: the newest, and the best by mean IoU."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from segloss.errors import MissingFileError, SeglossError
from segloss.writing import write_json

_NOT_SCORED = -1.0


@dataclasses.dataclass(frozen=True)
class Restored:
    """A restored checkpoint; `meta` holds the values saved with the state."""

    state: Any
    step: int
    meta: dict[str, Any]


class Checkpoints:
    """A directory of checkpoints `STEP/`, which are written in the background.

    Keeps the newest checkpoint and the one with the highest mean IoU.

    Args:
        directory: created if missing, unless `read_only`.
        read_only: True only restores, and the directory must exist; False also saves.

    Raises:
        FileNotFoundError: if `read_only` and the directory does not exist.
    """

    def __init__(self, directory: Path, *, read_only: bool = False):
        if read_only and not directory.is_dir():
            raise MissingFileError(
                f"{directory} has no checkpoint; train with this --workdir first."
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
                # Orbax's own `read_only` would print a warning every time.
                create=not read_only,
                cleanup_tmp_directories=not read_only,
            ),
        )

    def save(self, state: Any, *, mean_iou: float | None, meta: dict[str, Any]) -> None:
        """Starts writing the state as the checkpoint of step `state.step`.

        If that checkpoint exists, this only replaces its score by `mean_iou`, unless
        that is None.

        Args:
            state: a `TrainState` on the host, without a device axis.
            mean_iou: score of this state; None if it was not evaluated.
            meta: values that can be written as JSON.
        """
        step = int(state.step)
        exists = step in self._manager.all_steps()
        if exists and mean_iou is None:
            return
        # A state without a score, or with a mean over no classes, ranks last.
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
        # Orbax cannot change a checkpoint, and deleting it first could lose it. But
        # it stores the metrics in a JSON file, which can be replaced atomically.
        self._manager.wait_until_finished()
        write_json(
            self.directory / str(step) / "metrics" / "metrics", {"mean_iou": mean_iou}
        )
        self._manager.reload()

    def restore(self, like: Any, *, which: str = "newest") -> Restored | None:
        """Reads a checkpoint; returns None if there is none.

        Args:
            like: a tree with the structure and shapes of the state. A dict with some of
                the fields of the state restores only these.
            which: "newest" or "best" (the highest mean IoU).

        Raises:
            ValueError: if the structure or a shape of the restored part differs from
                that of `like`.
        """
        step = self._find(which)
        if step is None:
            return None
        like = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
        template = ocp.args.StandardRestore(like)
        if isinstance(like, dict):
            arrays = jax.tree.map(lambda _: ocp.RestoreArgs(np.ndarray), like)
            template = ocp.args.PyTreeRestore(
                like, restore_args=arrays, partial_restore=True
            )
        misfit = (
            f"checkpoint {self.directory / str(step)} does not fit this model and "
            "optimizer; use the config it was trained with."
        )
        try:
            parts = self._manager.restore(step, args=ocp.args.Composite(state=template))
        except (KeyError, TypeError, ValueError) as error:
            raise SeglossError(misfit) from error
        # Orbax compares the names in the tree, but not the shapes. Where only some
        # fields are restored, it leaves out and adds names below them silently.
        stored = parts.state
        if isinstance(like, dict):
            tree = self._manager.item_metadata(step).state.tree
            stored = {field: tree.get(field) for field in like}
        if jax.tree.map(np.shape, stored) != jax.tree.map(np.shape, like):
            raise SeglossError(misfit)
        return Restored(state=parts.state, step=step, meta=self.read_meta(which))

    def read_meta(self, which: str = "newest") -> dict[str, Any]:
        """Reads the `meta` of a checkpoint; `which` is "newest" or "best".

        Raises:
            FileNotFoundError: if there is no checkpoint.
        """
        step = self._find(which)
        if step is None:
            raise MissingFileError(f"{self.directory} has no checkpoint.")
        args = ocp.args.Composite(meta=ocp.args.JsonRestore())
        return self._manager.restore(step, args=args).meta

    def _find(self, which: str) -> int | None:
        newest = self._manager.latest_step()
        return newest if which == "newest" else self._manager.best_step() or newest

    @property
    def newest_step(self) -> int | None:
        """Step of the newest checkpoint; None if there is none."""
        return self._manager.latest_step()

    def close(self) -> None:
        """Waits until all checkpoints are written, then releases orbax's resources."""
        self._manager.close()

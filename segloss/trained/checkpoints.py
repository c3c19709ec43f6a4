"""Saves and restores checkpoints by orbax, and passes over those that are damaged."""

import contextlib
import dataclasses
import errno
import functools
import hashlib
import json
import math
import os
import shutil
import uuid
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from segloss import hosts
from segloss.errors import MissingFileError, SeglossError
from segloss.remote import shown
from segloss.trained.digests import DamagedError, check_digests, describe_cause
from segloss.trained.orbax_parts import Best, make_handlers, only_this_process
from segloss.writing import write_json

# The items of a checkpoint that hold arrays, with the fields of the state in each.
_ITEMS = {
    "variables": ("params", "batch_stats"),
    "optimizer": ("step", "opt_state", "key", "loss_scale"),
}
# Earlier versions wrote all fields as one item, without digests.
_ALL_IN_ONE = "state"
_SHOWN = 3


@dataclasses.dataclass(frozen=True)
class Stored:
    """A checkpoint as it was read, before it is put into the state of a model.

    Attributes:
        path: directory of the checkpoint.
        step: number of training steps.
        meta: the values saved with the state.
        arrays: maps the path of an array, such as "params/conv1/kernel", to it.
    """

    path: Path
    step: int
    meta: dict[str, Any]
    arrays: dict[str, np.ndarray]

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the parameters and the batch statistics, as they are stored."""
        digest = hashlib.sha256()
        for path, array in sorted(_select(self.arrays, _ITEMS["variables"]).items()):
            digest.update(f"{path} {_describe(array)}\n".encode())
            # As bytes, because some types, such as bfloat16, cannot be hashed.
            digest.update(np.ascontiguousarray(array).view(np.uint8))
        return digest.hexdigest()

    def fit(self, like: Any) -> Any:
        """Returns the arrays in the structure of `like`.

        Args:
            like: the fields of a state, as a dict or a `TrainState`, with arrays or
                shapes as leaves.

        Raises:
            SeglossError: if a path, shape or type of these fields differs from that of
                `like`; it lists the first differences.
        """
        wanted = flat_arrays(like)
        fields = tuple(like) if isinstance(like, dict) else sum(_ITEMS.values(), ())
        stored = _select(self.arrays, fields)
        misfits = [
            f"{path} is {_describe(stored.get(path))}, must be "
            f"{_describe(wanted.get(path))}"
            for path in sorted(stored.keys() | wanted.keys())
            if _describe(stored.get(path)) != _describe(wanted.get(path))
        ]
        if misfits:
            what = "model" if isinstance(like, dict) else "model and optimizer"
            more = f" and {len(misfits) - _SHOWN} more" if misfits[_SHOWN:] else ""
            raise SeglossError(
                f"checkpoint {self.path} does not fit this {what}: "
                f"{', '.join(misfits[:_SHOWN])}{more}; use the config it was trained "
                "with."
            )
        return jax.tree.unflatten(jax.tree.structure(like), [stored[p] for p in wanted])


@dataclasses.dataclass(frozen=True)
class Restored:
    """A restored checkpoint; `meta` holds the values saved with the state."""

    state: Any
    step: int
    meta: dict[str, Any]


class Checkpoints:
    """A directory of checkpoints `STEP/`, which are written in the background.

    Keeps the two newest checkpoints and the one with the highest mean IoU. Each holds
    digests of its contents. A checkpoint whose contents do not match them, or cannot be
    read, is damaged: reading passes over it with a warning.

    In a run of several processes, all of them must call the same methods in the same
    order. The first process alone uses the directory, and warns; it sends what it has
    read to the others.

    Args:
        directory: created if missing, unless `read_only`.
        read_only: True only restores, and the directory must exist; False also saves.

    Raises:
        FileNotFoundError: if `read_only` and the directory does not exist.
    """

    def __init__(self, directory: Path, *, read_only: bool = False):
        if read_only:
            if not hosts.of_first(directory.is_dir):
                raise MissingFileError(
                    f"{directory} has no checkpoint; train with this --workdir first."
                )
        elif hosts.is_first():
            directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self._scores: dict[int, float | None] = {}
        # Orbax starts the devices in the first process, which waits for all others.
        jax.devices()
        if hosts.is_first():
            self._manager = self._make_manager(read_only)

    def _make_manager(self, read_only: bool) -> ocp.CheckpointManager:
        return ocp.CheckpointManager(
            self.directory.absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=ocp.checkpoint_managers.AnyPreservationPolicy(
                    [ocp.checkpoint_managers.LatestN(n=2), Best(self._rank)]
                ),
                # Orbax's own `read_only` would print a warning every time.
                create=False,
                cleanup_tmp_directories=not read_only,
                multiprocessing_options=only_this_process(),
            ),
            handler_registry=make_handlers(_ITEMS),
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
        if not hosts.is_first():
            return
        step = int(state.step)
        # A mean over no classes is NaN, and counts as not evaluated.
        if mean_iou is not None:
            mean_iou = None if math.isnan(mean_iou) else float(mean_iou)
        if step in self._manager.all_steps():
            if mean_iou is not None:
                self._replace_score(step, mean_iou)
            return
        # As arrays, because orbax restores NumPy's scalars as numbers of Python.
        state = jax.tree.map(np.asarray, state)
        self._check_room(sum(array.nbytes for array in jax.tree.leaves(state)))
        items = {
            item: {field: getattr(state, field) for field in fields}
            for item, fields in _ITEMS.items()
        }
        self._scores[step] = mean_iou
        self._manager.save(
            step,
            args=ocp.args.Composite(
                **{item: ocp.args.PyTreeSave(tree) for item, tree in items.items()},
                meta=ocp.args.JsonSave(meta),
                score=ocp.args.JsonSave(_checked_score(mean_iou)),
            ),
        )

    def _check_room(self, num_bytes: int) -> None:
        """Raises an `OSError` if arrays of `num_bytes` cannot fit on the disk.

        TensorStore may crash the process if the disk fills up while it writes.
        """
        with contextlib.suppress(FileNotFoundError):  # orbax says that
            free = shutil.disk_usage(self.directory).free
            # Compressed, weights take about nine tenths.
            if free < 0.9 * num_bytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _replace_score(self, step: int, mean_iou: float) -> None:
        # Orbax cannot change a checkpoint, and deleting it first could lose it. But the
        # score is a JSON file, which can be replaced atomically.
        self._manager.wait_until_finished()
        write_json(self._score_path(step), _checked_score(mean_iou))
        self._scores[step] = mean_iou

    def _score_path(self, step: int) -> Path:
        path = self.directory / str(step)
        earlier = path / "metrics" / "metrics"
        return earlier if earlier.exists() else path / "score" / "metadata"

    def _read_score(self, step: int) -> float | None:
        path = self._score_path(step)
        try:
            return _parse_score(path)
        except (OSError, ValueError, LookupError, TypeError) as error:
            warnings.warn(
                f"{shown(path)} is damaged ({describe_cause(error)}); the checkpoint "
                "counts as not evaluated.",
                stacklevel=2,
            )
            return None

    def _rank(self, step: int) -> tuple[float, int]:
        """Orders steps by their score; of equal scores, the newest is the best."""
        if step not in self._scores:
            self._scores[step] = self._read_score(step)
        score = self._scores[step]
        return -1.0 if score is None else score, step

    def read(
        self, which: str | int = "newest", *, items: Sequence[str] = ("variables",)
    ) -> Stored | None:
        """Reads some items of a checkpoint; None if there is no checkpoint.

        If the checkpoint is damaged, warns and reads the next one in the order of
        `which`. Other items of the checkpoint may be damaged or missing.

        Args:
            which: "newest" or "best", which is the highest mean IoU, and the newest if
                no checkpoint has a score; or the step of a checkpoint.
            items: "variables" holds `params` and `batch_stats`, and "optimizer" the
                other fields of the state.

        Raises:
            SeglossError: if there are checkpoints, and all are damaged.
        """
        found = self._find(which, items) if hosts.is_first() else (None, [])
        stored, damaged = found
        about = stored and (stored.step, stored.meta)
        about, damaged = hosts.exchange((about, damaged))[0]
        if about is None and damaged:
            # Then the damage may be outside the weights.
            weights = "optimizer" in items and (
                "; --config.model.pretrained=RUN there starts from the weights of this "
                "run if they are sound"
            )
            raise SeglossError(
                f"{'; '.join(damaged)}; none is left; restore one from a "
                f"copy, or choose another --workdir{weights or ''}."
            )
        if about is None:
            return None
        step, meta = about
        for fault in damaged if hosts.is_first() else ():
            warnings.warn(f"{fault}; checkpoint {step} is used instead.", stacklevel=2)
        arrays = hosts.arrays_of_first(stored and stored.arrays)
        return Stored(self.directory / str(step), step=step, meta=meta, arrays=arrays)

    def _find(
        self, which: str | int, items: Sequence[str]
    ) -> tuple[Stored | None, list[str]]:
        """Reads the first sound checkpoint in the order of `which`.

        Returns:
            The checkpoint, None if none is sound, and a line about each damaged one
            before it.
        """
        damaged = []
        for step in self._in_order(which):
            path = self.directory / str(step)
            try:
                return self._read(step, items), damaged
            except DamagedError as error:
                if path.is_dir():  # otherwise a run just removed this old checkpoint
                    damaged.append(f"checkpoint {shown(path)} is damaged ({error})")
        return None, damaged

    def _in_order(self, which: str | int) -> list[int]:
        steps = self._manager.all_steps()
        if isinstance(which, int):
            return [which] if which in steps else []
        rank = self._rank if which == "best" else None
        return sorted(steps, key=rank, reverse=True)

    def _read(self, step: int, items: Sequence[str]) -> Stored:
        path = self.directory / str(step)
        if (path / _ALL_IN_ONE).is_dir():
            items = (_ALL_IN_ONE,)
        else:
            for item in (*items, "meta"):
                check_digests(path / item)
        args = {item: ocp.args.PyTreeRestore() for item in items}
        args["meta"] = ocp.args.JsonRestore()
        try:
            parts = self._manager.restore(step, args=ocp.args.Composite(**args))
        except Exception as error:
            # Orbax raises many kinds of errors on damaged files. Those with digests are
            # sound, unless a run just removed them.
            if _ALL_IN_ONE in items or not path.is_dir():
                raise DamagedError(describe_cause(error)) from error
            raise
        arrays = {k: v for item in items for k, v in flat_arrays(parts[item]).items()}
        return Stored(path=path, step=step, meta=parts.meta, arrays=arrays)

    def restore(self, like: Any, *, which: str = "newest") -> Restored | None:
        """Reads a checkpoint as `read` does, in the structure of `like`.

        Args:
            like: a tree with the structure and shapes of the state. A dict with
                `params` and `batch_stats` restores only these.
            which: "newest" or "best"; see `read`.

        Returns:
            The checkpoint; None if there is none.

        Raises:
            SeglossError: if the structure or a shape of the restored part differs from
                that of `like`, or all checkpoints are damaged.
        """
        items = ("variables",) if isinstance(like, dict) else tuple(_ITEMS)
        stored = self.read(which, items=items)
        if stored is None:
            return None
        return Restored(state=stored.fit(like), step=stored.step, meta=stored.meta)

    def set_aside_after(self, step: int) -> None:
        """Renames all checkpoints of later steps to `STEP.damaged.HEX`.

        A run that resumes from `step` found them damaged, and writes these steps again.
        """
        if not hosts.is_first():
            return
        later = [x for x in self._manager.all_steps() if x > step]
        for number in later:
            path = self.directory / str(number)
            path.rename(path.with_name(f"{number}.damaged.{uuid.uuid4().hex[:8]}"))
        if later:
            self._manager.reload()

    def wait(self) -> None:
        """Waits until all checkpoints are written; any thread may call it."""
        if hosts.is_first():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits until all checkpoints are written, then releases orbax's resources."""
        if hosts.is_first():
            self._manager.close()


def flat_arrays(tree: Any) -> dict[str, Any]:
    """Maps the path of each leaf of a tree, such as "params/conv1/kernel", to it."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _select(arrays: dict[str, Any], fields: Sequence[str]) -> dict[str, Any]:
    return {k: v for k, v in arrays.items() if k.split("/")[0] in fields}


def _describe(array: Any) -> str:
    return "absent" if array is None else f"{array.dtype} {array.shape}"


def _checked_score(mean_iou: float | None) -> dict[str, Any]:
    """Makes the contents of a score file, which `_parse_score` checks."""
    return {"mean_iou": mean_iou, "crc32": zlib.crc32(repr(mean_iou).encode())}


def _parse_score(path: Path) -> float | None:
    score = json.loads(path.read_text())
    mean_iou = score["mean_iou"]
    if path.name == "metrics":  # of an earlier version, with -1 for None
        return None if mean_iou < 0 else mean_iou
    if score != _checked_score(mean_iou):
        raise ValueError("it does not have its checksum")
    return mean_iou

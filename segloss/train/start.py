"""Finds the state from which a run starts, or resumes."""

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from rich.console import Console

from segloss import hosts
from segloss.config import (
    check_same_config,
    check_same_weights,
    describe_changes,
    read_config,
)
from segloss.errors import SeglossError
from segloss.train.first_state import digest_of, make_first_state, make_fresh_state
from segloss.train.loss_scaling import first_loss_scale
from segloss.train.setup import Setup
from segloss.train.step import TrainState
from segloss.trained.checkpoints import Checkpoints, Stored, flat_arrays
from segloss.trained.classes import check_same_classes
from segloss.trained.finite import check_finite
from segloss.trained.same_dataset import describe_changed_dataset


@dataclasses.dataclass
class Start:
    """The state from which a run starts or resumes, and its totals so far.

    Attributes:
        state: the state on the host.
        seconds: seconds of training so far.
        images_seen: number of images trained on so far; None if the checkpoint does not
            store it.
        pretrained: `file` and `sha256` of the pretrained weights that the run started
            from, and `step` if they are those of a run; None if there were none.
        changes: the changes of the config with which the run was resumed, in order:
            `step`, `field`, and its values `before` and `now`.
    """

    state: TrainState
    seconds: float = 0.0
    images_seen: int | None = 0
    pretrained: dict[str, Any] | None = None
    changes: tuple[dict[str, Any], ...] = ()


def find_start(
    setup: Setup,
    config: ConfigDict,
    workdir: Path,
    console: Console,
    *,
    with_changes: bool = False,
) -> Start:
    """Restores the newest sound checkpoint in `workdir`, or makes a new state.

    A new state has the pretrained weights of `config.model.pretrained` if that is set.
    All processes of a run call this together, and start from the same state; only the
    first one reads `workdir`.
    `with_changes` resumes a run also with a changed config; see `check_same_config`.

    Raises:
        ValueError: if the run in `workdir` has another config or dataset, has taken
            more steps than `config.total_steps`, or has only damaged checkpoints; or if
            the weights do not fit the model.
    """

    def compare() -> list[tuple[str, Any, Any]]:
        # A run that was stopped before its first checkpoint counts as well.
        if not (workdir / "config.json").exists():
            return []
        return check_same_config(config, workdir, with_changes=with_changes)

    changes = hosts.of_first(compare)
    has_begun = hosts.of_first((workdir / "checkpoints").is_dir)
    stored = _newest(workdir / "checkpoints") if has_begun else None
    if stored is not None:
        start = _resume(setup, stored, workdir, console, changes)
        check_same_weights(config, start.pretrained, digest_of=digest_of)
        return start
    state, pretrained = make_first_state(setup, console)
    return Start(state, pretrained=pretrained)


def _newest(directory: Path) -> Stored | None:
    with contextlib.closing(Checkpoints(directory, read_only=True)) as checkpoints:
        return checkpoints.read(items=("variables", "optimizer"))


def _read_total_steps(workdir: Path, step: int) -> int:
    """Returns `total_steps` of the run in `workdir`, which has checkpoint `step`."""
    if not (workdir / "config.json").exists():
        raise SeglossError(
            f"{workdir / 'config.json'} is missing, so the config of checkpoint {step} "
            "is not known; restore it from a copy, or choose another --workdir; "
            f"--config.model.pretrained={workdir} there starts from the weights of "
            "this run."
        )
    return read_config(workdir).total_steps


def _resume(
    setup: Setup,
    stored: Stored,
    workdir: Path,
    console: Console,
    changes: Sequence[tuple[str, Any, Any]],
) -> Start:
    meta, dataset = stored.meta, setup.dataset
    check_same_classes(workdir, meta["class_names"], dataset)
    if meta["fingerprint"] != dataset.fingerprint:
        raise SeglossError(
            f"{workdir}: the dataset changed since checkpoint {stored.step}: "
            f"{describe_changed_dataset(meta, dataset)}; restore it, or choose another "
            "--workdir."
        )
    before = hosts.of_first(lambda: _read_total_steps(workdir, stored.step))
    now = setup.config.total_steps
    if now < stored.step:
        raise SeglossError(
            f"config.total_steps must be >= {stored.step}, the number of steps that "
            f"the run in {workdir} has taken, got {now}; raise it, or choose another "
            "--workdir."
        )
    check_finite(stored)
    state = _fit(stored, setup, workdir, changes)
    if before != now:
        console.print(
            f"total_steps was {before}, is {now}; the schedule follows from step "
            f"{stored.step} on",
            soft_wrap=True,
        )
    if changes:
        console.print(
            f"from step {stored.step} on, the config is changed: "
            f"{describe_changes(changes)}",
            soft_wrap=True,
        )
    new = (
        {"step": stored.step, "field": field, "before": before, "now": now}
        for field, before, now in changes
    )
    return Start(
        state,
        seconds=meta["seconds"],
        images_seen=meta.get("images_seen"),
        pretrained=meta.get("pretrained"),
        changes=(*meta.get("changes", ()), *new),
    )


def _fit(
    stored: Stored,
    setup: Setup,
    workdir: Path,
    changes: Sequence[tuple[str, Any, Any]],
) -> TrainState:
    """Returns the state of a checkpoint, with the loss scale of a changed config.

    Raises:
        SeglossError: if it does not fit the model, or the optimizer of these changes.
    """
    if any(field == "optimizer.loss_scale" for field, *_ in changes):
        stored = _with_loss_scale(stored, setup)
    try:
        return stored.fit(jax.eval_shape(lambda: make_fresh_state(setup)))
    except SeglossError as error:
        of_optimizer = [x for x in changes if x[0].startswith("optimizer.")]
        if not of_optimizer:
            raise
        raise SeglossError(
            f"{workdir}: the state of the optimizer at step {stored.step} cannot be "
            f"used with these changes: {describe_changes(of_optimizer)}; undo those "
            "that change its form, or start a new run from these weights: choose "
            f"another --workdir, and add --config.model.pretrained={workdir}."
        ) from error


def _with_loss_scale(stored: Stored, setup: Setup) -> Stored:
    """Starts the loss scaling anew as the config says; counts skipped steps on."""
    loss_scale = setup.config.optimizer.hyperparameters.get("loss_scale")
    scaling = flat_arrays({"loss_scale": first_loss_scale(loss_scale)})
    others = {k: v for k, v in stored.arrays.items() if not k.startswith("loss_scale/")}
    skipped = "loss_scale/skipped_steps"
    if skipped in scaling and skipped in stored.arrays:
        scaling[skipped] = stored.arrays[skipped]
    return dataclasses.replace(stored, arrays=others | scaling)

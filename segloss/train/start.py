"""Finds the state from which a run starts, or resumes."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from rich.console import Console

from segloss.config import check_same_config, check_same_weights, read_config
from segloss.errors import SeglossError
from segloss.train.first_state import digest_of, make_first_state, make_fresh_state
from segloss.train.setup import Setup
from segloss.train.step import TrainState
from segloss.trained.checkpoints import Checkpoints, Stored
from segloss.trained.classes import check_same_classes


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
    """

    state: TrainState
    seconds: float = 0.0
    images_seen: int | None = 0
    pretrained: dict[str, Any] | None = None


def find_start(
    setup: Setup, config: ConfigDict, workdir: Path, console: Console
) -> Start:
    """Restores the newest sound checkpoint in `workdir`, or makes a new state.

    A new state has the pretrained weights of `config.model.pretrained` if that is set.

    Raises:
        ValueError: if the run in `workdir` has another config or dataset, has taken
            more steps than `config.total_steps`, or has only damaged checkpoints; or if
            the weights do not fit the model.
    """
    # A run that was stopped before its first checkpoint counts as well.
    if (workdir / "config.json").exists():
        check_same_config(config, workdir)
    stored = _newest(workdir / "checkpoints")
    if stored is not None:
        start = _resume(setup, stored, workdir, console)
        check_same_weights(config, start.pretrained, digest_of=digest_of)
        return start
    state, pretrained = make_first_state(setup, console)
    return Start(state, pretrained=pretrained)


def _newest(directory: Path) -> Stored | None:
    if not directory.is_dir():
        return None
    with contextlib.closing(Checkpoints(directory, read_only=True)) as checkpoints:
        return checkpoints.read(items=("variables", "optimizer"))


def _resume(setup: Setup, stored: Stored, workdir: Path, console: Console) -> Start:
    meta, dataset = stored.meta, setup.dataset
    check_same_classes(workdir, meta["class_names"], dataset)
    if meta["fingerprint"] != dataset.fingerprint:
        raise SeglossError(
            f"{workdir}: the dataset changed since checkpoint {stored.step}; choose "
            "another --workdir."
        )
    before, now = read_config(workdir).total_steps, setup.config.total_steps
    if now < stored.step:
        raise SeglossError(
            f"config.total_steps must be >= {stored.step}, the number of steps that "
            f"the run in {workdir} has taken, got {now}; raise it, or choose another "
            "--workdir."
        )
    state = stored.fit(jax.eval_shape(lambda: make_fresh_state(setup)))
    if before != now:
        console.print(
            f"total_steps was {before}, is {now}; the schedule follows from step "
            f"{stored.step} on",
            soft_wrap=True,
        )
    return Start(
        state,
        seconds=meta["seconds"],
        images_seen=meta.get("images_seen"),
        pretrained=meta.get("pretrained"),
    )

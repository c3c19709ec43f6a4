"""Makes the first state of a run: from a checkpoint, pretrained or random weights."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from rich.console import Console

from segloss.config import check_same_config, check_same_weights
from segloss.errors import SeglossError
from segloss.models.pretrained import (
    Weights,
    fit_bands,
    load_weights,
    put_into,
    sha256_of,
    warn_of_another_resnet,
)
from segloss.train.setup import Setup
from segloss.train.step import TrainState, make_state
from segloss.trained.checkpoints import Checkpoints, Restored


@dataclasses.dataclass
class Start:
    """The state from which a run starts or resumes, and its totals so far.

    Attributes:
        state: the state on the host.
        seconds: seconds of training so far.
        images_seen: number of images trained on so far; None if the checkpoint does not
            store it.
        pretrained: `file` and `sha256` of the pretrained weights that the run started
            from; None if there were none.
    """

    state: TrainState
    seconds: float = 0.0
    images_seen: int | None = 0
    pretrained: dict[str, str] | None = None


def find_start(
    setup: Setup, config: ConfigDict, workdir: Path, console: Console
) -> Start:
    """Restores the newest checkpoint in `workdir`; without one, makes a new state.

    A new state has the pretrained weights of `config.model.pretrained` if that is set.

    Raises:
        ValueError: if the run in `workdir` has another config or dataset, or the
            weights do not fit the model.
    """
    if (directory := workdir / "checkpoints").is_dir():
        with contextlib.closing(Checkpoints(directory, read_only=True)) as checkpoints:
            if checkpoints.newest_step is not None:
                check_same_config(config, workdir)
                like = jax.eval_shape(lambda: _fresh_state(setup))
                restored = checkpoints.restore(like)
                start = _resume(setup, restored, workdir)
                check_same_weights(config, start.pretrained)
                return start
    path = setup.config.pretrained
    # Read the file first to report faults early: making a state may take a while.
    weights = load_weights(path) if path else None
    state = _fresh_state(setup)
    return _begin_with(weights, state, setup, console) if weights else Start(state)


def _fresh_state(setup: Setup) -> TrainState:
    return make_state(
        setup.model,
        setup.optimizer,
        seed=setup.config.seed,
        image_hw=setup.config.data.crop_hw,
        num_bands=setup.dataset.bands.num_bands,
    )


def _resume(setup: Setup, restored: Restored, workdir: Path) -> Start:
    meta: dict[str, Any] = restored.meta
    if meta["fingerprint"] != setup.dataset.fingerprint:
        raise SeglossError(
            f"{workdir}: the dataset changed since checkpoint {restored.step}; choose "
            "another --workdir."
        )
    return Start(
        restored.state,
        seconds=meta["seconds"],
        images_seen=meta.get("images_seen"),
        pretrained=meta.get("pretrained"),
    )


def _begin_with(
    weights: Weights, state: TrainState, setup: Setup, console: Console
) -> Start:
    num_outputs = setup.config.count_outputs(setup.dataset.num_classes)
    weights = fit_bands(weights, state.variables)
    variables = put_into(state.variables, weights, num_classes=num_outputs)
    warn_of_another_resnet(setup.model, weights)
    source, digest = weights.source, sha256_of(weights.source)
    console.print(
        f"starts from the weights in {source}: {weights.layout}, "
        f"{len(weights.arrays)} arrays, {weights.num_parameters / 1e6:.2f} M "
        f"parameters, SHA-256 {digest[:16]}"
        f"{weights.adapted and ', ' + weights.adapted}",
        soft_wrap=True,
    )
    state = state.replace(
        **variables, opt_state=setup.optimizer.init(variables["params"])
    )
    return Start(state, pretrained={"file": source, "sha256": digest})

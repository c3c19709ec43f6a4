"""Makes the state before the first step: random, or with the weights of another run."""

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from segloss.config import make_configured_model, parse_named, read_config
from segloss.errors import MissingFileError, SeglossError
from segloss.models.pretrained import (
    PACKAGES,
    digest_of_weights,
    find_weights,
    fit_bands,
    load_weights,
    put_into,
    sha256_of,
    warn_of_another_resnet,
)
from segloss.train.setup import Setup
from segloss.train.step import TrainState, make_state
from segloss.trained.checkpoints import Checkpoints, Stored, flat_arrays
from segloss.trained.classes import describe_changed_classes
from segloss.trained.finite import check_finite

_SHOWN = 3


def make_fresh_state(setup: Setup) -> TrainState:
    """Makes the state of a run before its first step, with random weights."""
    return make_state(
        setup.model,
        setup.optimizer,
        seed=setup.config.seed,
        image_hw=setup.config.data.crop_hw,
        num_bands=setup.dataset.bands.num_bands,
        loss_scale=setup.config.optimizer.hyperparameters.get("loss_scale"),
    )


def make_first_state(
    setup: Setup, console: Console
) -> tuple[TrainState, dict[str, Any] | None]:
    """Makes the state of a run before its first step.

    It has the weights of the file, the package or the run at
    `config.model.pretrained`, if that is set, and prints a line about them.

    Returns:
        The state, and the origin of the weights: `file` and `sha256`, and `step` if
        they are those of a run. The origin is None if all weights are random.

    Raises:
        SeglossError: if the weights do not fit the model.
    """
    path = setup.config.pretrained
    if not path:
        return make_fresh_state(setup), None
    if _is_run(path):
        # Read first to report faults early: making a state may take a while.
        stored = _read_run(Path(path))
        state = make_fresh_state(setup)
        variables, line = _put_run_into(state.variables, stored, setup)
        origin = {"file": path, "step": stored.step, "sha256": stored.digest}
        source = f"{path} at step {stored.step}"
    else:
        file = _find_file(path)
        weights = load_weights(file)
        state = make_fresh_state(setup)
        num_outputs = setup.config.count_outputs(setup.dataset.num_classes)
        weights = fit_bands(weights, state.variables)
        variables = put_into(state.variables, weights, num_classes=num_outputs)
        warn_of_another_resnet(setup.model, weights)
        line = (
            f"{weights.layout}, {len(weights.arrays)} arrays, "
            f"{weights.num_parameters / 1e6:.2f} M parameters"
            f"{weights.adapted and ', ' + weights.adapted}"
        )
        origin = {"file": path, "sha256": sha256_of(file)}
        source = path
    console.print(
        f"starts from the weights in {source}: {line}, SHA-256 {origin['sha256'][:16]}",
        soft_wrap=True,
    )
    opt_state = setup.optimizer.init(variables["params"])
    return state.replace(**variables, opt_state=opt_state), origin


def digest_of(path: str) -> str | None:
    """Returns the SHA-256 of the weights of a file or a run; None if there are none."""
    if _is_run(path):
        return _read_run(Path(path)).digest
    return digest_of_weights(path)


def _is_run(path: str) -> bool:
    return path not in PACKAGES and Path(path).is_dir()


def _find_file(path: str) -> str:
    try:
        file = find_weights(path)
    except SeglossError as error:
        raise type(error)(f"config.model.pretrained: {error}") from error
    if not Path(file).exists():
        raise MissingFileError(
            f"config.model.pretrained: there is no file and no run {path}."
        )
    return file


def _read_run(run: Path) -> Stored:
    """Reads the checkpoint of a run that its `config.evaluate.checkpoint` selects."""
    directory = run / "checkpoints"
    if not (run / "config.json").exists() or not directory.is_dir():
        raise SeglossError(
            f"config.model.pretrained: {run} must be a file of weights, or the workdir "
            "of a run, with config.json and checkpoints/ in it."
        )
    which = read_config(run).evaluate.checkpoint
    with contextlib.closing(Checkpoints(directory, read_only=True)) as checkpoints:
        stored = checkpoints.read(which)
    if stored is None:
        raise SeglossError(f"config.model.pretrained: {directory} has no checkpoint.")
    check_finite(stored)
    return stored


def _put_run_into(
    variables: Mapping[str, Any], stored: Stored, setup: Setup
) -> tuple[dict[str, Any], str]:
    """Puts the weights of a run into fresh variables, and says what was taken.

    The class head keeps its initial values if the classes differ in their number,
    names or order.
    """
    fresh = flat_arrays(variables)
    theirs = {k: v for k, v in stored.arrays.items() if k.split("/")[0] in variables}
    head = _class_head(setup)
    changes = describe_changed_classes(
        stored.meta["class_names"], setup.dataset.class_names
    )
    if not changes and any(
        np.shape(theirs.get(path)) != fresh[path].shape for path in head
    ):
        changes = "the number of outputs changed"
    drawn = head if changes else set()
    run = stored.path.parents[1]
    changed = _changed_fields(setup, run)
    misfits = [
        f"{path} is {_shape(theirs.get(path))}, must be {_shape(fresh.get(path))}"
        for path in sorted((fresh.keys() | theirs.keys()) - drawn)
        if _shape(theirs.get(path)) != _shape(fresh.get(path))
    ]
    if misfits:
        more = ", ..." if misfits[_SHOWN:] else ""
        raise SeglossError(
            f"config.model.pretrained: the run {run} has another network: "
            + "; ".join([*changed, f"{len(misfits)} arrays do not fit"])
            + f" ({', '.join(misfits[:_SHOWN])}{more})."
        )
    taken = {path: theirs[path] for path in fresh if path not in drawn}
    size = sum(x.size for path, x in taken.items() if path.startswith("params/"))
    parts = [
        f"takes {len(taken)} of {len(fresh)} arrays, {size / 1e6:.2f} M parameters"
    ]
    if drawn:
        parts.append(f"draws {len(drawn)} of the class head anew ({changes})")
    leaves = [taken.get(path, array) for path, array in fresh.items()]
    tree = jax.tree.unflatten(jax.tree.structure(dict(variables)), leaves)
    return tree, "; ".join([*parts, *changed])


def _shape(array: Any) -> str:
    return "absent" if array is None else str(np.shape(array))


def _class_head(setup: Setup) -> set[str]:
    """Finds the variables whose shape depends on the number of classes, by path."""
    more = make_configured_model(setup.config, setup.dataset.num_classes + 1)

    def shapes(model: Any) -> dict[str, Any]:
        of_model = dataclasses.replace(setup, model=model)
        return flat_arrays(jax.eval_shape(lambda: make_fresh_state(of_model).variables))

    now, then = shapes(setup.model), shapes(more)
    return {path for path in now if now[path].shape != then[path].shape}


def _changed_fields(setup: Setup, run: Path) -> list[str]:
    """Lists the fields of `config.model` in which a run differs, with both values."""
    before, now = (
        {"name": model.name} | model.hyperparameters
        for model in (parse_named("model", read_config(run).model), setup.config.model)
    )
    before.pop("pretrained", None)
    return [
        f"model.{field} was {before.get(field)!r}, is {now.get(field)!r}"
        for field in sorted(before.keys() | now.keys())
        if before.get(field) != now.get(field)
    ]

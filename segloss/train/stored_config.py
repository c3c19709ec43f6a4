"""The config that a run keeps: written, read back, compared and changed."""

import ast
import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from segloss.models.pretrained import sha256_of
from segloss.train.inference import Inference
from segloss.train.setup import READING_AHEAD, pretrained_file
from segloss.writing import write_json

# What runs did before these fields came.
_BEFORE = {
    "data": {"num_workers": 0, "on_bad_sample": "raise"},
    "evaluate": dataclasses.asdict(Inference()),
}
# What may differ when a run goes on: none of it changes the weights that come out.
_FREE_TO_CHANGE = (
    "checkpoint_every_steps",
    "evaluate_every_steps",
    "log_every_steps",
    "evaluate",
    "data.root",
    "data.data_dir",
    *(f"data.{field}" for field in READING_AHEAD),
    # A run that a bad sample stopped may go on without that sample.
    "data.on_bad_sample",
)


def check_same_config(
    config: ConfigDict, workdir: Path, *, free: Iterable[str] = _FREE_TO_CHANGE
) -> None:
    """Checks that a run that goes on does so with the config it began with.

    Args:
        config: that of now.
        workdir: where the run lies.
        free: fields, or sections, that may differ.

    Raises:
        ValueError: if the run in `workdir` has another config; it lists the fields.
    """
    before = flat_fields(read_config(workdir), without=free)
    now = flat_fields(config, without=free)
    differing = [
        f"{field} was {before.get(field)!r}, is {now.get(field)!r}"
        for field in sorted(before.keys() | now.keys())
        if not _agree(field, before.get(field), now.get(field))
    ]
    if differing:
        raise ValueError(
            f"{workdir} holds a run of another config: {'; '.join(differing)}. "
            "Choose another --workdir, or go back to that config."
        )


def _agree(field: str, before: Any, now: Any) -> bool:
    # A file may be moved. Whether it is the same one, `check_same_weights` says.
    if field == "model.pretrained" and before and now:
        return True
    return before == now


def check_same_weights(
    config: ConfigDict, began_with: Mapping[str, str] | None
) -> None:
    """Checks that a config that names another file names the same weights.

    A run that goes on does not read them again, so the file may be gone.

    Args:
        config: that of now.
        began_with: `file` and `sha256` of the weights that the run began with; None if
            there were none.

    Raises:
        ValueError: if the file exists, was not named before, and holds other weights.
    """
    path = pretrained_file(config)
    if not path or not began_with or path == began_with["file"]:
        return
    if Path(path).is_file() and sha256_of(path) != began_with["sha256"]:
        raise ValueError(
            f"config.model.pretrained: {path} is another file than "
            f"{began_with['file']}, which the run began with: its SHA-256 does not "
            f"begin with {began_with['sha256'][:16]}. Choose another --workdir, or go "
            "back to those weights."
        )


def flat_fields(config: ConfigDict, *, without: Iterable[str] = ()) -> dict[str, Any]:
    """Dotted paths to plain values, but for those at or under `without`."""
    without = tuple(f"{field}." for field in without)
    return {
        field: value
        for field, value in _flatten(_to_json(config)).items()
        if not f"{field}.".startswith(without)
    }


def write_config(config: ConfigDict, workdir: Path) -> None:
    """Writes `config.json`."""
    write_json(workdir / "config.json", _to_json(config))


def _to_json(config: ConfigDict) -> Any:
    return json.loads(config.to_json_best_effort())


def read_config(workdir: Path) -> ConfigDict:
    """The config that the run in `workdir` was trained with.

    Raises:
        FileNotFoundError: if there is none.
    """
    path = workdir / "config.json"
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing; train with this --workdir first, or give --config."
        )
    config = json.loads(path.read_text())
    return ConfigDict(
        config | {section: was | config[section] for section, was in _BEFORE.items()}
    )


def change_fields(config: ConfigDict, changes: Sequence[str]) -> ConfigDict:
    """A copy with `FIELD=VALUE` for each of the changes, such as `evaluate.flip=True`.

    A value that is no Python literal is text.

    Raises:
        ValueError: if there is no such field, or it holds values of another type.
    """
    config = config.copy_and_resolve_references().lock()
    for change in changes:
        field, _, text = change.partition("=")
        *path, name = field.split(".")
        section = config
        for part in path:
            section = section.get(part) if isinstance(section, ConfigDict) else None
        if not isinstance(section, ConfigDict) or name not in section:
            known = section if isinstance(section, ConfigDict) else config
            raise ValueError(
                f"--set={change}: there is no field {field!r}; known are "
                f"{', '.join(known)}."
            )
        try:
            value = ast.literal_eval(text)
        except (SyntaxError, ValueError):
            value = text
        before = section[name]
        if isinstance(before, tuple) and isinstance(value, int | float):
            value = (value,)
        try:
            section[name] = value
        except TypeError as error:
            raise ValueError(
                f"--set={change}: must be of the type of {before!r}."
            ) from error
    return config


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {
        key: value
        for name, branch in tree.items()
        for key, value in _flatten(branch, f"{prefix}.{name}".lstrip(".")).items()
    }

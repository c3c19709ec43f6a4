"""Writes, reads, compares and changes the config that is stored with a run."""

import ast
import contextlib
import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from segloss.config.parsed import OPTIONAL_FIELDS, READING_AHEAD, defaults
from segloss.config.parts import WINDOW_FIELDS
from segloss.config.paths import expand
from segloss.config.steps import STEP_FIELDS, resolve_steps
from segloss.data import DATASETS
from segloss.errors import MissingFileError, SeglossError, printable
from segloss.models.pretrained import digest_of_weights
from segloss.registry import hyperparameters_of
from segloss.remote import is_remote, opened
from segloss.writing import read_json, write_json

# What every stored config has; sections after the first.
_SECTIONS = ("loss", "data", "sampler", "model", "optimizer", "schedule", "evaluate")

_MAX_SHOWN = 200  # characters of a change in a message
# Fields that may differ when a run resumes. Except for the first, they do not change
# the final weights.
_FREE_TO_CHANGE = (
    # The schedules follow it from the step at which the run resumes.
    "total_steps",
    "checkpoint_every_steps",
    "evaluate_every_steps",
    "log_every_steps",
    "evaluate",
    # Both values give the same results up to rounding.
    "mapping",
    "data.root",
    "data.data_dir",
    *(f"data.{field}" for field in READING_AHEAD),
    # A run that stopped at a bad sample may resume without that sample.
    "data.on_bad_sample",
    # Where the files lie, as does `data.root`.
    "data.shared_files",
)


# What never changes: a step is a position in the batches that follow from the seed, the
# sampler and the windows that it plans with, and the weights are those of the model.
_FIXED = ("seed", "sampler", "model", "data.crop_hw")
_FIXED += tuple(f"augment.{field}" for field in WINDOW_FIELDS)


def check_same_config(
    config: ConfigDict, workdir: Path, *, with_changes: bool = False
) -> list[tuple[str, Any, Any]]:
    """Checks that a config equals the one stored in `workdir/config.json`.

    Fields that do not change the final weights may differ, and so may `total_steps`.

    Args:
        config: the current config.
        workdir: directory of the run.
        with_changes: True also accepts changes of other fields, except for the seed,
            the sampler, the crop windows and the model.

    Returns:
        The changes that were accepted because of `with_changes`: the dotted path of the
        field, its stored value and its current value.

    Raises:
        ValueError: if other fields differ; it lists them with both values.
    """
    changes = differing_fields(config, workdir)
    free = _without({field: None for field, *_ in changes}, _FIXED)
    fixed = [x for x in changes if x[0] not in free]
    if with_changes and not fixed:
        return changes
    if changes:
        remedy = (
            "The seed, the sampler, the crop windows and the model of a run never "
            "change: its steps are positions in the batches that follow from them, and "
            "its weights are of that model. "
            "Choose another --workdir, or use the config of that run."
            if fixed
            else "Choose another --workdir, or use the config of that run, or resume "
            "it with these changes by --resume_with_changes."
        )
        if not any(x.name.isdecimal() for x in workdir.glob("checkpoints/*")):
            remedy += f" It has no checkpoint yet: to start it anew, delete {workdir}."
        raise SeglossError(
            f"{workdir} holds a run with another config: "
            f"{describe_changes(fixed if with_changes else changes)}. {remedy}"
        )
    return []


def describe_changes(changes: Iterable[Sequence[Any]]) -> str:
    """Describes changes (field, before, now), such as "seed was 0, is 1; ..."."""
    return "; ".join(f"{field} was {was!r}, is {now!r}" for field, was, now in changes)


def differing_fields(
    config: ConfigDict, workdir: Path, *, free: Iterable[str] = _FREE_TO_CHANGE
) -> list[tuple[str, Any, Any]]:
    """Finds the fields in which a config differs from that of the run in `workdir`.

    Fields at or under the dotted paths `free` are not compared.

    Returns:
        The dotted path of each field, its stored value and its current value. The value
        of a missing field is None.
    """
    before, now = (
        _flatten(_to_json(ConfigDict(_fill_in(_with_tuples(_to_json(one))))))
        for one in (read_config(workdir), config)
    )
    # A share of `total_steps` agrees with the same share, and with its number of steps.
    resolved = resolve_steps(before), resolve_steps(now)
    return [
        (field, before.get(field), now.get(field))
        for field in sorted(_without(before | now, free))
        if not any(
            _agree(field, x.get(field), y.get(field))
            for x, y in ((before, now), resolved)
        )
    ]


def _agree(field: str, before: Any, now: Any) -> bool:
    # The file may have moved; `check_same_weights` compares its contents.
    if field == "model.pretrained" and before and now:
        return True
    return before == now


def check_same_weights(
    config: ConfigDict,
    began_with: Mapping[str, Any] | None,
    *,
    digest_of: Callable[[str], str | None] = digest_of_weights,
) -> None:
    """Checks that a changed path of the pretrained weights leads to the same weights.

    A resumed run does not read the weights again, so the new path may also be missing.

    Args:
        config: the current config.
        began_with: `file` and `sha256` of the pretrained weights that the run started
            from; None if there were none.
        digest_of: returns the SHA-256 of the weights at a path; None if there are none,
            or if they cannot be compared.

    Raises:
        ValueError: if the path has changed and the weights at the new path exist, but
            differ.
    """
    path = config.model.get("pretrained")
    if not path or not began_with:
        return
    if (path := expand("config.model.pretrained", path)) == began_with["file"]:
        return
    if digest_of(path) not in (None, began_with["sha256"]):
        raise SeglossError(
            f"config.model.pretrained: {path} differs from {began_with['file']}, "
            "the weights that the run started from: its SHA-256 does not start with "
            f"{began_with['sha256'][:16]}. Choose another --workdir, or use those "
            "weights."
        )


def flat_fields(config: ConfigDict, *, without: Iterable[str] = ()) -> dict[str, Any]:
    """Maps the dotted path of each field to its value as JSON has it.

    Shares of `total_steps` become numbers of steps (`resolve_steps`). Fields at or
    under the dotted paths `without` are left out.
    """
    return _without(resolve_steps(_flatten(_to_json(config))), without)


def _without(fields: dict[str, Any], paths: Iterable[str]) -> dict[str, Any]:
    paths = tuple(f"{path}." for path in paths)
    return {k: v for k, v in fields.items() if not f"{k}.".startswith(paths)}


def write_config(config: ConfigDict, workdir: Path) -> None:
    """Writes a config to `workdir/config.json`."""
    write_json(workdir / "config.json", _to_json(config))


def _to_json(config: ConfigDict) -> Any:
    return json.loads(config.to_json_best_effort())


def read_config(workdir: Path | str) -> ConfigDict:
    """Reads the config of a run from `workdir/config.json`, locally or from a URL.

    Optional fields of `data` and `evaluate` that the file lacks get their defaults.

    Raises:
        FileNotFoundError: if there is no `config.json`.
        ValueError: if it is damaged: not JSON, or no config.
    """
    if is_remote(workdir):
        with opened(workdir, only=("config.json",)) as local:
            return read_config(local)
    path = workdir / "config.json"
    if not path.exists():
        raise MissingFileError(
            f"{path} is missing; train with this --workdir first, or give --config."
        )
    remedy = (
        "restore it from a copy; evaluation, prediction and export also take --config"
    )
    config = _with_tuples(read_json(path, remedy=remedy, needs=_SECTIONS))
    if wrong := [x for x in _SECTIONS[1:] if not isinstance(config[x], dict)]:
        raise SeglossError(f"{path} is damaged ({wrong[0]} is no section); {remedy}.")
    sections = {name: x | config.get(name, {}) for name, x in defaults().items()}
    return ConfigDict(config | sections)


def _fill_in(config: dict[str, Any]) -> dict[str, Any]:
    """Gives optional fields of `data` and `evaluate` their defaults.

    A run then equals one of a version that did not have these fields.
    """
    filled = config | {name: x | config.get(name, {}) for name, x in defaults().items()}
    data = filled["data"]
    of_dataset = {}
    if data.get("name") in DATASETS:
        of_dataset = {
            name: parameter.default
            for name, parameter in hyperparameters_of(DATASETS[data["name"]]).items()
            if parameter.default is not inspect.Parameter.empty
        }
    return filled | {"data": of_dataset | data}


def _with_tuples(tree: Any) -> Any:
    """Converts lists to tuples, as in config files, except lists that contain dicts."""
    if isinstance(tree, dict):
        return {key: _with_tuples(value) for key, value in tree.items()}
    if isinstance(tree, list) and not any(isinstance(x, dict) for x in tree):
        return tuple(map(_with_tuples, tree))
    return tree


def change_fields(config: ConfigDict, changes: Sequence[str]) -> ConfigDict:
    """Returns a locked copy of a config with changes, such as `["evaluate.flip=True"]`.

    A value that is not a Python literal is taken as text. A dict, or a list of dicts,
    replaces a whole section; a line says which fields that drops. A section with a
    `name` also takes fields that it lacks, since the function that is chosen checks
    them.

    Raises:
        ValueError: if a field cannot exist, or its value has another type.
    """
    config = config.copy_and_resolve_references().unlock()
    for change in changes:
        field, equals, text = change.partition("=")
        shown = printable(change[:_MAX_SHOWN])
        if not equals:
            raise SeglossError(f"--set={shown}: must be FIELD=VALUE.")
        _set(config, printable(field), _literal(text), shown)
    return config.lock()


def _set(config: ConfigDict, field: str, value: Any, change: str) -> None:
    *path, name = field.split(".")
    section = config
    for part in path:
        section = section.get(part) if isinstance(section, ConfigDict) else None
    if not isinstance(section, ConfigDict) or not (
        name in section or "name" in section or field in OPTIONAL_FIELDS
    ):
        known = section if isinstance(section, ConfigDict) else config
        raise SeglossError(
            f"--set={change}: there is no field {field!r}; known are "
            f"{', '.join(known)}."
        )
    before = section.get(name)
    if isinstance(before, tuple) and isinstance(value, int | float | str):
        value = (value,)
    is_section = isinstance(before, ConfigDict | list)
    if is_section and not isinstance(value, dict | list | tuple):
        raise SeglossError(
            f"--set={change}: {field} is a section; set one of its fields, such as "
            f"{field}.name, or replace it by {{'name': ...}}."
        )
    if isinstance(before, ConfigDict) and isinstance(value, dict):
        dropped = [f"{k}={x!r}" for k, x in before.items() if k not in value]
        if dropped:
            print(
                f"--set={field}={{...}}: replaces the whole, drops {', '.join(dropped)}"
            )
    # One loss may replace a list of losses, and a share a number of steps.
    any_type = is_section or field in STEP_FIELDS
    try:
        with config.ignore_type() if any_type else contextlib.nullcontext():
            section[name] = value
    except TypeError as error:
        raise SeglossError(
            f"--set={change}: the value must have the type of {before!r}."
        ) from error
    # Names of fields that no config can have.
    except (ValueError, AttributeError, KeyError) as error:
        reason = printable(" ".join(str(error).split()))
        raise SeglossError(f"--set={change}: cannot be a field ({reason}).") from error


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    # The last three are of a dict in a dict's key, and of brackets in brackets.
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return text


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {
        key: value
        for name, branch in tree.items()
        for key, value in _flatten(branch, f"{prefix}.{name}".lstrip(".")).items()
    }

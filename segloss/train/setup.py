"""From a config to the parts of a run, every field checked before anything starts."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optax
from flax import linen as nn
from ml_collections import ConfigDict

from segloss.data import DATASETS, SAMPLERS, Dataset, Sampler, augment, open_dataset
from segloss.losses import compound_loss
from segloss.models import make_model
from segloss.registry import bind
from segloss.train.optimizers import OPTIMIZERS, SCHEDULES
from segloss.train.step import AXIS

# What a config holds, and what `config.json` gives back.
Section = ConfigDict | Mapping[str, Any]

FIELDS = (
    "seed",
    "total_steps",
    "checkpoint_every_steps",
    "evaluate_every_steps",
    "log_every_steps",
    "data",
    "augment",
    "sampler",
    "model",
    "loss",
    "optimizer",
    "schedule",
    "evaluate",
)
# Fields of `data` that say how it is read; its other fields choose the dataset.
_LOADING = ("crop_hw", "num_threads", "prefetch_batches")
_EVALUATE = ("split", "final_split", "batch_size", "checkpoint")
# What may differ when a run goes on: none of it changes the weights that come out.
_FREE_TO_CHANGE = (
    "log_every_steps",
    "evaluate",
    "data.root",
    "data.data_dir",
    "data.num_threads",
    "data.prefetch_batches",
)


@dataclasses.dataclass(frozen=True)
class Setup:
    """The parts of a run, made from its config."""

    config: ConfigDict
    dataset: Dataset
    model: nn.Module
    sampler: Sampler
    loss: Callable
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation
    augment: Callable


def make_setup(config: ConfigDict) -> Setup:
    """Resolves every name of a config and opens its dataset.

    Raises:
        ValueError: if a field is unknown, missing or out of range; it names the field.
    """
    _check_fields("config", config, FIELDS)
    _check_fields("config.evaluate", config.evaluate, _EVALUATE)
    for field in FIELDS[1:5]:
        if config[field] < 1:
            raise ValueError(f"config.{field} must be >= 1, got {config[field]}.")
    for field in _LOADING:
        if field not in config.data:
            raise ValueError(f"config.data.{field} is missing.")
    crop_hw = tuple(config.data.crop_hw)
    if len(crop_hw) != 2 or min(crop_hw) < 1:
        raise ValueError(
            f"config.data.crop_hw must be height and width in pixels, got {crop_hw}."
        )
    make_sampler = _choose("sampler", SAMPLERS, config.sampler, seed=config.seed)
    augmentation = bind(
        "augment",
        {"augment": augment},
        "augment",
        _plain(config.augment),
        crop_hw=crop_hw,
    )
    loss = _make_loss(config.loss)
    optimizer = make_configured_optimizer(config)
    dataset_name, hyperparameters = _split_name("data", config.data)
    hyperparameters = {k: v for k, v in hyperparameters.items() if k not in _LOADING}
    bind("dataset", DATASETS, dataset_name, hyperparameters)
    if hyperparameters.get("root", "") is None:
        raise ValueError("config.data.root is not set; add --config.data.root=DIR.")
    dataset = open_dataset(dataset_name, **hyperparameters)
    for field in ("split", "final_split"):
        if config.evaluate[field] not in dataset.splits:
            raise ValueError(
                f"config.evaluate.{field}: {dataset.name} has no split "
                f"{config.evaluate[field]!r}; it has {', '.join(dataset.splits)}."
            )
    return Setup(
        config=config,
        dataset=dataset,
        model=make_configured_model(config, dataset.num_classes),
        sampler=make_sampler(dataset.class_index("train").presence()),
        loss=loss,
        schedule=make_configured_schedule(config),
        optimizer=optimizer,
        augment=augmentation,
    )


def make_configured_model(config: ConfigDict, num_classes: int) -> nn.Module:
    """The model of a config; its BatchNorm spans the devices of the train step."""
    name, hyperparameters = _split_name("model", config.model)
    return make_model(name, num_classes=num_classes, axis_name=AXIS, **hyperparameters)


def make_configured_schedule(config: ConfigDict) -> optax.Schedule:
    """Step to learning rate."""
    return _choose("schedule", SCHEDULES, config.schedule)(config.total_steps)


def make_configured_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """The optimizer of a config, with its schedule."""
    schedule = make_configured_schedule(config)
    return _choose("optimizer", OPTIMIZERS, config.optimizer)(schedule)


def _choose(
    kind: str, registry: Mapping[str, Callable], section: Section, **given: Any
) -> Any:
    name, hyperparameters = _split_name(kind, section)
    return bind(kind, registry, name, hyperparameters, **given)


def _split_name(kind: str, section: Section) -> tuple[str, dict[str, Any]]:
    fields = _plain(section)
    if "name" not in fields:
        raise ValueError(f"config.{kind} must have a field 'name'.")
    return fields.pop("name"), fields


def _plain(section: Section) -> dict[str, Any]:
    """The fields of a section; lists, which `config.json` has for tuples, as tuples."""
    return {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in section.items()
    }


def _make_loss(section: Section | Sequence[Section]) -> Callable:
    """One loss, or a list of losses with a `weight` each."""
    terms = [section] if isinstance(section, ConfigDict | Mapping) else section
    parts = []
    for term in terms:
        name, hyperparameters = _split_name("loss", term)
        parts.append((hyperparameters.pop("weight", 1.0), name, hyperparameters))
    return compound_loss(parts)


def _check_fields(where: str, section: Section, known: tuple[str, ...]) -> None:
    for field in section:
        if field not in known:
            raise ValueError(
                f"{where} has no field {field!r}; known are {', '.join(known)}."
            )
    for field in known:
        if field not in section:
            raise ValueError(f"{where}.{field} is missing.")


def write_config(config: ConfigDict, workdir: Path) -> None:
    """Writes `config.json`, or checks that the run there has the same config.

    Raises:
        ValueError: if `workdir` holds a run of another config; it lists the fields.
    """
    path = workdir / "config.json"
    text = config.to_json_best_effort(indent=2)
    if path.exists():
        before, now = _flatten(json.loads(path.read_text())), _flatten(json.loads(text))
        differing = [
            f"{field} was {before.get(field)!r}, is {now.get(field)!r}"
            for field in sorted(before.keys() | now.keys())
            if before.get(field) != now.get(field)
            and not any(f"{field}.".startswith(f"{free}.") for free in _FREE_TO_CHANGE)
        ]
        if differing:
            raise ValueError(
                f"{workdir} holds a run of another config: {'; '.join(differing)}. "
                "Choose another --workdir, or go back to that config."
            )
    path.write_text(text + "\n")


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
    return ConfigDict(json.loads(path.read_text()))


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {
        key: value
        for name, branch in tree.items()
        for key, value in _flatten(branch, f"{prefix}.{name}".lstrip(".")).items()
    }

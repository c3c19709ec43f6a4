"""Parses a config into frozen dataclasses; all fields are checked and filled in."""

import dataclasses
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from segloss.config.inference import Inference, is_size
from segloss.data import ON_BAD_SAMPLE
from segloss.devices import MAPPINGS
from segloss.losses import compound_loss, scalars_of, takes_masks

# A section of a config, from a config file or from `config.json`.
Section = ConfigDict | Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Named:
    """The name of a loss, model or the like, and its hyperparameters."""

    name: str
    hyperparameters: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Term:
    """One of the losses in the sum that is minimised.

    Its `weight` and hyperparameters may be sections with a `name`: a schedule by step
    or, for `class_weights`, a method to compute them from pixel counts.
    """

    weight: Any
    name: str
    hyperparameters: dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The dataset, and how it is read.

    Attributes:
        dataset: name and hyperparameters of the dataset.
        crop_hw: height and width of training crops in pixels.
        num_threads: number of threads that read samples.
        num_workers: number of processes that read samples.
        prefetch_batches: number of batches that are read ahead.
        on_bad_sample: "raise" or "skip", for samples that cannot be used.
    """

    dataset: Named
    crop_hw: tuple[int, int]
    num_threads: int
    num_workers: int = 0
    prefetch_batches: int
    on_bad_sample: str = "raise"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What is evaluated, and how.

    Attributes:
        split: the split evaluated during training.
        final_split: the split evaluated at the end.
        batch_size: number of images in a batch, over all devices.
        checkpoint: which checkpoint is used after training, "newest" or "best".
        inference: how images are predicted.
    """

    split: str
    final_split: str
    batch_size: int
    checkpoint: str
    inference: Inference


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The config of a run; see `configs/` for the other fields.

    Attributes:
        pretrained: file of pretrained weights that a new run starts from; None if there
            is none.
        loss: the terms of the loss, at least one.
        mapping: how steps are mapped over devices: "pmap" or "shard_map".
    """

    seed: int
    total_steps: int
    checkpoint_every_steps: int
    evaluate_every_steps: int
    log_every_steps: int
    data: DataConfig
    augment: dict[str, Any]
    sampler: Named
    model: Named
    pretrained: str | None
    loss: tuple[Term, ...]
    optimizer: Named
    schedule: Named
    evaluate: EvaluateConfig
    mapping: str = "pmap"

    @property
    def has_sigmoid_losses(self) -> bool:
        """Whether the losses take a mask per logit instead of class ids."""
        return takes_masks(self.loss[0].name, self.loss[0].hyperparameters)

    def count_outputs(self, num_classes: int) -> int:
        """Number of logits per pixel: usually one per class.

        With sigmoid losses, a dataset of two classes needs only the logit of class 1.

        Raises:
            ValueError: if there are fewer than two classes.
        """
        if num_classes < 2:
            raise ValueError(
                "config.data: a dataset must have at least 2 classes, got "
                f"{num_classes}; name a class for the rest of the image."
            )
        return 1 if self.has_sigmoid_losses and num_classes == 2 else num_classes


_COUNTS = (
    "total_steps",
    "checkpoint_every_steps",
    "evaluate_every_steps",
    "log_every_steps",
)
_PARSED = ("data", "augment", "sampler", "model", "loss", "optimizer", "schedule")
FIELDS = ("seed", *_COUNTS, *_PARSED, "evaluate")
_LOADING = tuple(x.name for x in dataclasses.fields(DataConfig) if x.name != "dataset")
# These fields do not change the content of the batches.
READING_AHEAD = ("num_threads", "num_workers", "prefetch_batches")
_INFERENCE = tuple(x.name for x in dataclasses.fields(Inference))
_EVALUATE = (
    *(x.name for x in dataclasses.fields(EvaluateConfig) if x.name != "inference"),
    *_INFERENCE,
)


def parse_config(config: ConfigDict) -> RunConfig:
    """Parses a config; checks all fields that can be checked without the dataset.

    Raises:
        ValueError: if a field is unknown, missing or out of range; it names the field.
    """
    fields = {name: plain(section) for name, section in config.items()}
    mapping = fields.pop("mapping", "pmap")
    if mapping not in MAPPINGS:
        raise ValueError(
            f"config.mapping must be {_one_of(MAPPINGS)}, got {mapping!r}."
        )
    _check_names("config", fields, FIELDS)
    for name in ("augment", "data", "evaluate", "model"):
        if not isinstance(fields[name], dict):
            raise ValueError(
                f"config.{name} must be a section with fields, got {fields[name]!r}."
            )
    _check_whole("config.seed", fields["seed"], 0)
    for name in _COUNTS:
        _check_whole(f"config.{name}", fields[name], 1)
    pretrained = fields["model"].pop("pretrained", None)
    if not isinstance(pretrained, str | None):
        raise ValueError(f"config.model.pretrained must be a path, got {pretrained!r}.")
    return RunConfig(
        seed=fields["seed"],
        **{name: fields[name] for name in _COUNTS},
        data=_parse_data(fields["data"]),
        augment=fields["augment"],
        pretrained=pretrained,
        loss=_parse_loss(fields["loss"]),
        evaluate=_parse_evaluate(fields["evaluate"]),
        mapping=mapping,
        **{
            kind: parse_named(kind, fields[kind])
            for kind in ("sampler", "model", "optimizer", "schedule")
        },
    )


def parse_named(kind: str, section: Section) -> Named:
    """Splits a section into its name and its hyperparameters.

    Raises:
        ValueError: if it has no `name`.
    """
    fields = plain(section)
    if not isinstance(fields, dict) or "name" not in fields:
        raise ValueError(f"config.{kind} must have a field 'name'.")
    return Named(fields.pop("name"), fields)


def plain(value: Any) -> Any:
    """Converts sections to dicts and lists to tuples, which JSON does not have."""
    if isinstance(value, ConfigDict | Mapping):
        return {key: plain(field) for key, field in value.items()}
    if isinstance(value, list | tuple):
        return tuple(map(plain, value))
    return value


def defaults() -> dict[str, dict[str, Any]]:
    """Default values of the optional fields, by section."""
    return {
        "data": _defaults_of(DataConfig),
        "evaluate": _defaults_of(Inference),
    }


def _defaults_of(kind: type) -> dict[str, Any]:
    return {
        field.name: field.default
        for field in dataclasses.fields(kind)
        if field.default is not dataclasses.MISSING
    }


def _parse_data(fields: dict[str, Any]) -> DataConfig:
    for name in _LOADING:
        if name not in fields:
            raise ValueError(f"config.data.{name} is missing.")
    loading = {name: fields.pop(name) for name in _LOADING}
    crop_hw = loading["crop_hw"]
    if not is_size(crop_hw):
        raise ValueError(
            f"config.data.crop_hw must be height and width in pixels, got {crop_hw}."
        )
    for name in READING_AHEAD:
        _check_whole(f"config.data.{name}", loading[name], 0)
    if loading["on_bad_sample"] not in ON_BAD_SAMPLE:
        raise ValueError(
            f"config.data.on_bad_sample must be {_one_of(ON_BAD_SAMPLE)}, got "
            f"{loading['on_bad_sample']!r}."
        )
    return DataConfig(dataset=parse_named("data", fields), **loading)


def _parse_evaluate(fields: dict[str, Any]) -> EvaluateConfig:
    _check_names("config.evaluate", fields, _EVALUATE)
    inference = Inference(**{name: fields.pop(name) for name in _INFERENCE})
    _check_whole("config.evaluate.batch_size", fields["batch_size"], 1)
    if fields["checkpoint"] not in ("newest", "best"):
        raise ValueError(
            "config.evaluate.checkpoint must be 'newest' or 'best', got "
            f"{fields['checkpoint']!r}."
        )
    return EvaluateConfig(inference=inference, **fields)


def _parse_loss(section: dict[str, Any] | Sequence[dict[str, Any]]) -> tuple[Term, ...]:
    """Parses one loss, or several with a `weight` each, and checks their names."""
    terms = []
    for fields in section if isinstance(section, tuple) else [section]:
        named = parse_named("loss", fields)
        chosen = dict(named.hyperparameters)
        weight = chosen.pop("weight", 1.0)
        compound_loss([(1, named.name, chosen)])  # finds unknown names
        able = ("weight", *scalars_of(named.name))
        for field, value in chosen.items():
            if isinstance(value, Mapping) and field not in ("class_weights", *able):
                raise ValueError(
                    f"config.loss: {field} of {named.name} cannot follow a schedule; "
                    f"{', '.join(able)} can."
                )
        terms.append(Term(weight, named.name, chosen))
    if not terms:
        raise ValueError("config.loss must have at least one loss, got none.")
    of_sigmoids = [t.name for t in terms if takes_masks(t.name, t.hyperparameters)]
    others = [t.name for t in terms if not takes_masks(t.name, t.hyperparameters)]
    if of_sigmoids and others:
        raise ValueError(
            "config.loss: sigmoid and softmax losses must not be combined, got "
            f"{', '.join(of_sigmoids)} and {', '.join(others)}; an overlap loss uses "
            "sigmoids with multi_label=True."
        )
    return tuple(terms)


def _check_names(where: str, fields: dict[str, Any], known: tuple[str, ...]) -> None:
    for field in fields:
        if field not in known:
            raise ValueError(
                f"{where} has no field {field!r}; known are {', '.join(known)}."
            )
    for field in known:
        if field not in fields:
            raise ValueError(f"{where}.{field} is missing.")


def _check_whole(field: str, value: Any, low: int) -> None:
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise ValueError(f"{field} must be an integer, got {value!r}.")
    if value < low:
        raise ValueError(f"{field} must be >= {low}, got {value}.")


def _one_of(choices: Sequence[str]) -> str:
    return " or ".join(map(repr, choices))

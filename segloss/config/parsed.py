"""Parses a config into frozen dataclasses; all fields are checked and filled in."""

import dataclasses
import inspect
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from segloss.config.inference import Inference, is_size
from segloss.config.paths import expand
from segloss.config.steps import INTERVALS, to_steps
from segloss.data import ON_BAD_SAMPLE, Classes, parse_classes
from segloss.devices import MAPPINGS
from segloss.errors import SeglossError
from segloss.losses import LOSSES, compound_loss, scalars_of, takes_masks

# A section of a config, from a config file or from `config.json`.
Section = ConfigDict | Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Named:
    """A section of a config: its `name`, and its other fields as `hyperparameters`."""

    name: str
    hyperparameters: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Term:
    """One loss of the weighted sum that is minimised.

    `weight` and the values of `hyperparameters` are plain values or sections with a
    `name`. A section describes a schedule by training step or, for `class_weights`, a
    method that computes them from pixel counts.
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
        num_threads: number of threads that read samples, in each reading process.
        num_workers: number of extra processes that read samples; 0 reads in this one.
        prefetch_batches: number of batches that each reading process reads ahead.
        on_bad_sample: "raise" stops training at a sample that cannot be used; "skip"
            trains without it.
        shared_files: whether the hosts of a run see the same files; False prepares the
            dataset on each of them.
        classes: the classes of the dataset that count, in the order of their ids; the
            pixels of the others are void. A pair of a new name and a tuple of names
            merges these classes. None has all classes as they are.
    """

    dataset: Named
    crop_hw: tuple[int, int]
    num_threads: int
    num_workers: int = 0
    prefetch_batches: int
    on_bad_sample: str = "raise"
    shared_files: bool = True
    classes: Classes | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What is evaluated, and how.

    Attributes:
        split: the split evaluated during training.
        final_split: the split evaluated after training.
        batch_size: number of images in a batch, over all devices; rounded up to a
            multiple of their number.
        checkpoint: which checkpoint is used after training, "newest" or "best" (the
            highest mean IoU on `split`).
        patience: number of evaluations in a row without a higher mean IoU on `split`
            after which training ends; None trains for `total_steps`.
        ignore_classes_in_mean: names or ids of classes that a second mean IoU leaves
            out: "mean_iou_without_ignored" in the results, besides "mean_iou" of all.
        inference: the fields that control how images are predicted.
    """

    split: str
    final_split: str
    batch_size: int
    checkpoint: str
    patience: int | None = None
    ignore_classes_in_mean: tuple[str | int, ...] = ()
    inference: Inference


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The config of a run; the configs in `configs/` show the other fields.

    The intervals, and `warmup_steps` of the schedule, are numbers of steps here; in a
    config they may be shares of `total_steps` (`segloss.config.steps.to_steps`).

    Attributes:
        pretrained: file, run or package of pretrained weights that a new run starts
            from; None starts from random weights.
        loss: the terms of the loss, at least one.
        mapping: "pmap" or "shard_map"; see `segloss.devices.map_over_devices`.
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
        """True if the losses take a binary mask per logit, False if class ids."""
        return takes_masks(self.loss[0].name, self.loss[0].hyperparameters)

    def count_outputs(self, num_classes: int) -> int:
        """Returns the number of logits per pixel for a dataset of `num_classes`.

        This is 1 for two classes with sigmoid losses, which need only the logit of
        class 1, and `num_classes` otherwise.

        Raises:
            ValueError: if there are fewer than two classes.
        """
        if num_classes < 2:
            raise SeglossError(
                "config.data: a dataset must have at least 2 classes, got "
                f"{num_classes}; name a class for the rest of the image."
            )
        return 1 if self.has_sigmoid_losses and num_classes == 2 else num_classes


_PARSED = ("data", "augment", "sampler", "model", "loss", "optimizer", "schedule")
FIELDS = ("seed", "total_steps", *INTERVALS, *_PARSED, "evaluate")
LOADING = tuple(x.name for x in dataclasses.fields(DataConfig) if x.name != "dataset")
# These fields do not change the content of the batches.
READING_AHEAD = ("num_threads", "num_workers", "prefetch_batches")
_INFERENCE = tuple(x.name for x in dataclasses.fields(Inference))
_EVALUATE = (
    *(x.name for x in dataclasses.fields(EvaluateConfig) if x.name != "inference"),
    *_INFERENCE,
)


# Fields outside of sections with a `name` that a config need not have.
OPTIONAL_FIELDS = ("mapping", *(f"evaluate.{name}" for name in _EVALUATE))


def parse_config(config: ConfigDict) -> RunConfig:
    """Parses a config, and checks all fields that need no dataset to be checked.

    Raises:
        ValueError: if a field is unknown, missing or out of range; it names the field.
    """
    fields = {name: plain(section) for name, section in config.items()}
    mapping = fields.pop("mapping", "pmap")
    if mapping not in MAPPINGS:
        raise SeglossError(
            f"config.mapping must be {_one_of(MAPPINGS)}, got {mapping!r}."
        )
    _check_names("config", fields, FIELDS)
    for name in ("augment", "data", "evaluate", "model"):
        if not isinstance(fields[name], dict):
            raise SeglossError(
                f"config.{name} must be a section with fields, got {fields[name]!r}."
            )
    check_whole("config.seed", fields["seed"], 0)
    if fields["seed"] >= 2**63:
        raise SeglossError(f"config.seed must be < 2**63, got {fields['seed']}.")
    check_whole("config.total_steps", total_steps := fields["total_steps"], 1)
    counts = {
        name: to_steps(f"config.{name}", fields[name], total_steps, low=1)
        for name in INTERVALS
    }
    pretrained = fields["model"].pop("pretrained", None)
    if not isinstance(pretrained, str | None):
        raise SeglossError(
            f"config.model.pretrained must be a path, got {pretrained!r}."
        )
    if pretrained is not None:
        pretrained = expand("config.model.pretrained", pretrained)
    return RunConfig(
        seed=fields["seed"],
        total_steps=total_steps,
        **counts,
        data=_parse_data(fields["data"]),
        augment=fields["augment"],
        pretrained=pretrained,
        loss=_parse_loss(fields["loss"]),
        evaluate=_parse_evaluate(fields["evaluate"]),
        mapping=mapping,
        schedule=_parse_schedule(fields["schedule"], total_steps),
        **{
            kind: parse_named(kind, fields[kind])
            for kind in ("sampler", "model", "optimizer")
        },
    )


def parse_named(kind: str, section: Section) -> Named:
    """Splits a section into its field `name` and its other fields.

    Raises:
        ValueError: if the section has no `name`; `kind` says which section it is.
    """
    fields = plain(section)
    if not isinstance(fields, dict) or "name" not in fields:
        raise SeglossError(f"config.{kind} must have a field 'name'.")
    return Named(fields.pop("name"), fields)


def plain(value: Any) -> Any:
    """Converts config sections to dicts, and lists to tuples, at every depth.

    A config that was stored as JSON, which turns tuples into lists, then equals the
    original.
    """
    if isinstance(value, ConfigDict | Mapping):
        return {key: plain(field) for key, field in value.items()}
    if isinstance(value, list | tuple):
        return tuple(map(plain, value))
    return value


def defaults() -> dict[str, dict[str, Any]]:
    """Default values of the optional fields of `config.data` and `config.evaluate`."""
    return {
        "data": _defaults_of(DataConfig),
        "evaluate": _defaults_of(EvaluateConfig) | _defaults_of(Inference),
    }


def _defaults_of(kind: type) -> dict[str, Any]:
    return {
        field.name: field.default
        for field in dataclasses.fields(kind)
        if field.default is not dataclasses.MISSING
    }


def _parse_data(fields: dict[str, Any]) -> DataConfig:
    fields = _defaults_of(DataConfig) | fields
    for name in LOADING:
        if name not in fields:
            raise SeglossError(f"config.data.{name} is missing.")
    loading = {name: fields.pop(name) for name in LOADING}
    crop_hw = loading["crop_hw"]
    if not is_size(crop_hw):
        raise SeglossError(
            f"config.data.crop_hw must be height and width in pixels, got {crop_hw}."
        )
    for name in READING_AHEAD:
        check_whole(f"config.data.{name}", loading[name], 0)
    if loading["on_bad_sample"] not in ON_BAD_SAMPLE:
        raise SeglossError(
            f"config.data.on_bad_sample must be {_one_of(ON_BAD_SAMPLE)}, got "
            f"{loading['on_bad_sample']!r}."
        )
    if not isinstance(loading["shared_files"], bool):
        raise SeglossError(
            "config.data.shared_files must be True or False, got "
            f"{loading['shared_files']!r}."
        )
    if loading["classes"] is not None:
        parse_classes(loading["classes"])
    for name in ("root", "data_dir"):
        if isinstance(path := fields.get(name), str):
            fields[name] = expand(f"config.data.{name}", path)
    return DataConfig(dataset=parse_named("data", fields), **loading)


def _parse_evaluate(fields: dict[str, Any]) -> EvaluateConfig:
    fields = defaults()["evaluate"] | fields
    _check_names("config.evaluate", fields, _EVALUATE)
    inference = Inference(**{name: fields.pop(name) for name in _INFERENCE})
    check_whole("config.evaluate.batch_size", fields["batch_size"], 1)
    if fields["patience"] is not None:
        check_whole("config.evaluate.patience", fields["patience"], 1)
    if fields["checkpoint"] not in ("newest", "best"):
        raise SeglossError(
            "config.evaluate.checkpoint must be 'newest' or 'best', got "
            f"{fields['checkpoint']!r}."
        )
    ignored = fields["ignore_classes_in_mean"]
    if not isinstance(ignored, tuple) or any(
        type(x) not in (str, int) for x in ignored
    ):
        raise SeglossError(
            "config.evaluate.ignore_classes_in_mean must be a tuple of class names or "
            f"ids such as ('background',), got {ignored!r}."
        )
    return EvaluateConfig(inference=inference, **fields)


def _parse_schedule(section: Section, total_steps: int) -> Named:
    """Parses the learning-rate schedule; a share in `warmup_steps` becomes a number."""
    schedule = parse_named("schedule", section)
    fields, warm_up = dict(schedule.hyperparameters), "warmup_steps"
    if warm_up in fields:
        field = f"config.schedule.{warm_up}"
        fields[warm_up] = to_steps(field, fields[warm_up], total_steps, low=0)
    return Named(schedule.name, fields)


def _check_schedules(name: str, fields: Mapping[str, Any]) -> None:
    """Checks that only numbers of a loss follow a schedule; ignores what is unknown."""
    if not isinstance(name, str) or name not in LOSSES:
        return
    able = ("weight", *scalars_of(name))
    for field in inspect.signature(LOSSES[name]).parameters:
        value = fields.get(field)
        if isinstance(value, Mapping) and field not in ("class_weights", *able):
            raise SeglossError(
                f"config.loss: {field} of {name} cannot follow a schedule; "
                f"{', '.join(able)} can."
            )


def _parse_loss(section: dict[str, Any] | Sequence[dict[str, Any]]) -> tuple[Term, ...]:
    """Parses one loss, or a tuple of losses, and checks their names.

    The field `weight` of a loss is 1 if it is missing.
    """
    terms = []
    for fields in section if isinstance(section, tuple) else [section]:
        named = parse_named("loss", fields)
        chosen = dict(named.hyperparameters)
        weight = chosen.pop("weight", 1.0)
        _check_schedules(named.name, chosen)
        compound_loss([(1, named.name, chosen)])  # finds unknown names
        terms.append(Term(weight, named.name, chosen))
    if not terms:
        raise SeglossError("config.loss must have at least one loss, got none.")
    of_sigmoids = [t.name for t in terms if takes_masks(t.name, t.hyperparameters)]
    others = [t.name for t in terms if not takes_masks(t.name, t.hyperparameters)]
    if of_sigmoids and others:
        raise SeglossError(
            "config.loss: sigmoid and softmax losses must not be combined, got "
            f"{', '.join(of_sigmoids)} and {', '.join(others)}; an overlap loss uses "
            "sigmoids with multi_label=True."
        )
    return tuple(terms)


def _check_names(where: str, fields: dict[str, Any], known: tuple[str, ...]) -> None:
    for field in fields:
        if field not in known:
            raise SeglossError(
                f"{where} has no field {field!r}; known are {', '.join(known)}."
            )
    for field in known:
        if field not in fields:
            raise SeglossError(f"{where}.{field} is missing.")


def check_whole(field: str, value: Any, low: int) -> None:
    """Raises SeglossError unless `value` is an integer of at least `low`."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise SeglossError(f"{field} must be an integer, got {value!r}.")
    if value < low:
        raise SeglossError(f"{field} must be >= {low}, got {value}.")


def _one_of(choices: Sequence[str]) -> str:
    return " or ".join(map(repr, choices))

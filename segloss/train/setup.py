"""From a config to the parts of a run, every field checked before anything starts."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Int
from ml_collections import ConfigDict

from segloss.data import (
    DATASETS,
    ON_BAD_SAMPLE,
    SAMPLERS,
    ClassIndex,
    ClassSets,
    Dataset,
    Sampler,
    augment,
    open_dataset,
)
from segloss.losses import (
    compound_loss,
    inputs_of,
    make_loss,
    scalars_of,
    takes_masks,
)
from segloss.losses.balancing import CLASS_WEIGHTS
from segloss.models import make_model
from segloss.registry import bind
from segloss.train.checkpoints import check_which
from segloss.train.inference import Inference
from segloss.train.loss_schedules import (
    LOSS_SCHEDULES,
    Scheduled,
    ScheduledLoss,
    Term,
    fill_in,
    schedules_of,
)
from segloss.train.optimizers import OPTIMIZERS, SCHEDULES
from segloss.train.step import AXIS

# What a config holds, and what `config.json` gives back.
Section = ConfigDict | Mapping[str, Any]

_COUNTS = (
    "total_steps",
    "checkpoint_every_steps",
    "evaluate_every_steps",
    "log_every_steps",
)
FIELDS = (
    "seed",
    *_COUNTS,
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
READING_AHEAD = ("num_threads", "num_workers", "prefetch_batches")
_LOADING = ("crop_hw", *READING_AHEAD, "on_bad_sample")
_INFERENCE = tuple(field.name for field in dataclasses.fields(Inference))
_EVALUATE = ("split", "final_split", "batch_size", "checkpoint", *_INFERENCE)


@dataclasses.dataclass(frozen=True)
class Setup:
    """The parts of a run, made from its config.

    Attributes:
        loss_inputs: arrays that the loss takes beside logits, labels and valid.
    """

    config: ConfigDict
    dataset: Dataset
    model: nn.Module
    sampler: Sampler
    loss: Callable | ScheduledLoss
    loss_inputs: frozenset[str]
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation
    augment: Callable


def make_setup(config: ConfigDict) -> Setup:
    """Resolves every name of a config and opens its dataset.

    Raises:
        ValueError: if a field is unknown, missing or out of range; it names the field.
    """
    check_fields(config)
    make_sampler = choose_sampler(config.sampler, seed=config.seed)
    augmentation = bind(
        "augment",
        {"augment": augment},
        "augment",
        _plain(config.augment),
        crop_hw=tuple(config.data.crop_hw),
    )
    terms = _choose_terms(config)
    loss_inputs = frozenset(x for _, name, _ in terms for x in inputs_of(name))
    optimizer = make_configured_optimizer(config)
    dataset = open_configured_dataset(config)
    check_split(dataset, config.evaluate.split)
    check_split(dataset, config.evaluate.final_split)
    index = dataset.class_index("train")
    loss = make_configured_loss(config, np.asarray(index.pixel_counts))
    num_outputs = count_outputs(config, dataset.num_classes)
    _trace(augmentation, loss, loss_inputs, num_outputs, config.total_steps)
    return Setup(
        config=config,
        dataset=dataset,
        model=make_configured_model(config, dataset.num_classes),
        sampler=make_sampler(index),
        loss=loss,
        loss_inputs=loss_inputs,
        schedule=make_configured_schedule(config),
        optimizer=optimizer,
        augment=augmentation,
    )


def check_fields(config: ConfigDict) -> None:
    """Checks the fields that are no hyperparameters of something named.

    Raises:
        ValueError: naming the field that is unknown, missing or out of range.
    """
    _check_names("config", config, FIELDS)
    _check_names("config.evaluate", config.evaluate, _EVALUATE)
    for field in _COUNTS:
        if config[field] < 1:
            raise ValueError(f"config.{field} must be >= 1, got {config[field]}.")
    if (size := config.evaluate.batch_size) < 1:
        raise ValueError(f"config.evaluate.batch_size must be >= 1, got {size}.")
    make_inference(config)
    pretrained_file(config)
    check_which(config.evaluate.checkpoint)
    for field in _LOADING:
        if field not in config.data:
            raise ValueError(f"config.data.{field} is missing.")
    crop_hw = tuple(config.data.crop_hw)
    if len(crop_hw) != 2 or min(crop_hw) < 1:
        raise ValueError(
            f"config.data.crop_hw must be height and width in pixels, got {crop_hw}."
        )
    for field in READING_AHEAD:
        if config.data[field] < 0:
            raise ValueError(
                f"config.data.{field} must be >= 0, got {config.data[field]}."
            )
    if config.data.on_bad_sample not in ON_BAD_SAMPLE:
        raise ValueError(
            f"config.data.on_bad_sample must be {' or '.join(map(repr, ON_BAD_SAMPLE))}"
            f", got {config.data.on_bad_sample!r}."
        )


def check_split(dataset: Dataset, split: str) -> None:
    """Raises ValueError if the dataset has no such split; it lists those there are."""
    if split not in dataset.splits:
        raise ValueError(
            f"config.evaluate: {dataset.name} has no split {split!r}; "
            f"it has {', '.join(dataset.splits)}."
        )


def _trace(
    augmentation: Callable,
    loss: Callable | ScheduledLoss,
    inputs: Iterable[str],
    num_outputs: int,
    total_steps: int,
) -> None:
    """Lets both check their hyperparameters, which they do when they are traced."""
    shape = jax.ShapeDtypeStruct
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    labels, valid = shape((1, 2, 2), np.uint8), shape((1, 2, 2), bool)
    logits = shape((1, 2, 2, num_outputs), np.float32)
    jax.eval_shape(augmentation, keys, shape((1, 2, 2, 3), np.uint8), labels, valid)

    def trace(loss: Callable) -> None:
        jax.eval_shape(loss, logits, labels, valid, **dict.fromkeys(inputs, logits))

    if isinstance(loss, ScheduledLoss):
        loss.check(total_steps, trace)
    else:
        trace(loss)


def open_configured_dataset(config: ConfigDict) -> Dataset:
    """The dataset of a config, prepared where that has not been done."""
    name, hyperparameters = _split_name("data", config.data)
    hyperparameters = {k: v for k, v in hyperparameters.items() if k not in _LOADING}
    bind("dataset", DATASETS, name, hyperparameters)
    if hyperparameters.get("root", "") is None:
        raise ValueError("config.data.root is not set; add --config.data.root=DIR.")
    return open_dataset(name, **hyperparameters)


def make_configured_model(config: ConfigDict, num_classes: int) -> nn.Module:
    """The model of a config; its BatchNorm spans the devices of the train step."""
    name, hyperparameters = _split_name("model", config.model)
    hyperparameters.pop("pretrained", None)
    num_outputs = count_outputs(config, num_classes)
    return make_model(name, num_classes=num_outputs, axis_name=AXIS, **hyperparameters)


def count_outputs(config: ConfigDict, num_classes: int) -> int:
    """Logits of the network: one for each class.

    But one for both of two classes where the losses are of sigmoids: that of class 1
    against class 0.

    Raises:
        ValueError: if there are fewer than two classes, or the losses need both kinds
            of labels.
    """
    if num_classes < 2:
        raise ValueError(
            f"config.data: a dataset must have at least 2 classes, got {num_classes}; "
            "name the rest of the image, too."
        )
    of_sigmoids = _are_of_sigmoids(_choose_terms(config))
    return 1 if of_sigmoids and num_classes == 2 else num_classes


def pretrained_file(config: ConfigDict) -> str | None:
    """The file of weights that a fresh run begins with; None if there is none.

    Raises:
        ValueError: if the field is no path.
    """
    path = _plain(config.model).get("pretrained")
    if not isinstance(path, str | None):
        raise ValueError(f"config.model.pretrained must be a path, got {path!r}.")
    return path


def make_inference(config: ConfigDict) -> Inference:
    """How a config predicts images.

    Raises:
        ValueError: if a field is out of its range.
    """
    evaluate = _plain(config.evaluate)
    return Inference(**{field: evaluate[field] for field in _INFERENCE})


def make_configured_loss(
    config: ConfigDict, pixel_counts: Int[np.ndarray, "n c"]
) -> Callable | ScheduledLoss:
    """The loss of a config, which takes class ids.

    For losses of sigmoids they are made into a mask for each logit.

    Args:
        config: of a run; only `loss` and `total_steps` are read.
        pixel_counts: of each class in each training image, for weights chosen by name.
    """
    terms = _choose_terms(config)
    num_classes = pixel_counts.shape[1]
    num_outputs = count_outputs(config, num_classes)

    def with_weights(chosen: dict[str, Any]) -> dict[str, Any]:
        by_name = chosen.get("class_weights")
        if not callable(by_name):
            return chosen
        if num_outputs < num_classes:
            raise ValueError(
                "config.loss: one logit has no class weights by name; two classes are "
                "weighed by pos_weight, where the loss has it."
            )
        return chosen | {"class_weights": by_name(pixel_counts)}

    terms = [(weight, name, with_weights(chosen)) for weight, name, chosen in terms]
    of_sigmoids = _are_of_sigmoids(terms)

    def make(values: Mapping[str, Any]) -> Callable:
        loss = compound_loss(fill_in(terms, values))

        def loss_of_masks(logits, labels, valid=None, **options):
            masks = jax.nn.one_hot(labels, num_classes, dtype=bool)[..., -num_outputs:]
            valid = None if valid is None else valid[..., None]
            return loss(logits, masks, valid, **options)

        return loss_of_masks if of_sigmoids else loss

    schedules = schedules_of(terms)
    return ScheduledLoss(schedules, make) if schedules else make({})


def make_configured_schedule(config: ConfigDict) -> optax.Schedule:
    """Step to learning rate."""
    return _choose("schedule", SCHEDULES, config.schedule)(config.total_steps)


def make_configured_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """The optimizer of a config, with its schedule."""
    schedule = make_configured_schedule(config)
    return _choose("optimizer", OPTIMIZERS, config.optimizer)(schedule)


def choose_sampler(section: Section, *, seed: int) -> Callable[[ClassIndex], Sampler]:
    """Index to sampler; `min_pixels` says what the index counts as holding a class.

    Raises:
        ValueError: if the sampler or one of its hyperparameters is unknown or missing.
    """
    name, hyperparameters = _split_name("sampler", section)
    min_pixels = hyperparameters.pop("min_pixels", 1)
    choose = functools.partial(
        bind, "sampler", SAMPLERS, name, hyperparameters, seed=seed
    )
    choose(class_pixels=None)  # names are checked before the dataset is opened

    def make(index: ClassIndex) -> Sampler:
        class_pixels = index.pixel_counts.sum(axis=0, dtype=np.int64)
        sets = ClassSets.from_counts(index.pixel_counts, min_pixels=min_pixels)
        return choose(class_pixels=np.asarray(class_pixels))(sets)

    return make


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


def _plain(value: Any) -> Any:
    """Sections as dicts; lists, which `config.json` has for tuples, as tuples."""
    if isinstance(value, ConfigDict | Mapping):
        return {key: _plain(field) for key, field in value.items()}
    if isinstance(value, list | tuple):
        return tuple(map(_plain, value))
    return value


def _choose_terms(config: ConfigDict) -> list[Term]:
    """One loss, or a list of losses with a `weight` each, their names checked.

    Class weights chosen by name are still functions of the pixel counts.
    """
    section = config.loss
    terms = [section] if isinstance(section, ConfigDict | Mapping) else section
    named = [_split_name("loss", term) for term in terms]
    names = [name for name, _ in named]
    parts = []
    for place, (name, fields) in enumerate(named, start=1):
        weight = {"weight": fields.pop("weight", 1.0)}
        make_loss(name, **fields)  # finds unknown names
        weights = fields.get("class_weights")
        if isinstance(weights, Mapping):
            weights = _choose("class_weights", CLASS_WEIGHTS, weights)
            fields["class_weights"] = weights
        # Of two terms of the same loss, each has a name of its own.
        title = name if names.count(name) == 1 else f"{name}_{place}"
        chosen = {
            field: _choose_schedule(name, title, field, value, config.total_steps)
            if isinstance(value, Mapping)
            else value
            for field, value in (weight | fields).items()
        }
        parts.append((chosen.pop("weight"), name, chosen))
    compound_loss(fill_in(parts, dict.fromkeys(schedules_of(parts), 1.0)))
    _are_of_sigmoids(parts)
    return parts


def _choose_schedule(
    loss: str, title: str, field: str, section: Section, total_steps: int
) -> Scheduled:
    able = ("weight", *scalars_of(loss))
    if field not in able:
        raise ValueError(
            f"config.loss: {field} of {loss} cannot follow a schedule; "
            f"{', '.join(able)} can."
        )
    schedule = _choose("loss schedule", LOSS_SCHEDULES, section)(total_steps)
    return Scheduled(f"loss_schedule/{title}.{field}", schedule)


def _are_of_sigmoids(terms: Sequence[Term]) -> bool:
    """Whether the terms take masks; they share the logits, so it is all or none."""
    of_sigmoids = [name for _, name, chosen in terms if takes_masks(name, chosen)]
    others = [name for _, name, chosen in terms if not takes_masks(name, chosen)]
    if of_sigmoids and others:
        raise ValueError(
            "config.loss: all losses must be of sigmoids or all of a softmax, got "
            f"{', '.join(of_sigmoids)} and {', '.join(others)}; an overlap loss is of "
            "sigmoids with multi_label=True."
        )
    return bool(of_sigmoids)


def _check_names(where: str, section: Section, known: tuple[str, ...]) -> None:
    for field in section:
        if field not in known:
            raise ValueError(
                f"{where} has no field {field!r}; known are {', '.join(known)}."
            )
    for field in known:
        if field not in section:
            raise ValueError(f"{where}.{field} is missing.")

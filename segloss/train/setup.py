"""Makes the parts of a run from its config, and checks them before it starts."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Int
from ml_collections import ConfigDict

from segloss.config import (
    WINDOW_FIELDS,
    Named,
    RunConfig,
    after_first,
    check_split,
    choose_sampler,
    choose_windows,
    find_ignored_classes,
    index_windows,
    make_configured_model,
    open_configured_dataset,
    parse_config,
    parse_named,
)
from segloss.data import Dataset, Loading, augment
from segloss.data.bands import Bands
from segloss.data.samplers import EpochSampler
from segloss.errors import SeglossError
from segloss.losses import compound_loss, inputs_of
from segloss.losses.balancing import CLASS_WEIGHTS
from segloss.registry import bind
from segloss.train.loss_scaling import check_loss_scale
from segloss.train.loss_schedules import (
    LOSS_SCHEDULES,
    Scheduled,
    ScheduledLoss,
    Term,
    fill_in,
    schedules_of,
)
from segloss.train.optimizers import OPTIMIZERS, SCHEDULES


@dataclasses.dataclass(frozen=True)
class Setup:
    """The parts of a run, made from its config.

    Attributes:
        sampler: chooses the samples of each batch.
        loading: how samples become batches.
        loss: the result of `make_configured_loss`.
        schedule: maps a step to its learning rate.
        augment: scales, crops, flips and recolours a batch on the device.
    """

    config: RunConfig
    dataset: Dataset
    model: nn.Module
    sampler: EpochSampler
    loading: Loading
    loss: Callable | ScheduledLoss
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation
    augment: Callable


def make_setup(config: ConfigDict) -> Setup:
    """Makes all parts of a run that a config names, and opens its dataset.

    Raises:
        ValueError: if a field is unknown, missing or out of range; it names the field.
            Also if the sampler can make a batch of one image, and the model cannot
            train on one.
    """
    run = parse_config(config)
    make_sampler = choose_sampler(run.sampler, seed=run.seed)
    augmentation = bind(
        "augment",
        {"augment": augment},
        "augment",
        run.augment,
        later=["bands"],
        elsewhere=WINDOW_FIELDS,
        crop_hw=run.data.crop_hw,
    )
    make_windows = choose_windows(run)
    terms = choose_terms(run)
    optimizer = make_configured_optimizer(run)
    # Checks values before anything is written.
    make_configured_model(run, num_classes=2)
    dataset = open_configured_dataset(run)
    check_split(dataset, run.evaluate.split)
    check_split(dataset, run.evaluate.final_split)
    augmentation = functools.partial(augmentation, bands=dataset.bands)
    find_ignored_classes(run, dataset.class_names)
    index = after_first(run, lambda: dataset.class_index("train"))
    loss = make_configured_loss(run, terms, np.asarray(index.pixel_counts))
    uses_distances = any("distances" in inputs_of(term.name) for term in run.loss)
    num_outputs = run.count_outputs(dataset.num_classes)
    _trace(
        augmentation, loss, uses_distances, num_outputs, run.total_steps, dataset.bands
    )
    windows = make_windows(index)
    planned = after_first(
        run, lambda: index_windows(dataset, index, run.sampler, windows)
    )
    sampler = make_sampler(index, planned)
    if sampler.batch_min == 1:
        _check_single_image(run, dataset)
    return Setup(
        config=run,
        dataset=dataset,
        model=make_configured_model(run, dataset.num_classes),
        sampler=sampler,
        loading=Loading(
            canvas_hw=windows.canvas_hw(dataset.max_hw),
            ignore_label=dataset.ignore_label,
            num_classes=dataset.num_classes,
            bands=dataset.bands,
            windows=windows,
            distances=uses_distances,
            num_threads=run.data.num_threads,
            num_workers=run.data.num_workers,
            prefetch_batches=run.data.prefetch_batches,
            on_bad_sample=run.data.on_bad_sample,
        ),
        loss=loss,
        schedule=make_configured_schedule(run),
        optimizer=optimizer,
        augment=augmentation,
    )


def _trace(
    augmentation: Callable,
    loss: Callable | ScheduledLoss,
    uses_distances: bool,
    num_outputs: int,
    total_steps: int,
    bands: Bands,
) -> None:
    """Traces the augmentation and the loss, so that they check their hyperparameters.

    `uses_distances` says whether the loss takes `distances`; `num_outputs` is the
    number of logits, and `bands` are those of the images.
    """
    shape = jax.ShapeDtypeStruct
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    labels, valid = shape((1, 2, 2), np.uint8), shape((1, 2, 2), bool)
    logits = shape((1, 2, 2, num_outputs), np.float32)
    images = shape((1, 2, 2, bands.num_bands), bands.dtype)
    jax.eval_shape(augmentation, keys, images, labels, valid)
    inputs = {"distances": logits} if uses_distances else {}

    def trace(loss: Callable) -> None:
        jax.eval_shape(loss, logits, labels, valid, **inputs)

    if isinstance(loss, ScheduledLoss):
        loss.check(total_steps, trace)
    else:
        trace(loss)


def _check_single_image(config: RunConfig, dataset: Dataset) -> None:
    """Traces the model with `train=True` on a batch of one image.

    Raises:
        ValueError: if a BatchNorm gets a single value per channel; it says what to do.
    """
    model = make_configured_model(config, dataset.num_classes, axis_name=None)
    shape = (1, *config.data.crop_hw, dataset.bands.num_bands)
    images = jax.ShapeDtypeStruct(shape, np.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    variables = jax.eval_shape(functools.partial(model.init, train=False), key, images)

    def forward(variables, images, key):
        how = dict(train=True, mutable=["batch_stats"], rngs={"dropout": key})
        return model.apply(variables, images, **how)

    try:
        jax.eval_shape(forward, variables, images, key)
    except SeglossError as error:
        batch_cl = config.sampler.hyperparameters.get("batch_cl")
        why = f", which alone has batch_cl={batch_cl} classes" if batch_cl else ""
        raise SeglossError(
            f"config.model: config.sampler can make a batch of one image{why}. {error}"
        ) from error


def make_configured_loss(
    config: RunConfig, terms: Sequence[Term], pixel_counts: Int[np.ndarray, "n c"]
) -> Callable | ScheduledLoss:
    """Makes the loss of a config, the weighted sum of its terms.

    Args:
        config: the config of a run.
        terms: the result of `choose_terms`.
        pixel_counts: number of pixels of each class in each training image. Class
            weights chosen by name are computed from it.

    Returns:
        A function `(logits, labels, valid=None, **options)`; labels are class ids and
        options those of `compound_loss`. For sigmoid losses, it converts the class ids
        to one mask per logit. If a value of `terms` is `Scheduled`, the result is a
        `ScheduledLoss`, whose `make` returns such a function.
    """
    num_classes = pixel_counts.shape[1]
    num_outputs = config.count_outputs(num_classes)

    def with_weights(chosen: dict[str, Any]) -> dict[str, Any]:
        by_name = chosen.get("class_weights")
        if not callable(by_name):
            return chosen
        if num_outputs < num_classes:
            raise SeglossError(
                "config.loss: class_weights by name need one logit per class, but two "
                "classes share one logit here; use pos_weight if the loss has it."
            )
        return chosen | {"class_weights": by_name(pixel_counts)}

    terms = [(weight, name, with_weights(chosen)) for weight, name, chosen in terms]
    of_sigmoids = config.has_sigmoid_losses

    def make(values: Mapping[str, Any]) -> Callable:
        loss = compound_loss(fill_in(terms, values))

        def loss_of_masks(logits, labels, valid=None, **options):
            masks = jax.nn.one_hot(labels, num_classes, dtype=bool)[..., -num_outputs:]
            valid = None if valid is None else valid[..., None]
            return loss(logits, masks, valid, **options)

        return loss_of_masks if of_sigmoids else loss

    schedules = schedules_of(terms)
    return ScheduledLoss(schedules, make) if schedules else make({})


def make_configured_schedule(config: RunConfig) -> optax.Schedule:
    """Makes the function from step to learning rate."""
    return _choose("schedule", SCHEDULES, config.schedule)(config.total_steps)


def make_configured_optimizer(config: RunConfig) -> optax.GradientTransformation:
    """Makes the optimizer of a config, with its learning-rate schedule."""
    schedule = make_configured_schedule(config)
    name, hyperparameters = config.optimizer.name, config.optimizer.hyperparameters
    check_loss_scale(hyperparameters.get("loss_scale"))
    chosen = bind(
        "optimizer", OPTIMIZERS, name, hyperparameters, elsewhere=["loss_scale"]
    )
    return chosen(schedule)


def choose_terms(config: RunConfig) -> list[Term]:
    """Returns weight, name and hyperparameters of each loss, without config sections.

    A section for a schedule becomes a `Scheduled`. A section for `class_weights`
    becomes a function of the pixel counts.

    Raises:
        ValueError: if a hyperparameter is unknown or cannot follow a schedule.
    """
    names = [term.name for term in config.loss]
    parts = []
    for place, term in enumerate(config.loss, start=1):
        # Number the terms of a loss that occurs more than once.
        title = term.name if names.count(term.name) == 1 else f"{term.name}_{place}"
        chosen = {"weight": term.weight} | term.hyperparameters
        for field, value in chosen.items():
            if not isinstance(value, Mapping):
                continue
            named = parse_named(f"loss.{field}", value)
            if field == "class_weights":
                chosen[field] = _choose(field, CLASS_WEIGHTS, named)
            else:
                make = _choose("loss schedule", LOSS_SCHEDULES, named)
                name = f"loss_schedule/{title}.{field}"
                chosen[field] = Scheduled(name, make(config.total_steps))
        parts.append((chosen.pop("weight"), term.name, chosen))
    compound_loss(fill_in(parts, dict.fromkeys(schedules_of(parts), 1.0)))
    return parts


def _choose(kind: str, registry: Mapping[str, Callable], chosen: Named) -> Any:
    return bind(kind, registry, chosen.name, chosen.hyperparameters)

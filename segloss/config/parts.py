"""Makes the parts of a run, from its config, that need no optimizer."""

import functools
from collections.abc import Callable

import numpy as np
from flax import linen as nn

from segloss.config.parsed import Named, RunConfig
from segloss.data import (
    DATASETS,
    SAMPLERS,
    ClassIndex,
    ClassSets,
    Dataset,
    open_dataset,
)
from segloss.data.samplers import EpochSampler
from segloss.devices import AXIS
from segloss.models import make_model
from segloss.registry import bind


def open_configured_dataset(config: RunConfig) -> Dataset:
    """Opens the dataset of a config, and prepares it first if needed."""
    name = config.data.dataset.name
    hyperparameters = config.data.dataset.hyperparameters
    bind("dataset", DATASETS, name, hyperparameters)
    if hyperparameters.get("root", "") is None:
        raise ValueError("config.data.root is not set; add --config.data.root=DIR.")
    return open_dataset(name, **hyperparameters)


def check_split(dataset: Dataset, split: str) -> None:
    """Raises ValueError if the dataset lacks the split; lists the splits it has."""
    if split not in dataset.splits:
        raise ValueError(
            f"config.evaluate: {dataset.name} has no split {split!r}; "
            f"it has {', '.join(dataset.splits)}."
        )


def make_configured_model(
    config: RunConfig, num_classes: int, *, axis_name: str | None = AXIS
) -> nn.Module:
    """Makes the model of a config.

    Its BatchNorm spans the devices of a step, or one device if `axis_name` is None.
    """
    return make_model(
        config.model.name,
        num_classes=config.count_outputs(num_classes),
        axis_name=axis_name,
        **config.model.hyperparameters,
    )


def choose_sampler(chosen: Named, *, seed: int) -> Callable[[ClassIndex], EpochSampler]:
    """Returns a function from a class index to the sampler.

    A sample has a class if at least `min_pixels` of its pixels do; the default is 1.

    Raises:
        ValueError: if the sampler or one of its hyperparameters is unknown or missing.
    """
    hyperparameters = dict(chosen.hyperparameters)
    min_pixels = hyperparameters.pop("min_pixels", 1)
    choose = functools.partial(
        bind, "sampler", SAMPLERS, chosen.name, hyperparameters, seed=seed
    )
    choose(class_pixels=None)  # checks names before the dataset is opened

    def make(index: ClassIndex) -> EpochSampler:
        class_pixels = index.pixel_counts.sum(axis=0, dtype=np.int64)
        sets = ClassSets.from_counts(index.pixel_counts, min_pixels=min_pixels)
        return choose(class_pixels=np.asarray(class_pixels))(sets)

    return make

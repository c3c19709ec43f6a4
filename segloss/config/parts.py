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
    Windows,
    open_dataset,
)
from segloss.data.samplers import EpochSampler
from segloss.devices import AXIS
from segloss.models import make_model
from segloss.registry import bind

# Fields of `config.augment` that the host uses; the others are those of `augment`.
WINDOW_FIELDS = ("scale_range", "scales", "keep_classes")


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


def choose_windows(config: RunConfig) -> Callable[[ClassIndex], Windows]:
    """Returns a function from the class index to the windows of training crops.

    Raises:
        ValueError: if a hyperparameter is out of range.
    """
    choose = functools.partial(
        Windows,
        crop_hw=config.data.crop_hw,
        min_pixels=config.sampler.hyperparameters.get("min_pixels", 1),
        seed=config.seed,
        **{k: v for k, v in config.augment.items() if k in WINDOW_FIELDS},
    )
    choose()  # checks values before the dataset is opened

    def make(index: ClassIndex) -> Windows:
        samples = ClassSets.from_counts(index.pixel_counts).samples_per_class()
        rare_first = np.argsort(samples, kind="stable")
        return choose(rare_first=tuple(rare_first.tolist()))

    return make


def index_windows(
    dataset: Dataset, index: ClassIndex, sampler: Named, windows: Windows
) -> ClassIndex:
    """The index from which a sampler plans: of images or, if kept, of windows."""
    takes_for_classes = SAMPLERS[sampler.name].takes_for_classes
    if windows.keep_classes and takes_for_classes:
        return dataset.class_index("train", windows)
    return index


def choose_sampler(
    chosen: Named, *, seed: int
) -> Callable[[ClassIndex, ClassIndex], EpochSampler]:
    """Returns a function from the class index to the sampler.

    Its second argument is the result of `index_windows`. A sample has a class if at
    least `min_pixels` of its pixels do; the default is 1.

    Raises:
        ValueError: if the sampler or one of its hyperparameters is unknown or missing.
    """
    hyperparameters = dict(chosen.hyperparameters)
    min_pixels = hyperparameters.pop("min_pixels", 1)
    if min_pixels < 1:
        raise ValueError(f"config.sampler.min_pixels must be >= 1, got {min_pixels}.")
    choose = functools.partial(
        bind, "sampler", SAMPLERS, chosen.name, hyperparameters, seed=seed
    )
    choose(class_pixels=None)  # checks names before the dataset is opened

    def make(index: ClassIndex, planned: ClassIndex) -> EpochSampler:
        class_pixels = index.pixel_counts.sum(axis=0, dtype=np.int64)
        sets = ClassSets.from_counts(planned.pixel_counts, min_pixels=min_pixels)
        return choose(class_pixels=np.asarray(class_pixels))(sets)

    return make

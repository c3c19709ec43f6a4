"""Makes the dataset, the model, the sampler and the crop windows of a config."""

import dataclasses
import functools
import socket
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from flax import linen as nn

from segloss import hosts
from segloss.config.parsed import Named, RunConfig, check_whole
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
from segloss.errors import SeglossError
from segloss.models import make_model
from segloss.registry import bind

T = TypeVar("T")

# Fields of `config.augment` for `Windows`; the others are arguments of `augment`.
WINDOW_FIELDS = ("scale_range", "scales", "keep_classes")


def open_configured_dataset(config: RunConfig) -> Dataset:
    """Opens the dataset of a config; builds its records first if they are missing.

    One process builds them while the others of its run wait; see `after_first`.

    Raises:
        SeglossError: if the dataset cannot be opened or built, or differs between the
            processes of the run in its samples or classes.
    """
    name = config.data.dataset.name
    hyperparameters = config.data.dataset.hyperparameters
    if hyperparameters.get("root", "") is None and not hyperparameters.get("data_dir"):
        raise SeglossError(
            "config.data.root is not set; add --config.data.root=DIR, or "
            "--config.data.data_dir=DIR for a dataset that was prepared before."
        )
    bind("dataset", DATASETS, name, hyperparameters)
    classes = config.data.classes
    dataset = after_first(
        config, lambda: open_dataset(name, classes=classes, **hyperparameters)
    )
    _check_same_on_all_hosts(dataset)
    return dataset


def after_first(config: RunConfig, make: Callable[[], T]) -> T:
    """Calls `make` in the process that prepares files first; then in all others.

    This is the first process of the run, or of each host if they do not share files.
    """
    return hosts.after_first(make, on_each_host=not config.data.shared_files)


def _check_same_on_all_hosts(dataset: Dataset) -> None:
    """Raises SeglossError, in all processes, if the dataset of one of them differs."""
    if hosts.process_count() == 1:
        return
    here = {
        "fingerprint": dataset.fingerprint,
        "classes": list(dataset.class_names),
        "samples": {split: len(dataset.source(split)) for split in dataset.splits},
    }
    first, *others = hosts.exchange({"host": socket.gethostname(), "data": here})
    for process, other in enumerate(others, start=1):
        if other["data"] != first["data"]:
            raise SeglossError(
                f"config.data: {dataset.name} differs between hosts: its fingerprint "
                f"is {other['data']['fingerprint']} for process {process} on host "
                f"{other['host']} ({_describe(other['data'])}), but "
                f"{first['data']['fingerprint']} for process 0 on host "
                f"{first['host']} ({_describe(first['data'])}). Give all hosts the "
                "same files."
            )


def _describe(data: dict[str, Any]) -> str:
    samples = ", ".join(f"{n} in {split}" for split, n in data["samples"].items())
    return f"{len(data['classes'])} classes; samples: {samples}"


def check_split(
    dataset: Dataset, split: str, *, where: str = "config.evaluate"
) -> None:
    """Raises ValueError if the dataset lacks the split; lists the splits it has.

    `where` names the field or the flag that chose the split.
    """
    if split not in dataset.splits:
        can_split = dataset.name == "folder" and "train" in dataset.splits
        raise SeglossError(
            f"{where}: {dataset.name} has no split {split!r}; "
            f"it has {', '.join(dataset.splits)}."
            + " With config.data.root, --config.data.val_fraction=0.1 makes it of a "
            "tenth of train." * (can_split and split == "val")
        )


def find_ignored_classes(config: RunConfig, class_names: Sequence[str]) -> list[int]:
    """Returns the ids of `config.evaluate.ignore_classes_in_mean`.

    Raises:
        ValueError: if there is no such class, or no other one; lists the names.
    """
    ids = []
    for chosen in config.evaluate.ignore_classes_in_mean:
        found = class_names.index(chosen) if chosen in class_names else chosen
        if not isinstance(found, int) or not 0 <= found < len(class_names):
            raise SeglossError(
                "config.evaluate.ignore_classes_in_mean: there is no class "
                f"{chosen!r}; known are {', '.join(class_names)}."
            )
        ids.append(found)
    if len(set(ids)) == len(class_names):
        raise SeglossError(
            "config.evaluate.ignore_classes_in_mean must leave a class, but names all: "
            f"{', '.join(class_names)}."
        )
    return ids


def make_configured_model(
    config: RunConfig, num_classes: int, *, axis_name: str | None = AXIS
) -> nn.Module:
    """Makes the model of a config for a dataset of `num_classes`.

    BatchNorm averages over the devices of the mapped axis `axis_name`; None means that
    each device uses its own statistics.
    """
    return make_model(
        config.model.name,
        num_classes=config.count_outputs(num_classes),
        axis_name=axis_name,
        **config.model.hyperparameters,
    )


def choose_windows(config: RunConfig) -> Callable[[ClassIndex], Windows]:
    """Returns a function that makes the `Windows` from which training crops are cut.

    The function takes the class index of the training split (pixels of each class in
    each image). If a window cannot keep all classes, it keeps the rarest first.

    Raises:
        ValueError: if a hyperparameter is out of range.
    """
    choose = functools.partial(
        Windows,
        crop_hw=config.data.crop_hw,
        min_pixels=_min_pixels(config.sampler),
        seed=config.seed,
        **{k: v for k, v in config.augment.items() if k in WINDOW_FIELDS},
    )
    choose()  # checks values before the dataset is opened

    def make(index: ClassIndex) -> Windows:
        samples = ClassSets.from_counts(index.pixel_counts).samples_per_class()
        rare_first = np.argsort(samples, kind="stable")
        return choose(rare_first=tuple(rare_first.tolist()))

    return make


def _min_pixels(sampler: Named) -> int:
    min_pixels = sampler.hyperparameters.get("min_pixels", 1)
    check_whole("config.sampler.min_pixels", min_pixels, 1)
    return min_pixels


def index_windows(
    dataset: Dataset, index: ClassIndex, sampler: Named, windows: Windows
) -> ClassIndex:
    """Returns the class index (pixels per class and sample) that a sampler plans with.

    This is `index`, which counts whole images. If `windows.keep_classes` is True and
    the sampler chooses samples by class, only classes that fit into one window are
    counted, with their pixels in it: all of them together, or each alone if the sampler
    chooses each sample for one class.
    """
    sampler_class = SAMPLERS[sampler.name]
    if windows.keep_classes and sampler_class.takes_for_classes:
        together = not sampler_class.owes_one
        return dataset.class_index(
            "train", dataclasses.replace(windows, together=together)
        )
    return index


def choose_sampler(
    chosen: Named, *, seed: int
) -> Callable[[ClassIndex, ClassIndex], EpochSampler]:
    """Returns a function that makes the sampler `chosen`.

    The function takes the class index of the training split, and the index to plan with
    from `index_windows`. A sample has a class if at least `min_pixels` of its pixels
    do; this hyperparameter of every sampler is 1 by default.

    Raises:
        ValueError: if the sampler or one of its hyperparameters is unknown or missing.
    """
    hyperparameters = dict(chosen.hyperparameters)
    min_pixels = _min_pixels(chosen)
    hyperparameters.pop("min_pixels", None)
    choose = functools.partial(
        bind, "sampler", SAMPLERS, chosen.name, hyperparameters, seed=seed
    )
    choose(class_pixels=None)  # checks names before the dataset is opened

    def make(index: ClassIndex, planned: ClassIndex) -> EpochSampler:
        class_pixels = index.pixel_counts.sum(axis=0, dtype=np.int64)
        sets = ClassSets.from_counts(planned.pixel_counts, min_pixels=min_pixels)
        try:
            return choose(class_pixels=np.asarray(class_pixels))(sets)
        except SeglossError as error:
            if planned is index:
                raise
            raise SeglossError(
                f"{error} Classes count only where one crop can keep them; "
                "config.augment.keep_classes=False counts all classes of the images."
            ) from error

    return make

"""Shows statistics of a dataset, and of each sampler's draws, before training."""

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from ml_collections import ConfigDict
from rich.console import Console, Group

from segloss.config import (
    Named,
    RunConfig,
    choose_sampler,
    choose_windows,
    index_windows,
    open_configured_dataset,
    parse_config,
)
from segloss.console import make_console, make_progress
from segloss.data import (
    SAMPLERS,
    ClassIndex,
    ClassSets,
    Dataset,
    Windows,
    count_in_crops,
    estimate_acceptance,
    exposures,
)
from segloss.data.samplers import EpochSampler
from segloss.errors import SeglossError
from segloss.losses.balancing import median_frequency
from segloss.remote import opened, shown
from segloss.report import (
    acceptance_table,
    class_crop_table,
    class_exposure_table,
    co_occurrence_table,
    crop_table,
    dataset_figure,
    dataset_table,
    exposure_table,
    save_figure,
)
from segloss.writing import write_json

_EPOCHS = 20
_TRIALS = 2_000
# Images whose labels are read for each sampler, to see what is left after cropping.
_CROPS = 200
# The paper's values, tried in addition to the config's own.
_BATCH_MAX = (4, 6, 9)
# Hyperparameters of other samplers that the config may lack.
_DEFAULTS = {"repeat_factor": {"threshold": 0.1}}


def inspect_dataset(config: ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Prints statistics of the training split and of what each sampler draws from it.

    Writes `inspect.json` and `figures/inspect.png` in `workdir`.

    Args:
        config: the config of a run; only `seed`, `data`, `augment` and `sampler` are
            used.
        workdir: directory for the files, a path or a URL such as `gs://bucket/run`.

    Returns:
        The contents of `inspect.json`. Its main entries are:

        - `classes`: for each class its `name`, its share of the labelled pixels,
          `pixel_share`, the share of the images that have it, `image_share`, and its
          weight by median-frequency balancing, `median_frequency`.
        - `notes`: lines about files that are not read, void pixels and absent classes.
        - `co_occurrence`: a matrix; row i, column j is the share of the images with
          class i that also have class j.
        - `acceptance`: results of `estimate_acceptance` for pairs of `batch_max` (most
          images in a batch) and `batch_cl` (fewest distinct classes). An image has a
          class according to the config's `min_pixels` and `count_background`.
        - `exposures`: for each sampler, `min`, `median` and `max` of how often a sample
          is drawn in `exposure_epochs` epochs, and for each class the share of the
          drawn images that have it, `class_share`.
        - `crops`: for each sampler, the mean number of distinct classes of a batch in
          its images, `classes_in_images`, and in its training crops,
          `classes_in_crops`; the share of the batches with at least `batch_cl` classes
          in the crops, `share_with_batch_cl`, None if the sampler has no `batch_cl`;
          and for each class its share of the labelled pixels of the crops,
          `pixel_share`. Measured on the labels of about 200 images.
    """
    run = parse_config(config)
    with opened(workdir, only=()) as local:
        return _inspect(run, local)


def _inspect(run: RunConfig, workdir: Path) -> dict[str, Any]:
    console = make_console()
    dataset = open_configured_dataset(run)
    chosen = run.sampler.hyperparameters
    index = dataset.class_index("train")
    counts = np.asarray(index.pixel_counts)
    presence = index.presence()
    min_pixels = chosen.get("min_pixels", 1)
    windows = choose_windows(run)(index)
    planned = index_windows(dataset, index, run.sampler, windows)
    sets = ClassSets.from_counts(planned.pixel_counts, min_pixels=min_pixels)
    if not chosen.get("count_background", True):
        sets = sets.without_background()
    weights = median_frequency(counts)
    statistics = {
        "dataset": dataset.name,
        "split": "train",
        "num_images": len(presence),
        "notes": [*dataset.notes, *dataset.describe_classes("train")],
        "classes": _describe_classes(dataset, counts, presence, weights),
        "co_occurrence": _co_occurrence(presence).tolist(),
        "acceptance": _try_pairs(sets, chosen.get("batch_max"), console),
        **_try_samplers(run, dataset, index, windows, console),
        "exposure_epochs": _EPOCHS,
        "crop": str(windows),
    }
    write_json(workdir / "inspect.json", statistics)
    figure = workdir / "figures" / "inspect.png"
    save_figure(dataset_figure(statistics), figure)
    tables = (
        dataset_table,
        co_occurrence_table,
        acceptance_table,
        exposure_table,
        class_exposure_table,
        crop_table,
        class_crop_table,
    )
    console.print(Group(*(table(statistics) for table in tables)))
    for note in statistics["notes"]:
        console.print(note, soft_wrap=True)
    rounded = ", ".join(f"{weight:.4f}" for weight in weights)
    console.print(f"class_weights=({rounded})", soft_wrap=True)
    console.print(f"figure: {shown(figure)}", soft_wrap=True)
    return statistics


def _describe_classes(
    dataset: Dataset,
    counts: Int[np.ndarray, "n c"],
    presence: Bool[np.ndarray, "n c"],
    weights: Float[np.ndarray, " c"],
) -> list[dict[str, Any]]:
    pixels = counts.sum(axis=0, dtype=np.int64)
    shares = pixels / max(1, pixels.sum()), presence.mean(axis=0), weights
    keys = "pixel_share", "image_share", "median_frequency"
    return [
        {"name": name, **dict(zip(keys, map(float, values), strict=True))}
        for name, *values in zip(dataset.class_names, *shares, strict=True)
    ]


def _co_occurrence(presence: Bool[np.ndarray, "n c"]) -> Float[np.ndarray, "c c"]:
    holds = presence.astype(np.float32)
    return holds.T @ holds / np.maximum(1, holds.sum(axis=0))[:, None]


def _try_pairs(
    sets: ClassSets, batch_max: int | None, console: Console
) -> list[dict[str, Any]]:
    """Makes the list `acceptance` of `inspect.json`.

    For each `batch_max` of the paper, and the given one if it is not None, `batch_cl`
    grows from 1 until no attempt to draw such a batch succeeds.
    """
    sizes = sorted({*_BATCH_MAX} | ({batch_max} if batch_max else set()))
    num_classes = int((sets.samples_per_class() > 0).sum())
    pairs = []
    with make_progress(console) as progress:
        task = progress.add_task("pairs", total=len(sizes) * num_classes)
        for batch_max in sizes:
            for batch_cl in range(1, num_classes + 1):
                pair = {"batch_max": batch_max, "batch_cl": batch_cl}
                try:
                    tried = estimate_acceptance(sets, **pair, trials=_TRIALS)
                except SeglossError:  # proven impossible
                    break
                progress.advance(task)
                if tried.acceptance == 0:
                    break
                pairs.append(dataclasses.asdict(tried))
    return pairs


def _try_samplers(
    config: RunConfig,
    dataset: Dataset,
    index: ClassIndex,
    windows: Windows,
    console: Console,
) -> dict[str, dict[str, Any]]:
    """Makes the entries `exposures` and `crops` of `inspect.json`.

    Each sampler takes its hyperparameters from the config; one that lacks any is left
    out, with a message.
    """
    presence = index.presence()
    exposed, cropped = {}, {}
    with make_progress(console) as progress:
        task = progress.add_task("samplers", total=len(SAMPLERS))
        for name, sampler_class in SAMPLERS.items():
            known = {"min_pixels", *inspect.signature(sampler_class).parameters}
            chosen = _DEFAULTS.get(name, {}) | {
                key: value
                for key, value in config.sampler.hyperparameters.items()
                if key in known
            }
            named = Named(name, chosen)
            planned = index_windows(dataset, index, named, windows)
            progress.advance(task)
            try:
                sampler = choose_sampler(named, seed=config.seed)(index, planned)
            except SeglossError as error:
                console.print(f"left out: {error}", soft_wrap=True)
                continue
            drawn = exposures(sampler, _EPOCHS * sampler.batches_per_epoch)
            exposed[name] = {
                "min": int(drawn.min()),
                "median": float(np.median(drawn)),
                "max": int(drawn.max()),
                "class_share": (drawn @ presence / max(1, drawn.sum())).tolist(),
            }
            cropped[name] = _crop(dataset, sampler, windows)
    return {"exposures": exposed, "crops": cropped}


def _crop(dataset: Dataset, sampler: EpochSampler, windows: Windows) -> dict[str, Any]:
    counted = count_in_crops(
        dataset.source("train", images=False),
        sampler,
        windows,
        range(-(-_CROPS // sampler.batch_max)),
        num_classes=dataset.num_classes,
        ignore_label=dataset.ignore_label,
    )
    pixels = counted.crop_pixels
    promised = {"batch_cl": sampler.batch_cl, "first_class": sampler.first_class}
    return {
        "classes_in_images": float(counted.in_images.sum(axis=1).mean()),
        "classes_in_crops": float(counted.in_crops.sum(axis=1).mean()),
        "share_with_batch_cl": (
            None if sampler.batch_cl is None else counted.share_with(**promised)
        ),
        "pixel_share": (pixels / max(1, pixels.sum())).tolist(),
    }

"""What a dataset holds and what the samplers would make of it, before any training."""

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
    open_configured_dataset,
    parse_config,
)
from segloss.console import make_console, make_progress
from segloss.data import (
    SAMPLERS,
    ClassIndex,
    ClassSets,
    Dataset,
    estimate_acceptance,
    exposures,
)
from segloss.losses.balancing import median_frequency
from segloss.report import (
    acceptance_table,
    class_exposure_table,
    co_occurrence_table,
    dataset_figure,
    dataset_table,
    exposure_table,
    save_figure,
)
from segloss.writing import write_json

_EPOCHS = 20
_TRIALS = 2_000
# Beside the config's own; what the paper trains with.
_BATCH_MAX = (4, 6, 9)
# For what the config's own sampler has no field.
_DEFAULTS = {"repeat_factor": {"threshold": 0.1}}


def inspect_dataset(config: ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Prints what the training split holds, and what each sampler would show of it.

    Writes `inspect.json` and `figures/inspect.png`.

    Args:
        config: of a run; only `seed`, `data` and `sampler` are read.
        workdir: where the files go.

    Returns:
        What `inspect.json` holds. `classes`: for each its name, `pixel_share`,
        `image_share` and `median_frequency` weight. `co_occurrence`: of the images that
        hold the class of the row, the share that holds that of the column.
        `acceptance`: what `estimate_acceptance` says of each pair that can be met, by
        the classes that the config's `min_pixels` and `count_background` count.
        `exposures`: of each sampler, over `exposure_epochs` of its epochs, `min`,
        `median` and `max` of how often a sample is drawn, and the `class_share` of the
        images drawn that hold a class.
    """
    run, console, workdir = parse_config(config), make_console(), Path(workdir)
    dataset = open_configured_dataset(run)
    chosen = run.sampler.hyperparameters
    index = dataset.class_index("train")
    counts = np.asarray(index.pixel_counts)
    presence = index.presence()
    min_pixels = chosen.get("min_pixels", 1)
    sets = ClassSets.from_counts(index.pixel_counts, min_pixels=min_pixels)
    if not chosen.get("count_background", True):
        sets = sets.without_background()
    weights = median_frequency(counts)
    statistics = {
        "dataset": dataset.name,
        "split": "train",
        "num_images": len(presence),
        "classes": _describe_classes(dataset, counts, presence, weights),
        "co_occurrence": _co_occurrence(presence).tolist(),
        "acceptance": _try_pairs(sets, chosen.get("batch_max"), console),
        "exposures": _expose(run, index, presence, console),
        "exposure_epochs": _EPOCHS,
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
    )
    console.print(Group(*(table(statistics) for table in tables)))
    rounded = ", ".join(f"{weight:.4f}" for weight in weights)
    console.print(f"class_weights=({rounded})", soft_wrap=True)
    console.print(f"figure: {figure}", soft_wrap=True)
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
    """Acceptance of all pairs up to the first that no attempt met."""
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
                except ValueError:  # proven out of reach
                    break
                progress.advance(task)
                if tried.acceptance == 0:
                    break
                pairs.append(dataclasses.asdict(tried))
    return pairs


def _expose(
    config: RunConfig,
    index: ClassIndex,
    presence: Bool[np.ndarray, "n c"],
    console: Console,
) -> dict[str, dict[str, Any]]:
    """Each sampler that can be made of the fields of the config's own."""
    found = {}
    with make_progress(console) as progress:
        task = progress.add_task("samplers", total=len(SAMPLERS))
        for name, sampler_class in SAMPLERS.items():
            known = {"min_pixels", *inspect.signature(sampler_class).parameters}
            chosen = _DEFAULTS.get(name, {}) | {
                key: value
                for key, value in config.sampler.hyperparameters.items()
                if key in known
            }
            progress.advance(task)
            try:
                make = choose_sampler(Named(name, chosen), seed=config.seed)
                sampler = make(index)
            except ValueError as error:
                console.print(f"left out: {error}", soft_wrap=True)
                continue
            drawn = exposures(sampler, _EPOCHS * sampler.batches_per_epoch)
            found[name] = {
                "min": int(drawn.min()),
                "median": float(np.median(drawn)),
                "max": int(drawn.max()),
                "class_share": (drawn @ presence / max(1, drawn.sum())).tolist(),
            }
    return found

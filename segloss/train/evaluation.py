"""Evaluation: each image once, counts added up as integers, divided once."""

import collections
import dataclasses
import math
import platform
import subprocess
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float64, Int, Int64

from segloss import __version__, metrics
from segloss.data import Dataset, InOrder, iterate_batches, round_up
from segloss.train.inference import Inference
from segloss.train.step import shard

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
# Positions of images in a split, and the confusion of each.
OnConfusions = Callable[[Int64[np.ndarray, " b"], Int[np.ndarray, "b c c"]], None]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Confusion counts of one split, and a score for each of its images.

    Attributes:
        split: name of the split.
        confusion: counts of the whole split: rows are labels, columns are predictions.
        image_scores: mean IoU of each image alone, in the split's order; NaN for one
            without a labelled pixel.
    """

    split: str
    confusion: Int64[np.ndarray, "c c"]
    image_scores: Float64[np.ndarray, " n"]


def evaluate(
    evaluation_step: Callable,
    replicated_variables: Any,
    dataset: Dataset,
    split: str,
    *,
    batch_size: int,
    size_multiple: int,
    num_threads: int = 2,
    on_batch: Callable[[int], None] = lambda images: None,
    on_confusions: OnConfusions = lambda ids, confusions: None,
) -> Evaluation:
    """Counts the confusions of one split at the images' full size.

    Each image is padded as prediction pads it, whatever else is in the split. Images
    that then have one size share batches; each size is compiled once. Each image and
    its labels are decoded once, and no confusion is kept longer than its batch.

    Args:
        evaluation_step: from `pmap_evaluation_step`.
        replicated_variables: the model's variables on every device.
        dataset: where the split lies.
        split: which split.
        batch_size: images at once, over all devices.
        size_multiple: both sides are padded to a multiple of so many pixels.
        num_threads: threads that read ahead.
        on_batch: called with the number of images of each batch that is done.
        on_confusions: called with the positions of each batch's images in the split,
            and the confusion of each. The order of the batches is by size of image.

    Raises:
        BadSampleError: if a sample cannot be used, however training takes it: the score
            of the others would be of another split.
    """
    source = dataset.source(split)
    image_hw = np.array([source.label_hw(i) for i in range(len(source))])
    groups = collections.defaultdict(list)
    for i, hw in enumerate(image_hw.tolist()):
        groups[round_up(tuple(hw), size_multiple)].append(i)
    num_classes = dataset.num_classes
    total = np.zeros((num_classes, num_classes), np.int64)
    image_scores = np.full(len(source), np.nan)
    for canvas_hw, ids in groups.items():
        sampler = InOrder(np.array(ids), batch_max=batch_size)
        batches = iterate_batches(
            source,
            sampler,
            start=0,
            stop=len(sampler),
            num_devices=jax.local_device_count(),
            canvas_hw=canvas_hw,
            ignore_label=dataset.ignore_label,
            num_classes=num_classes,
            num_threads=num_threads,
        )
        for k, batch in enumerate(batches):
            present = batch["sample_valid"]
            batch["hw"] = np.full((len(present), 2), canvas_hw, np.int32)
            batch["hw"][present] = image_hw[sampler[k]]
            counts = np.asarray(evaluation_step(replicated_variables, shard(batch)))
            counts = counts.reshape(-1, *counts.shape[2:])[present]
            total += counts.sum(axis=0, dtype=np.int64)
            image_scores[sampler[k]] = metrics.mean_iou(counts)
            on_confusions(sampler[k], counts)
            on_batch(len(counts))
    return Evaluation(split, total, image_scores)


def make_results(
    evaluation: Evaluation,
    dataset: Dataset,
    *,
    inference: Inference,
    step: int,
    images_seen: int | None,
    seconds: float,
    commit: str | None,
    pretrained: dict[str, str] | None,
) -> dict[str, Any]:
    """What `results.json` holds; NaN, where a class has no pixel, is None.

    Args:
        evaluation: counts of the split.
        dataset: where the split lies.
        inference: how often the model saw each image, and how.
        step: steps that the model was trained for.
        images_seen: images that these steps used; None where it is not known.
        seconds: of training.
        commit: of the code that trained it.
        pretrained: file and SHA-256 of the weights that it began with.
    """
    confusion = evaluation.confusion
    scores = {
        "iou": metrics.iou_per_class(confusion),
        "precision": metrics.precision_per_class(confusion),
        "recall": metrics.recall_per_class(confusion),
        "f1": metrics.f1_per_class(confusion),
        "pixel_share": confusion.sum(axis=1) / max(1, confusion.sum()),
    }
    per_class = [
        {"name": name, **{key: float(value[c]) for key, value in scores.items()}}
        for c, name in enumerate(dataset.class_names)
    ]
    return without_nan(
        {
            "summary": metrics.summary(confusion),
            "per_class": per_class,
            "confusion": confusion.tolist(),
            "dataset": dataset.name,
            "fingerprint": dataset.fingerprint,
            "split": evaluation.split,
            "num_images": len(evaluation.image_scores),
            "step": step,
            "images_seen": images_seen,
            "seconds": round(seconds, 1),
            "inference": dataclasses.asdict(inference),
            "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            "versions": versions(),
            "commit": commit,
            "pretrained": pretrained,
        }
    )


def versions() -> dict[str, str]:
    """Of Python, segloss and the packages that the numbers come from."""
    return {
        "python": platform.python_version(),
        "segloss": __version__,
        **{name: metadata.version(name) for name in _PACKAGES},
    }


def rank_images(evaluation: Evaluation) -> Iterator[tuple[str, int, float]]:
    """The best, median and worst image as (rank, position, its own mean IoU).

    An image without a labelled pixel has no score and is left out.
    """
    scores = evaluation.image_scores
    order = np.argsort(-scores, kind="stable")
    order = order[~np.isnan(scores[order])]
    if len(order):
        places = {"best": 0, "median": len(order) // 2, "worst": len(order) - 1}
        for rank, place in places.items():
            yield rank, int(order[place]), float(scores[order[place]])


def without_nan(tree: Any) -> Any:
    """The tree with None for NaN, which JSON does not have."""
    if isinstance(tree, dict):
        return {key: without_nan(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [without_nan(value) for value in tree]
    return None if isinstance(tree, float) and math.isnan(tree) else tree


def current_commit() -> str | None:
    """Commit of the checkout that this file is part of; None outside of one."""
    here = Path(__file__)
    git = ["git", "-C", str(here.parent)]
    described = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        # A package that is installed may lie within the checkout of something else.
        subprocess.run(
            [*git, "ls-files", "--error-unmatch", here.name],
            capture_output=True,
            check=True,
        )
        done = subprocess.run(described, capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()

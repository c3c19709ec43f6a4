"""Evaluation of a split: sums the integer confusion counts of all images."""

import collections
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Float64, Int, Int64

from segloss import metrics
from segloss.config import Inference
from segloss.data import Batch, Dataset, InOrder, Loading, iterate_batches, round_up
from segloss.devices import shard
from segloss.trained.inference import predict_labels

# Takes the positions of images in a split, and the confusion of each.
OnConfusions = Callable[[Int64[np.ndarray, " b"], Int[np.ndarray, "b c c"]], None]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Confusion counts of one split, and a score for each of its images.

    Attributes:
        split: name of the split.
        confusion: counts of the whole split: rows are labels, columns are predictions.
        image_scores: mean IoU of each image alone, in the order of the split; NaN for
            an image without labelled pixels.
    """

    split: str
    confusion: Int64[np.ndarray, "c c"]
    image_scores: Float64[np.ndarray, " n"]


def evaluation_step(
    variables: dict[str, Any],
    batch: Batch,
    *,
    model: nn.Module,
    inference: Inference,
    num_classes: int,
) -> jax.Array:
    """Computes the confusion of each image, int32 `[b, num_classes, num_classes]`."""
    predicted = predict_labels(
        variables, batch["images"], batch["hw"], model=model, inference=inference
    )
    count = functools.partial(metrics.confusion_matrix, num_classes=num_classes)
    return jax.vmap(count)(predicted, batch["labels"], batch["valid"])


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
    """Computes the confusion of one split at the full size of the images.

    Each image is padded as for prediction, independently of the other images. Images
    with the same padded size share batches, and each size is compiled once. Each image
    and its labels are decoded once. The confusions of single images are not kept.

    Args:
        evaluation_step: `evaluation_step`, mapped over the devices.
        replicated_variables: the model's variables on every device.
        dataset: the dataset with the split.
        split: name of the split.
        batch_size: number of images in a batch, over all devices.
        size_multiple: both sides are padded to a multiple of this number of pixels.
        num_threads: number of threads that read ahead.
        on_batch: called after each batch with its number of images.
        on_confusions: called after each batch with the positions of its images in the
            split, and the confusion of each. Batches are grouped by size of image.

    Raises:
        BadSampleError: if a sample cannot be used. It is not skipped, even if training
            skips bad samples, because the score would be that of a smaller split.
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
            Loading(
                canvas_hw=canvas_hw,
                ignore_label=dataset.ignore_label,
                num_classes=num_classes,
                num_threads=num_threads,
            ),
            start=0,
            stop=len(sampler),
            num_devices=jax.local_device_count(),
        )
        for k, batch in enumerate(batches):
            present = batch["sample_valid"]
            counts = np.asarray(evaluation_step(replicated_variables, shard(batch)))
            counts = counts.reshape(-1, *counts.shape[2:])[present]
            total += counts.sum(axis=0, dtype=np.int64)
            image_scores[sampler[k]] = metrics.mean_iou(counts)
            on_confusions(sampler[k], counts)
            on_batch(len(counts))
    return Evaluation(split, total, image_scores)

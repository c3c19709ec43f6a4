"""Datasets, the class index, samplers, augmentation and the loading of batches."""

from segloss.data.augment import augment, normalize
from segloss.data.class_index import ClassIndex
from segloss.data.daformer import read_daformer, write_daformer
from segloss.data.datasets import DATASETS, Dataset, open_dataset
from segloss.data.distances import signed_distances
from segloss.data.folder import read_image, read_labels
from segloss.data.pipeline import (
    Batch,
    InOrder,
    Sampler,
    iterate_batches,
    load_batch,
    put_on_canvas,
    round_up,
)
from segloss.data.samplers import (
    SAMPLERS,
    BalanceBatch,
    RandomBatch,
    most_distinct_classes,
)

__all__ = [
    "DATASETS",
    "SAMPLERS",
    "BalanceBatch",
    "Batch",
    "ClassIndex",
    "Dataset",
    "InOrder",
    "RandomBatch",
    "Sampler",
    "augment",
    "iterate_batches",
    "load_batch",
    "most_distinct_classes",
    "normalize",
    "open_dataset",
    "put_on_canvas",
    "read_daformer",
    "read_image",
    "read_labels",
    "round_up",
    "signed_distances",
    "write_daformer",
]

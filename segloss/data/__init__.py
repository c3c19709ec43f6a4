"""Datasets, pixel counts per class, batch samplers, augmentation and data loading."""

from segloss.data.augment import augment, normalize
from segloss.data.bands import RGB, Bands, to_rgb
from segloss.data.class_index import ClassIndex
from segloss.data.crops import CropCounts, count_in_crops
from segloss.data.daformer import read_daformer, write_daformer
from segloss.data.datasets.chosen_classes import Choice, Classes, parse_classes
from segloss.data.datasets.dataset import DATASETS, Dataset, open_dataset
from segloss.data.decoding.images import read_image
from segloss.data.decoding.labels import read_labels
from segloss.data.decoding.opening import (
    IMAGE_SUFFIXES,
    LABEL_SUFFIXES,
    MAX_IMAGE_PIXELS,
)
from segloss.data.loading.batches import (
    ON_BAD_SAMPLE,
    BadSampleError,
    Batch,
    Loading,
    load_batch,
    put_on_canvas,
    round_up,
)
from segloss.data.loading.distances import signed_distances
from segloss.data.loading.pipeline import (
    InOrder,
    Sampler,
    count_rows,
    iterate_batches,
)
from segloss.data.loading.window import Window
from segloss.data.loading.windows import Windows
from segloss.data.samplers import (
    SAMPLERS,
    Acceptance,
    BalanceBatch,
    ClassSets,
    ClassUniform,
    ForegroundOversample,
    GreedyCover,
    MatchedRandom,
    RandomBatch,
    RareClass,
    RepeatFactor,
    bound_distinct_classes,
    estimate_acceptance,
    exposures,
    most_distinct_classes,
)

__all__ = [
    "DATASETS",
    "IMAGE_SUFFIXES",
    "LABEL_SUFFIXES",
    "MAX_IMAGE_PIXELS",
    "ON_BAD_SAMPLE",
    "RGB",
    "SAMPLERS",
    "Acceptance",
    "BadSampleError",
    "BalanceBatch",
    "Bands",
    "Batch",
    "Choice",
    "ClassIndex",
    "ClassSets",
    "ClassUniform",
    "Classes",
    "CropCounts",
    "Dataset",
    "ForegroundOversample",
    "GreedyCover",
    "InOrder",
    "Loading",
    "MatchedRandom",
    "RandomBatch",
    "RareClass",
    "RepeatFactor",
    "Sampler",
    "Window",
    "Windows",
    "augment",
    "bound_distinct_classes",
    "count_in_crops",
    "count_rows",
    "estimate_acceptance",
    "exposures",
    "iterate_batches",
    "load_batch",
    "most_distinct_classes",
    "normalize",
    "open_dataset",
    "parse_classes",
    "put_on_canvas",
    "read_daformer",
    "read_image",
    "read_labels",
    "round_up",
    "signed_distances",
    "to_rgb",
    "write_daformer",
]

"""Builders that convert datasets to array_record files, and `Dataset` to read them."""

from segloss.data.datasets.dataset import DATASETS, Dataset, open_dataset

__all__ = ["DATASETS", "Dataset", "open_dataset"]

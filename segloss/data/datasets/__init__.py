"""Dataset builders, and datasets opened for reading."""

from segloss.data.datasets.dataset import DATASETS, Dataset, open_dataset

__all__ = ["DATASETS", "Dataset", "open_dataset"]

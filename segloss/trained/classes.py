"""Compares the classes that a model was trained on with those of a dataset."""

from collections.abc import Sequence
from pathlib import Path

from segloss.data import Dataset
from segloss.errors import SeglossError


def describe_changed_classes(before: Sequence[str], now: Sequence[str]) -> str:
    """Says which class names were added and removed, such as "added car; removed road".

    Returns "" if both are the same names in the same order.
    """
    if tuple(before) == tuple(now):
        return ""
    changes = {
        "added": [name for name in now if name not in before],
        "removed": [name for name in before if name not in now],
    }
    words = [f"{verb} {', '.join(names)}" for verb, names in changes.items() if names]
    return "; ".join(words) or "the order changed"


def check_same_classes(workdir: Path, trained: Sequence[str], dataset: Dataset) -> None:
    """Checks that a dataset has the classes that the run in `workdir` was trained on.

    Raises:
        SeglossError: if their names or their order differ; it says how.
    """
    if changes := describe_changed_classes(trained, dataset.class_names):
        raise SeglossError(
            f"{workdir} was trained on {len(trained)} classes, {dataset.name} has "
            f"{len(dataset.class_names)}: {changes}. Use the dataset of the run, or "
            f"train in another --workdir; --config.model.pretrained={workdir} starts "
            "from its weights, with a new class head."
        )

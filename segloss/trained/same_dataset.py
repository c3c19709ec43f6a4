"""What a checkpoint stores of its dataset, to say later what changed in it."""

from collections.abc import Mapping
from typing import Any

from segloss.data import Dataset

_CONTENT = "the contents of images or labels"


def summarise_dataset(dataset: Dataset) -> dict[str, Any]:
    """Returns values, which can be written as JSON, that tell two datasets apart.

    Two datasets may agree in all of them and still hold other pixels; their
    fingerprints then differ.
    """
    return {
        "name": dataset.name,
        "num_samples": {
            x: len(dataset.source(x, images=False)) for x in dataset.splits
        },
        "num_pixels": dict(dataset.num_pixels),
        "choice": None if dataset.choice is None else dataset.choice.to_json(),
    }


def describe_changed_dataset(meta: Mapping[str, Any], dataset: Dataset) -> str:
    """Says what differs between the dataset of a checkpoint and this one, in words.

    Args:
        meta: the values saved with the checkpoint. Those of earlier versions lack the
            result of `summarise_dataset`, and then fewer changes are found.
        dataset: the dataset now, with other contents or another void label.
    """
    before = meta.get("dataset", {})
    now = summarise_dataset(dataset)
    changes = []
    if before.get("name", now["name"]) != now["name"]:
        changes.append(f"it was {before['name']}, is {now['name']}")
    for field, unit in (("num_samples", "samples"), ("num_pixels", "pixels")):
        then = before.get(field, now[field])
        changes += [
            f"{split} had {then.get(split, 0):,} {unit}, has "
            f"{now[field].get(split, 0):,}"
            for split in sorted(then.keys() | now[field].keys())
            if then.get(split, 0) != now[field].get(split, 0)
        ]
    if before.get("choice") != now["choice"]:
        changes.append("config.data.classes chooses or merges other classes")
    if meta["ignore_label"] != dataset.ignore_label:
        changes.append(
            f"the void label was {meta['ignore_label']}, is {dataset.ignore_label}"
        )
    return "; ".join(changes) or _CONTENT

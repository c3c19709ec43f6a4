"""Chooses the splits of a TFDS dataset, and checks that they share no samples."""

import itertools
import warnings
from collections import defaultdict
from typing import Any

from segloss.errors import SeglossError

_VALIDATION = ("validation", "val", "valid", "dev")


def choose_splits(info: Any, chosen: dict[str, str | None]) -> dict[str, str]:
    """Returns the split of TFDS that each split stands for; fills in the defaults."""
    given = [*info.splits]
    splits = dict(chosen)
    if chosen["val"] is None:
        splits["val"] = next((name for name in _VALIDATION if name in given), None)
    if chosen["train"] is None and "train" in given:
        splits["train"] = "train"
        if splits["val"] is None:
            splits |= {"train": "train[:90%]", "val": "train[90%:]"}
    if chosen["test"] is None and "test" in given:
        splits["test"] = "test"
    splits = {name: split for name, split in splits.items() if split is not None}
    listed = ", ".join(f"{x.name} ({x.num_examples:,})" for x in info.splits.values())
    for name, split in splits.items():
        try:
            size = info.splits[split].num_examples
        except (ValueError, KeyError, AssertionError) as error:
            raise SeglossError(
                f"tfds: {name}={split!r} is no split; there are {listed}, and parts of "
                "them such as 'train[:90%]'."
            ) from error
        if not size:
            raise SeglossError(
                f"tfds: {name}={split!r} holds no sample; there are {listed}."
            )
    if "train" not in splits:
        raise SeglossError(f"tfds: set train to one of the splits: {listed}.")
    return splits


def check_overlap(info: Any, splits: dict[str, str]) -> None:
    """Refuses training samples in another split; warns of others that share samples."""
    parts = {name: _parts(info.splits[split]) for name, split in splits.items()}
    for first, second in itertools.combinations(parts, 2):
        shared = sum(
            max(0, min(a.stop, b.stop) - max(a.start, b.start))
            for file in parts[first]
            for a in parts[first][file]
            for b in parts[second].get(file, [])
        )
        if shared:
            problem = (
                f"tfds: {first}={splits[first]!r} and {second}={splits[second]!r} must "
                f"not share samples, got {shared:,} in both; choose other splits."
            )
            if first == "train":
                raise SeglossError(problem)
            warnings.warn(problem, stacklevel=2)


def _parts(split: Any) -> dict[str, list[range]]:
    """Returns the positions of the samples of a split in each record file."""
    parts = defaultdict(list)
    for part in split.file_instructions:
        parts[part.filename].append(range(part.skip, part.skip + part.take))
    return parts

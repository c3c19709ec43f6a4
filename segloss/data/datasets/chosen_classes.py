"""Chooses classes of a dataset, or merges them; the pixels of all others are void."""

import collections
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Integer

from segloss.data.datasets.faults import abridge
from segloss.data.datasets.record_source import RecordSource
from segloss.data.decoding.label_values import LabelValues
from segloss.errors import SeglossError

# The name of a class, or a new name with the names of the classes that it merges.
Classes = Sequence[str | tuple[str, Sequence[str]]]

_WHERE = "config.data.classes"
_EXAMPLE = "('road', ('vehicle', ('car', 'bus')))"


@dataclasses.dataclass(frozen=True)
class Choice:
    """The classes that were chosen of a dataset.

    Attributes:
        stored: names of all classes of the dataset.
        names: names of the chosen classes; their ids are 0, 1, ...
        ids: for each stored class the id of its chosen class, or `ignore_label`.
        ignore_label: label of pixels that do not count, before and after the choice.
    """

    stored: tuple[str, ...]
    names: tuple[str, ...]
    ids: tuple[int, ...]
    ignore_label: int

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Choice":
        """Returns what `to_json` has made into plain values."""
        lists = {k: tuple(fields[k]) for k in ("stored", "names", "ids")}
        return cls(**lists, ignore_label=fields["ignore_label"])

    def to_json(self) -> dict[str, Any]:
        """Returns the attributes as values that can be written as JSON."""
        return {
            "stored": list(self.stored),
            "names": list(self.names),
            "ids": list(self.ids),
            "ignore_label": self.ignore_label,
        }

    @property
    def is_all(self) -> bool:
        """True if all classes are chosen, with their names and ids."""
        return self.names == self.stored and self.ids == (*range(len(self.names)),)

    def relabel(self, ids: Integer[np.ndarray, "h w"]) -> Integer[np.ndarray, "h w"]:
        """Converts ids of the stored classes to those of the chosen classes.

        Raises:
            UnfitError: if a pixel is neither of a stored class nor void.
        """
        return self._values.of_values(ids)

    def describe(self) -> list[str]:
        """Returns lines about the classes that are void, and those that are merged."""
        pairs = list(zip(self.stored, self.ids, strict=True))
        void = [name for name, id in pairs if id == self.ignore_label]
        lines = []
        if void:
            lines.append(
                f"data.classes: {len(void)} of {len(self.stored)} classes are void: "
                f"{abridge(void, in_order=True)}"
            )
        for id, new in enumerate(self.names):
            merged = [name for name, its_id in pairs if its_id == id]
            if merged != [new]:
                lines.append(f"data.classes: {new} is {', '.join(merged)}")
        return lines

    @functools.cached_property
    def _values(self) -> LabelValues:
        return LabelValues(
            len(self.names),
            self.ignore_label,
            {self.ignore_label: self.ignore_label} | dict(enumerate(self.ids)),
            listed_in="the dataset",
            remedy="prepare it again",
        )


def parse_classes(classes: Any) -> list[tuple[str, tuple[str, ...]]]:
    """Returns for each chosen class its name, and the names of the stored classes.

    Raises:
        SeglossError: if `classes` is not of the form `Classes`, is empty, or has a name
            twice.
    """
    rule = f"{_WHERE} must be a tuple of names of classes, such as {_EXAMPLE}"
    if not isinstance(classes, list | tuple) or not classes:
        raise SeglossError(f"{rule}, got {classes!r}.")
    parsed = []
    for chosen in classes:
        pair = (chosen, (chosen,)) if isinstance(chosen, str) else chosen
        if not _is_pair(pair):
            raise SeglossError(f"{rule}, got {chosen!r} in it.")
        parsed.append((pair[0], tuple(pair[1])))
    new = [name for name, _ in parsed]
    stored = [name for _, names in parsed for name in names]
    for names in (new, stored):
        name, count = collections.Counter(names).most_common(1)[0]
        if count > 1:
            raise SeglossError(
                f"{_WHERE} must name each class once, but {name!r} is "
                f"there {count} times; remove all but one."
            )
    return parsed


def _is_pair(pair: Any) -> bool:
    return (
        isinstance(pair, list | tuple)
        and len(pair) == 2
        and isinstance(pair[0], str)
        and isinstance(pair[1], list | tuple)
        and len(pair[1]) > 0
        and all(isinstance(name, str) for name in pair[1])
    )


def choose(
    classes: Classes, dataset: str, stored: tuple[str, ...], ignore_label: int
) -> Choice:
    """Returns the choice `classes` of the classes of a dataset.

    Args:
        classes: names of classes, in the order of their new ids; for a class that
            merges others, its new name and their names.
        dataset: name of the dataset, for messages.
        stored: names of all classes of the dataset.
        ignore_label: label of pixels that do not count.

    Raises:
        SeglossError: if the dataset has no such class, with the names that it has; or
            as `parse_classes` does.
    """
    parsed = parse_classes(classes)
    id_of = {name: id for id, (_, names) in enumerate(parsed) for name in names}
    for name in id_of:
        if name not in stored:
            raise SeglossError(
                f"{_WHERE}: {dataset} has no class {name!r}; known are "
                f"{', '.join(stored)}."
            )
    return Choice(
        stored=stored,
        names=tuple(name for name, _ in parsed),
        ids=tuple(id_of.get(name, ignore_label) for name in stored),
        ignore_label=ignore_label,
    )


class ChosenSource:
    """The samples of a source with the ids of the chosen classes; picklable.

    Indexing raises `BadSampleError` also if a label is neither a class id nor void.
    """

    def __init__(self, source: RecordSource, choice: Choice):
        self.split = source.split
        self._source = source
        self._choice = choice

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, i: Any) -> dict[str, Any]:
        return self._relabelled(self._source[i])

    def opened(self, i: Any) -> dict[str, Any]:
        """Returns sample i with an image that is decoded when it is sliced."""
        return self._relabelled(self._source.opened(i))

    def label_hw(self, i: Any) -> tuple[int, int]:
        """Returns height and width of the labels of sample i without decoding them."""
        return self._source.label_hw(i)

    def _relabelled(self, sample: dict[str, Any]) -> dict[str, Any]:
        with self._source.faults_named("labels", sample["stem"]):
            return sample | {"labels": self._choice.relabel(sample["labels"])}


def open_chosen(
    open_source: Callable[..., RecordSource],
    choice: Choice,
    split: str,
    *,
    images: bool = True,
) -> ChosenSource:
    """Opens the samples of a split with the ids of the chosen classes."""
    return ChosenSource(open_source(split, images=images), choice)

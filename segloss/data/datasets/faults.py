"""Faults of a dataset's files, gathered into one line per kind."""

import collections
import dataclasses
import functools
import os
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from segloss.errors import SeglossError, printable

_SHOWN = 5  # number of names in a message


@dataclasses.dataclass(frozen=True)
class Fault:
    """One problem with a file, and how to solve it.

    Attributes:
        path: the file, relative to the root.
        rule: the rule that is broken; equal for all files with the same problem.
        remedy: what to do; equal for all files with the same problem.
        got: what was found in this file; "" if `rule` says it.
    """

    path: str
    rule: str
    remedy: str
    got: str = ""

    def __str__(self) -> str:
        got = f", got {self.got}" if self.got else ""
        return printable(f"{self.path}: {self.rule}{got}; {self.remedy}")


class DatasetError(SeglossError):
    """The files of a dataset are missing or invalid.

    Attributes:
        root: folder of the dataset.
        faults: all faults. The message has a line for each kind of fault, with the
            number of files and the first names.
        dataset: name of the builder.
        instructions: where to get the data and how to arrange them; the last lines of
            the message.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        faults: Iterable[Fault],
        *,
        dataset: str = "folder",
        instructions: str = "",
    ):
        self.root, self.faults = root, tuple(faults)
        self.dataset, self.instructions = dataset, instructions
        count = len(self.faults)
        super().__init__(
            f"{dataset}: {root} has {count:,} fault{'s' * (count > 1)}, nothing was "
            "written:\n"
            + "\n".join(f"  {line}" for line in summarize(self.faults))
            + (f"\n{instructions}" if instructions else "")
        )

    def __reduce__(self) -> tuple[Any, ...]:
        make = functools.partial(
            type(self), dataset=self.dataset, instructions=self.instructions
        )
        return make, (self.root, self.faults)


def summarize(faults: Iterable[Fault]) -> list[str]:
    """Returns a line for each kind of fault, with at most five of its files."""
    kinds: dict[tuple[str, str], list[Fault]] = collections.defaultdict(list)
    for fault in faults:
        kinds[fault.rule, fault.remedy].append(fault)
    return [
        str(same[0])
        if len(same) == 1
        else f"{len(same):,} files: {rule}; {remedy}: {_name(same)}"
        for (rule, remedy), same in kinds.items()
    ]


def _name(faults: Sequence[Fault]) -> str:
    named = [f"{x.path} (got {x.got})" if x.got else x.path for x in faults]
    return abridge(named, in_order=True)


def abridge(names: Collection[str], *, in_order: bool = False) -> str:
    """Returns a text with the first five names and the number of the others.

    The names are sorted, unless `in_order` is True.
    """
    shown = ", ".join([*(names if in_order else sorted(names))][:_SHOWN])
    return printable(shown) + f" and {len(names) - _SHOWN:,} more" * (
        len(names) > _SHOWN
    )

"""Reads `classes.txt`: the names of the classes, and how label files write them.

    0 background
    1 road #804080
    2 car #0000ff values=13,14
    void values=0,254,255 #000000

Each line is an index, a name, and optionally colours and the values that mean the
class. Indices count up from 0. Without `values=`, the value of a class is its index;
without a line `void`, the value `ignore_label` is void. A line that starts with # is a
comment.
"""

import re
import stat
from pathlib import Path
from typing import NamedTuple

from segloss.data.datasets.faults import Fault
from segloss.data.decoding.label_values import MAX_CLASSES, MAX_VALUE, LabelValues

NAME = "classes.txt"
_CODE = re.compile(r"#[0-9a-fA-F]{6}|values=[0-9]+(?:,[0-9]+)*")
_MAX_BYTES = 1 << 24
# Invisible characters that the words of some languages need.
_JOINERS = dict.fromkeys(map(ord, "\u200c\u200d"))


class ClassList(NamedTuple):
    """The classes of a dataset; without names and values if there are faults."""

    names: tuple[str, ...]
    values: LabelValues | None
    faults: list[Fault]


class _Line(NamedTuple):
    """A line of the file: the words before its first colour or values, and these."""

    where: str
    words: list[str]
    values: list[int]
    colours: list[int]


def read_classes(root: Path, ignore_label: int) -> ClassList:
    """Reads `root/classes.txt`.

    Args:
        root: folder with the file.
        ignore_label: id of pixels that do not count; not a class id.
    """
    path = root / NAME
    try:
        if fault := _file_fault(path):
            return ClassList((), None, [fault])
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        remedy = (
            "write a line `index name` per class, or run "
            "`python -m segloss.data.scan DIR` to make it"
        )
        return ClassList((), None, [Fault(NAME, "is missing", remedy)])
    except (OSError, UnicodeDecodeError) as error:
        return ClassList(
            (), None, [Fault(NAME, "must be UTF-8 text", "rewrite it", str(error))]
        )
    faults: list[Fault] = []
    lines = [
        _split(f"{NAME} line {number}", line)
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    names: list[str] = []
    values: dict[int, int] = {}
    colours: dict[int, int] = {}
    has_void = False
    for line in lines:
        if line.words == ["void"]:
            has_void, id = True, ignore_label
        else:
            id = len(names)
            if fault := _class_fault(line, names, ignore_label):
                faults.append(fault)
            names.append("".join(line.words[1:]))
        own = line.values or ([id] if line.words != ["void"] else [])
        faults += _claim(line.where, values, own, id, "{}")
        faults += _claim(line.where, colours, line.colours, id, "#{:06x}")
    if not names:
        faults.append(Fault(NAME, "is empty", "write a line `index name` per class"))
    if faults:
        return ClassList((), None, faults)
    if not has_void:
        values.setdefault(ignore_label, ignore_label)
    return ClassList(
        tuple(names), LabelValues(len(names), ignore_label, values, colours), []
    )


def _file_fault(path: Path) -> Fault | None:
    """Returns why a file is not read, or None."""
    about = path.stat()
    # A pipe would never end.
    if not stat.S_ISREG(about.st_mode):
        return Fault(NAME, "must be a file of text", "rewrite it")
    if about.st_size > _MAX_BYTES:
        rule = f"must have at most {_MAX_BYTES:,} bytes"
        return Fault(NAME, rule, "rewrite it", f"{about.st_size:,}")
    return None


def _split(where: str, line: str) -> _Line:
    words = list(re.finditer(r"\S+", line))
    codes: list[str] = []
    while len(words) > 1 and _CODE.fullmatch(words[-1][0]):
        codes.append(words.pop()[0])
    values, colours = [], []
    for code in reversed(codes):
        if code.startswith("#"):
            colours.append(int(code[1:], 16))
        else:
            values += map(_to_value, code.removeprefix("values=").split(","))
    name = line[: words[-1].end()].split(maxsplit=1)
    return _Line(where, name, values, colours)


def _to_value(digits: str) -> int:
    # Python refuses to convert thousands of digits.
    return int(digits) if len(digits) < 20 else 10**20


def _claim(
    where: str, owners: dict[int, int], claimed: list[int], id: int, text: str
) -> list[Fault]:
    """Notes in `owners` that values or colours mean `id`; returns what is wrong."""
    faults = []
    for key in claimed:
        if owners.setdefault(key, id) != id:
            rule = "must not list what an earlier line lists"
            faults.append(Fault(where, rule, "remove one of them", text.format(key)))
        elif text == "{}" and key > MAX_VALUE:
            rule = f"must have values <= {MAX_VALUE}"
            faults.append(Fault(where, rule, "labels are at most 16-bit", str(key)))
    return faults


def _class_fault(line: _Line, names: list[str], ignore_label: int) -> Fault | None:
    """Returns what is wrong with a line `index name`, or None.

    `names` are the classes of the lines before.
    """
    index, name = (*line.words, "", "")[:2]
    expected = len(names)
    if index != str(expected) or not name:
        remedy = "indices count up from 0, and a value that differs follows: `values=N`"
        got = f"`{index} {name}`"
        if index.isdecimal() and name:
            got += f", which may be `{expected} {name} values={index}`"
        return Fault(line.where, "must be `INDEX NAME`", remedy, got)
    if wrong := [x for x in name.split() if x.lower().startswith(("#", "values="))]:
        remedy = "a colour is #rrggbb, and values are numbers as in values=13,14"
        return Fault(
            line.where, "must be `INDEX NAME #rrggbb values=N,N`", remedy, wrong[0]
        )
    if not name.translate(_JOINERS).isprintable():
        rule = "must have a name of letters that can be printed"
        return Fault(line.where, rule, "rename it", repr(name))
    if name in names:
        rule = "must name a class that no earlier line names"
        return Fault(line.where, rule, "rename it", repr(name))
    if expected == ignore_label:
        remedy = "remove the line, or set --config.data.ignore_label=65535"
        return Fault(line.where, "must not be ignore_label", remedy, index)
    if expected >= MAX_CLASSES:
        rule = f"must have an index < {MAX_CLASSES}"
        return Fault(line.where, rule, "labels are at most 16-bit", index)
    return None

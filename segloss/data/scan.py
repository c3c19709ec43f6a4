"""Looks at a folder of images and labels, and writes a classes.txt to start from.

python -m segloss.data.scan DIR

Shows the values or colours of the label files with their shares, the suffixes of the
files, and what is not read. An existing classes.txt is not changed.
"""

import argparse
import collections
import dataclasses
import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table

from segloss.console import make_console, make_progress
from segloss.data.datasets import classes_file
from segloss.data.datasets.checking import map_ahead
from segloss.data.datasets.faults import DatasetError, Fault, abridge, summarize
from segloss.data.datasets.layouts import find_layout
from segloss.data.datasets.pairs import Pair, guess_label_suffix, pair_up, relative
from segloss.data.decoding.label_values import pack_colours
from segloss.data.decoding.labels import RawLabels, read_raw_labels
from segloss.data.decoding.opening import UnfitError, read_file
from segloss.errors import SeglossError, explain
from segloss.writing import write_text

VOID = 255
# More colours than this are no classes: labels were resized or stored with loss.
MAX_COLOURS = 256


@dataclasses.dataclass
class Scan:
    """What a folder holds.

    Attributes:
        root: the folder.
        pairs: number of pairs of images and labels, by split.
        label_suffix: what the names of labels end with, after those of their images.
        suffixes: number of files by kind ("images", "labels") and suffix.
        unread: files and folders that are not read, relative to `root`.
        faults: what is wrong with the files.
        pixels: number of pixels of each value, or of each colour as 0xRRGGBB.
        files: number of label files that have each value or colour.
        colours: True if `pixels` and `files` count colours.
    """

    root: Path
    pairs: dict[str, int]
    label_suffix: str
    suffixes: dict[str, collections.Counter]
    unread: list[str]
    faults: list[Fault]
    pixels: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    files: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    colours: bool = False


def scan(root: str | os.PathLike[str], label_suffix: str | None = None) -> Scan:
    """Reads all label files of a folder, with a progress bar.

    Args:
        root: folder with the data; see `layouts` for where its files may lie.
        label_suffix: what the names of labels end with; None guesses it.

    Raises:
        DatasetError: if no pair of an image and a label is found.
    """
    root = Path(root).expanduser().resolve()
    layout = find_layout(root) if root.is_dir() else None
    if layout is None or not layout.folders:
        faults = layout.faults if layout else [Fault(".", "is no folder", "check it")]
        raise DatasetError(root, faults)
    if label_suffix is None:
        guesses = [guess_label_suffix(*folders) for folders in layout.folders.values()]
        label_suffix = max(guesses, key=len)
    found = {
        split: pair_up(root, *folders, label_suffix=label_suffix)
        for split, folders in layout.folders.items()
    }
    pairs = [pair for of_split in found.values() for pair in of_split.pairs]
    faults = [fault for of_split in found.values() for fault in of_split.faults]
    if not pairs:
        remedy = "check the names of the files"
        raise DatasetError(
            root, faults or [Fault(".", "holds no image with a label", remedy)]
        )
    result = Scan(
        root=root,
        pairs={split: len(of_split.pairs) for split, of_split in found.items()},
        label_suffix=label_suffix,
        suffixes={
            "images": collections.Counter(pair.image.suffix for pair in pairs),
            "labels": collections.Counter(pair.labels.suffix for pair in pairs),
        },
        unread=[
            *layout.unread,
            *(x for of_split in found.values() for x in of_split.unread),
        ],
        faults=[*layout.faults, *faults],
    )
    _read_all(result, pairs)
    return result


def _read_all(result: Scan, pairs: list[Pair]) -> None:
    """Adds the content of all label files to `result`."""
    palettes, differ, has_colours = {}, False, False

    def read(pair: Pair) -> RawLabels | Fault:
        try:
            return read_raw_labels(read_file(pair.labels))
        except UnfitError as error:
            name = relative(result.root, pair.labels)
            return Fault(name, error.rule, error.remedy, error.got)

    by_value = collections.Counter(), collections.Counter()
    by_colour = collections.Counter(), collections.Counter()
    with (
        make_progress(transient=True) as bar,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        all_labels = map_ahead(pool, read, pairs)
        for labels in bar.track(all_labels, len(pairs), description="Reading labels"):
            if isinstance(labels, Fault):
                result.faults.append(labels)
                continue
            # Files of one colour may be grey among others that are not.
            pixels, colours = labels.pixels, labels.pixels
            if labels.palette is not None:
                colours = labels.palette[pixels]
            elif pixels.ndim == 2:
                colours = np.repeat(np.minimum(pixels, 255)[..., None], 3, axis=-1)
            if pixels.ndim == 3 and (pixels == pixels[..., :1]).all():
                pixels = pixels[..., 0]
            _add(*by_colour, pack_colours(colours))
            if pixels.ndim == 3:
                has_colours = True
                continue
            values = _add(*by_value, pixels)
            if labels.palette is not None:
                packed = pack_colours(labels.palette)
                for value in values:
                    colour = int(packed[value])
                    differ |= palettes.setdefault(value, colour) != colour
    result.colours = differ or has_colours
    result.pixels, result.files = by_colour if result.colours else by_value


def _add(
    pixels: collections.Counter, files: collections.Counter, found: np.ndarray
) -> list[int]:
    values, counts = np.unique(found, return_counts=True)
    values = values.tolist()
    pixels.update(dict(zip(values, counts.tolist(), strict=True)))
    files.update(values)
    return values


def make_classes(scan: Scan) -> str:
    """Makes the text of a classes.txt with a class for each value or colour.

    The value 255 is left out, since it is void, unless there are no two others.

    Raises:
        SeglossError: if there are more than `MAX_COLOURS` colours.
    """
    if scan.colours and len(scan.pixels) > MAX_COLOURS:
        raise SeglossError(
            f"{scan.root}: labels have {len(scan.pixels):,} colours, too many for "
            "classes; they were resized with interpolation, or stored with loss. "
            "Export them again from the original masks."
        )
    values = sorted(scan.pixels)
    if not scan.colours and 2 < len(values) < VOID:
        values = [value for value in values if value != VOID]
    total = sum(scan.pixels.values())
    lines = [
        "# Made by segloss.data.scan: rename the classes. To merge two, write the",
        "# values of both on one line. Values that do not count go on a line",
        "# `void values=...`.",
    ]
    for index, value in enumerate(values):
        share, files = scan.pixels[value] / total, scan.files[value]
        lines.append(f"# {share:.2%} of the pixels, in {files:,} label files")
        text = _show(scan, value)
        codes = [] if scan.colours or value == index else [f"values={value}"]
        codes += [text] if scan.colours else []
        name = f"class_{text.removeprefix('#')}"
        lines.append(" ".join([str(index), name, *codes]))
    return "\n".join(lines) + "\n"


def _show(scan: Scan, value: int) -> str:
    return f"#{value:06x}" if scan.colours else str(value)


def make_report(scan: Scan) -> RenderableType:
    """Makes a table of the values or colours, and lines about the files."""
    what = "colour" if scan.colours else "value"
    table = Table(title=f"labels of {scan.root}")
    for column in (what, "share of pixels", "label files"):
        table.add_column(column, justify="right")
    total = sum(scan.pixels.values())
    for value, pixels in scan.pixels.most_common(50):
        row = _show(scan, value), f"{pixels / total:.2%}", f"{scan.files[value]:,}"
        table.add_row(*row)
    lines = [f"pairs: {_counts(scan.pairs.items())}"]
    lines += [f"{kind}: {_counts(n.items())}" for kind, n in scan.suffixes.items()]
    if len(scan.pixels) > 50:
        lines.append(f"{len(scan.pixels) - 50:,} more {what}s are not shown")
    if scan.unread:
        lines.append(f"not read: {len(scan.unread):,}: {abridge(scan.unread)}")
    return Group(table, *lines, *summarize(scan.faults))


def _counts(items: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in items)


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m segloss.data.scan",
        description="Looks at a folder of images and labels, and writes a classes.txt "
        "to start from. An existing classes.txt is not changed.",
    )
    parser.add_argument("root", metavar="DIR", help="folder with the data")
    parser.add_argument(
        "--label_suffix",
        help="what the names of labels end with, such as _mask; guessed if not given",
    )
    args = parser.parse_args(argv)
    console = make_console()
    try:
        result = scan(args.root, args.label_suffix)
        console.print(make_report(result))
        if not result.pixels:
            raise SeglossError(
                "no label image can be read, so there is no classes.txt."
            )
        path = result.root / classes_file.NAME
        if path.exists():
            console.print(f"{path} exists and is not changed", soft_wrap=True)
        else:
            write_text(path, make_classes(result))
            console.print(f"wrote {path}: rename its classes", soft_wrap=True)
    except Exception as error:
        if line := explain(error):
            sys.exit(f"error: {line}")
        raise
    console.print(f"then: {_command(result)}", soft_wrap=True)


def _command(result: Scan) -> str:
    """Returns the command that trains on the folder."""
    parts = [
        "python run.py --config=configs/folder.py",
        f"--config.data.root={shlex.quote(str(result.root))}",
    ]
    if result.label_suffix:
        parts.append(f"--config.data.label_suffix={shlex.quote(result.label_suffix)}")
    if "val" not in result.pairs:
        parts.append("--config.data.val_fraction=0.1")
    return " ".join([*parts, "--workdir=RUN"])


if __name__ == "__main__":
    main(sys.argv[1:])

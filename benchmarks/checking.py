"""Memory and time to check, write and find again a folder of many small images.

python -m benchmarks.checking
python -m benchmarks.checking --pairs=2000

Each number of pairs runs in a new process, which opens the folder twice: the first time
checks and writes it, the second finds it prepared. "Beyond the start" is the peak of
resident memory minus that after the imports.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from absl import app, flags
from PIL import Image
from rich.table import Table

from segloss.data import open_dataset
from segloss.report import markdown_table

PAIRS = flags.DEFINE_list("pairs", ["2000", "20000"], "Numbers of pairs.")
ROOT = flags.DEFINE_string("root", None, "Of the parent process; internal.")
_SIDE = 64


def main(_: list[str]) -> None:
    """Prints a table of memory and time, one row per number of pairs."""
    if ROOT.value:
        _measure(Path(ROOT.value))
        return
    table = Table("pairs")
    names = "start, MiB", "beyond the start, MiB", "first, s", "again, s"
    for name in names:
        table.add_column(name, justify="right")
    for pairs in map(int, PAIRS.value):
        with tempfile.TemporaryDirectory() as root:
            _write(Path(root) / "images", pairs)
            command = [sys.executable, "-m", "benchmarks.checking"]
            command += [f"--root={root}", "--verbosity=-1"]
            done = subprocess.run(
                command, check=True, text=True, stdout=subprocess.PIPE
            )
        start, peak, first, again = map(float, done.stdout.split()[-4:])
        cells = f"{start:.0f}", f"{peak - start:.0f}", f"{first:.1f}", f"{again:.1f}"
        table.add_row(f"{pairs:,}", *cells)
    print(f"Images of {_SIDE}x{_SIDE} pixels:\n")
    print(markdown_table(table))


def _write(root: Path, pairs: int) -> None:
    """Writes a dataset in the `folder` format to `root`; no two images are equal."""
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (root / "train" / kind).mkdir(parents=True)
    for i in range(pairs):
        labels = np.zeros((_SIDE, _SIDE), np.uint8)
        labels[: i % _SIDE] = 1
        image = rng.integers(0, 256, (_SIDE, _SIDE, 3), np.uint8)
        Image.fromarray(image).save(root / "train" / "images" / f"{i}.png")
        Image.fromarray(labels).save(root / "train" / "labels" / f"{i}.png")
    (root / "classes.txt").write_text("0 ground\n1 block\n")


def _measure(root: Path) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    start = pages * resource.getpagesize() / 2**20
    seconds = []
    for _ in range(2):
        began = time.monotonic()
        open_dataset("folder", root=root / "images", data_dir=root / "data")
        seconds.append(time.monotonic() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(start, peak, *seconds)


if __name__ == "__main__":
    app.run(main)

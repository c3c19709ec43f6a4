"""Measures the planning of samplers on a class index, each in a process of its own."""

import importlib
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table

from benchmarks.synthetic_index import CASES
from segloss.data import SAMPLERS, ClassIndex, ClassSets
from segloss.registry import bind
from segloss.report import make_table

_LOOKUPS = 1_000
Row = Mapping[str, float]


def resident_mib(field: str = "VmRSS") -> float:
    """Returns the memory of this process in MiB, or its peak for the field "VmHWM".

    `getrusage` cannot be used, since its value includes the parent's peak.
    """
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s*(\d+) kB", status)[1]) / 1024


def measure(label: str, path: Path, rounds: int) -> dict[str, float]:
    """Measures the sampler `CASES[label]` on the class index at `path`.

    Returns seconds to open the index; CPU seconds to pack it and to create the sampler;
    samples per second put into batches ("used") and in the index ("seen"); seconds to
    look up a batch of a planned epoch; MiB of the packed index and at the peak of
    planning ("mib"); and samples in batches per sample ("share").
    """
    importlib.import_module(
        "segloss.data.samplers.kernels"
    )  # import numba before measuring
    fields = dict(CASES[label])
    name = fields.pop("name")
    before = resident_mib()
    start = time.perf_counter()
    index = ClassIndex.load(path)
    opening = time.perf_counter() - start
    start = time.process_time()
    sets = ClassSets.from_counts(index.pixel_counts)
    packing = time.process_time() - start
    del index  # unmaps the file
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak, VmHWM
    shares = sets.samples_per_class()
    make = bind("sampler", SAMPLERS, name, fields, class_pixels=shares)
    make(ClassSets(sets.words[:20_000], sets.num_classes))  # compiles
    start = time.process_time()
    sampler = make(sets)
    setup = time.process_time() - start
    speeds = []
    for epoch in range(1, rounds + 1):
        start = time.process_time()
        used = len(sampler._make_plan(epoch).ids)
        seconds = time.process_time() - start
        speeds.append((used / seconds, len(sets) / seconds))
    sampler[0]  # plans the epoch
    start = time.process_time()
    for k in range(_LOOKUPS):
        sampler[k % sampler.batches_per_epoch]
    lookup = (time.process_time() - start) / _LOOKUPS
    return dict(
        opening=opening,
        packing=packing,
        packed_mib=sets.words.nbytes / 2**20,
        setup=setup,
        used=statistics.median(s for s, _ in speeds),
        lookup=lookup,
        seen=statistics.median(s for _, s in speeds),
        mib=resident_mib("VmHWM") - before,
        share=used / len(sets),
    )


def measure_apart(label: str, path: Path, rounds: int) -> dict[str, float]:
    """Returns `measure(label, path, rounds)`, measured in a process of its own."""
    run = [sys.executable, "-m", "benchmarks.planning", label, str(path), str(rounds)]
    printed = subprocess.run(run, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(printed.stdout.splitlines()[-1])


def index_table(measured: Mapping[int, Mapping[str, Row]], target: int) -> Table:
    """Makes the table of the class index, with a row for each number of samples."""
    columns = ("disk, GB", "in memory, GB", "open, ms", "pack, s")
    table = make_table(["samples"], columns)
    for n, rows in measured.items():
        best = min(rows.values(), key=lambda row: row["packing"])
        opening = f"{1e3 * best['opening']:.1f}"
        table.add_row(f"{n:,}", *_index_cells(best, 1, opening))
    times = target / n
    table.add_row(f"{target:,}, extrapolated", *_index_cells(best, times, ""))
    return table


def _index_cells(row: Row, times: float, opening: str) -> Sequence[str]:
    packed = row["packed_mib"] * 2**20
    gigabytes = (f"{times * x / 1e9:.2f}" for x in (row["disk"], packed))
    return *gigabytes, opening, f"{times * row['packing']:.1f}"


def sampler_table(measured: Mapping[int, Mapping[str, Row]], target: int) -> Table:
    """Makes the table of the samplers, with a row for each.

    "Start" is the time to create a sampler, and "epoch" the time to plan an epoch.
    """
    largest = max(measured)
    columns = [f"bytes per sample, {n:.0e}" for n in measured]
    for n in (largest, target):
        columns += [f"{what}, {n:.0e}" for what in ("start, s", "epoch, s", "peak, GB")]
    table = make_table(["sampler"], (*columns, "batch, us"))
    for label, row in measured[largest].items():
        peaks = [rows[label]["mib"] * 2**20 / n for n, rows in measured.items()]
        cells = [f"{peak:.0f}" for peak in peaks]
        for n in (largest, target):
            seconds = n / largest * row["setup"], n / row["seen"]
            cells += [*(f"{x:.1f}" for x in seconds), f"{n * peaks[-1] / 1e9:.2f}"]
        table.add_row(label, *cells, f"{1e6 * row['lookup']:.1f}")
    return table


if __name__ == "__main__":
    label, path, rounds = sys.argv[1:]
    print(json.dumps(measure(label, Path(path), int(rounds))))

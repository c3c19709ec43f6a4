"""What compilers for TPUs and an H100 make of every loss and metric; no chip is needed.

make bench-compiled
make bench-compiled ARGS="--only='dice|tversky' --dtype=float32"
.venv-tpu/bin/python -m benchmarks.compiled --chip=v5e --only=focal --list

Each loss is compiled as value and gradient with respect to the logits. Traffic is the
bytes that the compiled program reads and writes, temporaries what it needs in memory
besides arguments and results, both in multiples of the logits; of a metric, in
multiples of what it reads. Both are exact and the same on every run. Seconds to compile
are those of the CPU on this machine: compare them with others of the same run.

The textbook formula is what a person first writes (`benchmarks/textbook.py`). The floor
reads logits and labels once for the sums over classes or pixels and once for the
gradient, which is written; a loss of sigmoids, whose elements do not need each other,
reads them once. Variants have the figures of ours alone.

Results are kept in `--results`, a file for each chip: a program that is there is not
compiled again. `--output` has the tables of all chips that are there. A chip whose
compiler is not installed is left out; each compiler has an environment of its own.
"""

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import app, flags, logging
from rich.console import Console
from rich.progress import Progress

from benchmarks import chips
from benchmarks.chips import CHIPS, Compiled
from benchmarks.compiled_cases import Case, Key, make_cases
from benchmarks.compiled_tables import (
    Measured,
    Name,
    loss_table,
    variant_table,
    wanted,
)
from benchmarks.environment import command, versions
from benchmarks.loss_rows import parse_shape, pick
from segloss.report import markdown_table
from segloss.writing import write_json, write_text

CHIP = flags.DEFINE_multi_enum("chip", list(CHIPS), list(CHIPS), "Chips.")
DTYPE = flags.DEFINE_multi_enum(
    "dtype", ["float32", "bfloat16"], ["float32", "bfloat16"], "Of logits."
)
SHAPE = flags.DEFINE_string(
    "shape", "8x512x512x21", "Of the logits: batch, spatial sizes, classes."
)
ONLY = flags.DEFINE_string("only", "", "A regular expression that picks cases.")
VARIANTS = flags.DEFINE_bool("variants", True, "Options and other numbers of axes too.")
LIST = flags.DEFINE_bool("list", False, "List the cases, compile none.")
RESULTS = flags.DEFINE_string("results", "runs/compiled", "A folder for the results.")
OUTPUT = flags.DEFINE_string("output", None, "A markdown file to write.")

PACKAGES = ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "optax", "keras")
# What a program compiles to depends on these alone.
COMPILERS = PACKAGES[:4]


def measure_all(
    chip: str,
    device: jax.Device,
    names: Sequence[Name],
    cases: Mapping[Key, Case],
    path: Path,
) -> None:
    """Compiles what the file does not have, and writes it after each program."""
    stored = read(path)
    compilers = versions(COMPILERS)
    if stored.get("compilers") != compilers:
        stored = {"compilers": compilers, "programs": {}, "names": {}}
    stored |= {"versions": versions(PACKAGES)}
    with Progress(transient=True) as progress:
        task = progress.add_task("", total=len(names))
        for dtype, name, who in names:
            described = f"{CHIPS[chip].title}: {name}, {dtype}, {who}"
            progress.update(task, description=described)
            case = cases[dtype, name]
            program = measure(
                device, case.candidates[who], case.inputs, stored["programs"]
            )
            stored["names"][_stored_name((dtype, name, who))] = program
            write_json(path, stored)
            progress.advance(task)


def measure(
    device: jax.Device,
    function: Any,
    inputs: Sequence[Any],
    programs: dict[str, dict[str, Any]],
) -> str:
    """Compiles unless `programs` has it; returns its name there."""
    try:
        lowered = chips.lower(device, function, *inputs)
        name = hashlib.sha256(lowered.as_text().encode()).hexdigest()[:16]
        if name not in programs:
            programs[name] = chips.measure(lowered)._asdict()
    except Exception as error:  # one that cannot be compiled is a result too
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        name = hashlib.sha256(reason.encode()).hexdigest()[:16]
        programs[name] = {"failure": reason}
    return name


def _stored_name(name: Name) -> str:
    return f"{SHAPE.value} {' | '.join(name)}"


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def measured(chip: str, path: Path, names: Sequence[Name]) -> Measured:
    """What the file of a chip has of the names."""
    stored, results, failures = read(path), {}, {}
    for name in names:
        program = stored.get("names", {}).get(_stored_name(name))
        if program is None:
            continue
        figures = stored["programs"][program]
        if "failure" in figures:
            failures[name] = figures["failure"]
        else:
            results[name] = Compiled(**figures)
    return Measured(chip, results, failures, stored.get("versions", ""))


def describe(of_chips: Mapping[str, Measured]) -> Iterator[str]:
    """The command, the versions of each chip's environment, and what fails."""
    yield f"{command('benchmarks.compiled')}\n\nLogits {SHAPE.value}."
    for chip, found in of_chips.items():
        yield f"- {CHIPS[chip].title}: {found.versions}"
        for (dtype, name, who), reason in found.failures.items():
            yield f"- {CHIPS[chip].title} has no {who} {name} of {dtype}: {reason}"


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}; flags start with --.")
    logging.set_verbosity(logging.WARNING)
    shape, folder = parse_shape(SHAPE.value), Path(RESULTS.value)
    here = [chip for chip in CHIP.value if chip in chips.installed()]
    # Before JAX looks for devices, as it may while the cases are made.
    devices = {} if LIST.value else {chip: chips.devices(chip)[0] for chip in here}
    cases = make_cases(shape, DTYPE.value)
    by_name = pick({name: name for _, name in cases}, ONLY.value)
    picked = {
        key: case
        for key, case in cases.items()
        if key[1] in by_name and (VARIANTS.value or not case.plain)
    }
    if LIST.value:
        for (dtype, name), case in picked.items():
            print(f"{dtype} {name}: {', '.join(case.candidates)}")
        return
    names = wanted(picked, cases)
    paths = {chip: folder / f"{chip}.json" for chip in CHIP.value}
    for chip, device in devices.items():
        measure_all(chip, device, names, cases, paths[chip])
    of_chips = {
        chip: measured(chip, path, names)
        for chip, path in paths.items()
        if path.exists()
    }
    if not of_chips:
        # No error: the other environment may have the compiler.
        print(
            f"This environment has no compiler for {', '.join(CHIP.value)}, and "
            f"{folder} no results: run make bench-compiled."
        )
        return
    report(of_chips, picked, cases)


def report(
    of_chips: Mapping[str, Measured],
    picked: Mapping[Key, Case],
    cases: Mapping[Key, Case],
) -> None:
    tables = [make(of_chips, picked, cases) for make in (loss_table, variant_table)]
    tables = [table for table in tables if table.row_count]
    notes = "\n".join(describe(of_chips))
    console = Console(width=None if sys.stdout.isatty() else 220)
    for table in tables:
        console.print(table)
    console.print(notes, soft_wrap=True)
    if OUTPUT.value is not None:
        pages = [*map(markdown_table, tables), notes + "\n"]
        write_text(OUTPUT.value, "\n".join(pages))


if __name__ == "__main__":
    app.run(main)

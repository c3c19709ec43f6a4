"""Memory traffic of every loss and metric, compiled for TPUs and an H100.

The compilers run on the CPU, so the chips are not needed.

make bench-compiled
make bench-compiled ARGS="--only='dice|tversky' --dtype=float32"
.venv-tpu/bin/python -m benchmarks.compiled --chip=v5e --only=focal --list

Each loss is compiled as value and gradient with respect to the logits. Traffic is the
number of bytes that the compiled program reads and writes; temporaries are the memory
it needs in addition to arguments and results. Both are in multiples of the logits (for
a metric, of its inputs), exact and reproducible. Compile times are CPU seconds on this
machine: compare them only within one run.

The textbook formula is a direct implementation (`benchmarks/textbook.py`). The floor is
the least traffic of a loss: it reads logits and labels once for the sums over classes
or pixels, reads them again for the gradient, and writes the gradient. A sigmoid loss
treats each element independently and reads the logits once. For variants only our own
figures are shown.

Results are stored in `--results`, one file per chip; a program found there is not
compiled again. `--output` contains the tables of all chips with results. Chips without
an installed compiler are skipped; each compiler needs its own environment.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags

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
from benchmarks.environment import command, publish, versions
from benchmarks.loss_rows import parse_shape, pick
from segloss import cli
from segloss.console import make_progress
from segloss.writing import write_json

CHIP = flags.DEFINE_multi_enum("chip", list(CHIPS), list(CHIPS), "Chips to use.")
DTYPE = flags.DEFINE_multi_enum(
    "dtype", ["float32", "bfloat16"], ["float32", "bfloat16"], "Dtype of the logits."
)
SHAPE = flags.DEFINE_string(
    "shape", "8x512x512x21", "Shape of the logits: batch, spatial sizes, classes."
)
ONLY = flags.DEFINE_string("only", "", "Regular expression that selects cases.")
VARIANTS = flags.DEFINE_bool("variants", True, "Include options and other ranks.")
LIST = flags.DEFINE_bool("list", False, "List the cases without compiling.")
RESULTS = flags.DEFINE_string("results", "runs/compiled", "Folder for the results.")
OUTPUT = flags.DEFINE_string("output", None, "Markdown file to write.")

PACKAGES = ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "optax", "keras")
# The compiled program depends on these packages only.
COMPILERS = PACKAGES[:4]


def measure_all(
    chip: str,
    device: jax.Device,
    names: Sequence[Name],
    cases: Mapping[Key, Case],
    path: Path,
) -> None:
    """Compiles those programs of `names` that the results at `path` lack.

    The file is written after each. Results of other compiler versions are discarded.
    """
    stored = read(path)
    compilers = versions(COMPILERS)
    if stored.get("compilers") != compilers:
        stored = {"compilers": compilers, "programs": {}, "names": {}}
    stored |= {"versions": versions(PACKAGES)}
    with make_progress(transient=True) as progress:
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
    """Compiles a function unless `programs` has it; returns its key in `programs`.

    The key is a hash of the lowered program, or of the error if compiling fails.
    """
    try:
        lowered = chips.lower(device, function, *inputs)
        name = hashlib.sha256(lowered.as_text().encode()).hexdigest()[:16]
        if name not in programs:
            programs[name] = chips.measure(lowered)._asdict()
    except Exception as error:  # record a failed compilation as a result
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        name = hashlib.sha256(reason.encode()).hexdigest()[:16]
        programs[name] = {"failure": reason}
    return name


def _stored_name(name: Name) -> str:
    return f"{SHAPE.value} {' | '.join(name)}"


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def measured(chip: str, path: Path, names: Sequence[Name]) -> Measured:
    """Returns the results and failures of `names` that the file at `path` has."""
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
    """Yields lines with the command, the versions for each chip, and the failures."""
    yield f"{command('benchmarks.compiled')}\n\nLogits {SHAPE.value}."
    for chip, found in of_chips.items():
        yield f"- {CHIPS[chip].title}: {found.versions}"
        for (dtype, name, who), reason in found.failures.items():
            yield f"- {CHIPS[chip].title} fails on {who} {name} ({dtype}): {reason}"


def main(argv: list[str]) -> None:
    shape, folder = parse_shape(SHAPE.value), Path(RESULTS.value)
    here = [chip for chip in CHIP.value if chip in chips.installed()]
    # Before `make_cases`, which may initialise JAX's backends.
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
        # Not an error: the other environment may have the compiler.
        print(
            f"This environment has no compiler for {', '.join(CHIP.value)}, and "
            f"{folder} has no results: run make bench-compiled."
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
    publish(tables, notes, OUTPUT.value)


if __name__ == "__main__":
    cli.run(main)

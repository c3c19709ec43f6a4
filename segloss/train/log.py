"""Writes the metrics of a run to files, and summarises them for the progress bar."""

import contextlib
import json
import math
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import tensorboardX

from segloss import hosts
from segloss.devices import first_replica
from segloss.errors import SeglossError
from segloss.locking import is_at
from segloss.train.loss_scaling import MOST_SKIPPED, explain_skipped
from segloss.train.non_finite import (
    BATCH_STATS_FINITE,
    NonFiniteError,
    explain_non_finite,
    find_non_finite,
)
from segloss.train.resources import compilations, measure_memory
from segloss.train.setup import Setup
from segloss.train.workdir import gone
from segloss.writing import naming, write_text

# Steps that may be queued before the host waits for one: enough to keep a device busy,
# and few enough that collectives on CPU devices do not run out of threads.
_IN_FLIGHT = 10

# Scalars that depend on the machine and its load: two equal runs differ in them.
OF_THE_MACHINE = (
    "images_per_second",
    "seconds_per_step",
    "data_wait_fraction",
    "compilations",
    "host_memory_gib",
    "host_memory_peak_gib",
    "device_memory_gib",
    "device_memory_peak_gib",
)
# Scalars of a step that are judged, but not written.
_ONLY_JUDGED = (BATCH_STATS_FINITE, "skipped_in_a_row")


class MetricWriter:
    """Writes scalars by step to `metrics.jsonl` and `tensorboard/` in `workdir`.

    Of several processes, only the first writes; the writer of another has no values.

    Args:
        workdir: the run's directory.
        start_step: number of steps taken before the run starts or resumes. Lines of
            `metrics.jsonl` with a later step, written by a killed run, are removed, and
            so are damaged lines, with a warning.
    """

    def __init__(self, workdir: Path, *, start_step: int):
        first = hosts.is_first()
        path = workdir / "metrics.jsonl" if first else Path(os.devnull)
        kept = _read_lines(path, start_step) if first and path.exists() else []
        if first:
            write_text(path, "".join(f"{line}\n" for line, _ in kept))
        self._before = [scalars for _, scalars in kept]
        self._path = path
        self._file = path.open("a")
        self._tensorboard = tensorboardX.SummaryWriter(
            str(workdir / "tensorboard"),
            purge_step=start_step + 1,
            max_queue=100,
            write_to_disk=first,
        )

    def has(self, step: int, name: str) -> bool:
        """Whether `metrics.jsonl` had this scalar when the writer was made."""
        return any(x["step"] == step and name in x for x in self._before)

    def values(self, name: str) -> list[tuple[int, float | None]]:
        """Step and value of a scalar in `metrics.jsonl` when the writer was made.

        The value is None where it was NaN.
        """
        found = [(x["step"], x[name]) for x in self._before if name in x]
        return [(step, x) for step, x in found if isinstance(x, int | float | None)]

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Appends a line to `metrics.jsonl`, and a point per scalar to TensorBoard.

        A value that is NaN or infinite is null in the line, and no point.
        """
        # A mean score over no classes is NaN, which JSON does not have, and of which
        # TensorBoard's writer warns.
        finite = {k: v if math.isfinite(v) else None for k, v in scalars.items()}
        with naming(self._path):
            self._file.write(json.dumps({"step": step, **finite}) + "\n")
        for name, value in finite.items():
            if value is not None:
                self._tensorboard.add_scalar(name, value, step)

    def flush(self) -> None:
        """Makes all scalars written so far visible to readers.

        Raises:
            SeglossError: if `metrics.jsonl` was moved, deleted or replaced.
        """
        with naming(self._path):
            self._file.flush()
        if not is_at(self._path, self._file):
            raise gone(self._path)
        self._tensorboard.flush()

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with naming(self._path):
            self._file.close()
        self._tensorboard.close()


def _read_lines(path: Path, last_step: int) -> list[tuple[str, dict[str, Any]]]:
    """Returns the lines of `metrics.jsonl` up to a step, and what each one holds.

    Leaves out damaged lines with a warning, except for the last one, which a killed
    run may not have written completely.
    """
    text, kept, damaged = path.read_bytes().decode(errors="replace"), [], []
    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        scalars = _parse(line)
        if scalars is None:
            damaged.append(number)
        elif scalars["step"] <= last_step:
            kept.append((line, scalars))
    if damaged[-1:] == [len(lines)] and not text.endswith("\n"):
        damaged.pop()
    if damaged:
        warnings.warn(
            f"{path}: {len(damaged)} damaged lines are left out; the first is line "
            f"{damaged[0]}.",
            stacklevel=3,
        )
    return kept


def _parse(line: str) -> dict[str, Any] | None:
    """Returns the scalars of a line; None if it is damaged."""
    try:
        scalars = json.loads(line)
        step = scalars["step"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return scalars if type(step) is int else None


class StepMeter:
    """Collects the scalars of steps without making the devices wait for the host.

    Args:
        writer: receives the scalars at each `flush`.
        setup: the parts of the run; its learning rate is written as well.
    """

    def __init__(self, writer: MetricWriter, setup: Setup):
        self._writer = writer
        self._setup = setup
        self._schedule = jax.jit(setup.schedule)
        self._compiled_before = compilations()()
        self._pending: list[tuple[int, dict[str, jax.Array], int | None]] = []
        self._skipped = 0
        self.restart_clock()

    def restart_clock(self) -> None:
        """Restarts the measurement of speed, for example after an evaluation."""
        self._since = time.monotonic()
        self._waited_seconds = 0.0
        self._images = 0

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Context manager that counts the time of its block as waiting for data."""
        start = time.monotonic()
        yield
        self._waited_seconds += time.monotonic() - start

    def add(
        self,
        step: int,
        scalars: dict[str, jax.Array],
        *,
        images: int,
        skipped: int | None = None,
    ) -> None:
        """Adds the scalars of one step, which the devices may still be computing.

        Args:
            step: number of the step, from 1.
            scalars: scalars by name, each with an axis over the devices.
            images: number of images in this process's part of the batch.
            skipped: number of bad samples left out of that part; None if bad samples
                are not skipped.
        """
        self._pending.append((step, scalars, skipped))
        self._images += images
        if len(self._pending) > _IN_FLIGHT:
            jax.block_until_ready(self._pending[-_IN_FLIGHT][1])

    def flush(self) -> str:
        """Writes the scalars added since the last flush, and restarts the clock.

        Images and skipped samples are those of all processes, which must all call this
        after the same step. Of their waits for data, the longest counts.

        Returns a line with the last loss, the speed, the share of the time spent
        waiting for data, and the number of samples skipped so far.

        Raises:
            NonFiniteError: if a value is NaN or infinite, and its step was not skipped;
                it names the first such step.
            SeglossError: if too many steps in a row were skipped.
        """
        lines = [(step, _to_floats(x)) for step, x, _ in self._pending]
        elapsed = time.monotonic() - self._since
        own = [self._images, self._waited_seconds, [x for *_, x in self._pending]]
        images, waits, skipped = zip(*hosts.exchange(own), strict=True)
        self._pending.clear()
        speed = {
            "images_per_second": sum(images) / elapsed,
            "seconds_per_step": elapsed / max(1, len(lines)),
            "data_wait_fraction": max(waits) / elapsed,
            "compilations": compilations()() - self._compiled_before,
        }
        for (_, line), *of_step in zip(lines, *skipped, strict=True):
            if of_step[0] is not None:
                line["skipped_samples"] = sum(of_step)
                self._skipped += sum(of_step)
        for step, line in lines:
            # A skipped step makes no update, so the schedule waits for it.
            updates = step - 1 - int(line.get("skipped_steps", 0))
            line["learning_rate"] = float(self._schedule(max(0, updates)))
            self._judge(step, line)
            last = step == lines[-1][0]
            written = {k: v for k, v in line.items() if k not in _ONLY_JUDGED}
            self._writer.write(
                step, written | (speed | measure_memory() if last else {})
            )
        self._writer.flush()
        self.restart_clock()
        return (
            f"loss {lines[-1][1]['loss']:.3f}, "
            f"{speed['images_per_second']:.1f} images/s, "
            f"{speed['data_wait_fraction']:.0%} waiting for data"
            + (f", {self._skipped} samples skipped" if self._skipped else "")
        )

    def _judge(self, step: int, line: dict[str, float]) -> None:
        """Raises an error if training cannot continue after a step."""
        in_a_row = int(line.get("skipped_in_a_row", 0))
        found = find_non_finite(line)
        if in_a_row and "batch_stats" not in found:
            if in_a_row < MOST_SKIPPED:
                return
            self._writer.flush()
            raise SeglossError(explain_skipped(step, in_a_row, line["loss_scale"]))
        if found:
            self._writer.flush()
            rate = line["learning_rate"]
            raise NonFiniteError(explain_non_finite(self._setup, step, found, rate))


def _to_floats(scalars: dict[str, jax.Array]) -> dict[str, float]:
    return {name: float(value) for name, value in first_replica(scalars).items()}

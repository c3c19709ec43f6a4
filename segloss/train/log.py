"""Writes the metrics of a run to files, and summarises them for the progress bar."""

import contextlib
import json
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType

import jax
import optax
import tensorboardX

from segloss.devices import first_replica
from segloss.errors import SeglossError
from segloss.writing import naming, write_text

# Steps that may be queued before the host waits for one: enough to keep a device busy,
# and few enough that collectives on CPU devices do not run out of threads.
_IN_FLIGHT = 10


class NonFiniteError(SeglossError, FloatingPointError):
    """A logged value, such as the loss or the gradient norm, is NaN or infinite."""


class MetricWriter:
    """Writes scalars by step to `metrics.jsonl` and `tensorboard/` in `workdir`.

    Args:
        workdir: the run's directory.
        start_step: number of steps taken before the run starts or resumes. Lines of
            `metrics.jsonl` with a later step, written by a killed run, are removed.
    """

    def __init__(self, workdir: Path, *, start_step: int):
        path = workdir / "metrics.jsonl"
        kept = []
        if path.exists():
            lines = path.read_text().splitlines()
            kept = [line for line in lines if _step_of(line) <= start_step]
        write_text(path, "".join(f"{line}\n" for line in kept))
        self._before = [json.loads(line) for line in kept]
        self._path = path
        self._file = path.open("a")
        self._tensorboard = tensorboardX.SummaryWriter(
            str(workdir / "tensorboard"), purge_step=start_step + 1, max_queue=100
        )

    def has(self, step: int, name: str) -> bool:
        """Whether `metrics.jsonl` had this scalar when the writer was made."""
        return any(x["step"] == step and name in x for x in self._before)

    def values(self, name: str) -> list[tuple[int, float | None]]:
        """Step and value of a scalar in `metrics.jsonl` when the writer was made.

        The value is None where it was NaN.
        """
        return [(x["step"], x[name]) for x in self._before if name in x]

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
        """Makes all scalars written so far visible to readers."""
        with naming(self._path):
            self._file.flush()
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


def _step_of(line: str) -> float | int:
    """The step of a line of `metrics.jsonl`; infinite if the line is incomplete."""
    try:
        return json.loads(line)["step"]
    except json.JSONDecodeError:
        return float("inf")


class StepMeter:
    """Collects the scalars of steps without making the devices wait for the host.

    Args:
        writer: receives the scalars at each `flush`.
        schedule: maps a step to its learning rate, which is written as well.
    """

    def __init__(self, writer: MetricWriter, schedule: optax.Schedule):
        self._writer = writer
        self._schedule = jax.jit(schedule)
        self._pending: list[tuple[int, dict[str, jax.Array], dict[str, int]]] = []
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
            images: number of images in the batch.
            skipped: number of bad samples left out of the batch; None if bad samples
                are not skipped.
        """
        counts = {} if skipped is None else {"skipped_samples": skipped}
        self._pending.append((step, scalars, counts))
        self._images += images
        self._skipped += skipped or 0
        if len(self._pending) > _IN_FLIGHT:
            jax.block_until_ready(self._pending[-_IN_FLIGHT][1])

    def flush(self) -> str:
        """Writes the scalars added since the last flush, and restarts the clock.

        Returns a line with the last loss, the speed, the share of the time spent
        waiting for data, and the number of samples skipped so far.

        Raises:
            NonFiniteError: if a value is NaN or infinite; it names the first such step.
        """
        lines = [(step, _to_floats(x) | counts) for step, x, counts in self._pending]
        self._pending.clear()
        elapsed = time.monotonic() - self._since
        speed = {
            "images_per_second": self._images / elapsed,
            "data_wait_fraction": self._waited_seconds / elapsed,
        }
        for step, line in lines:
            for name, value in line.items():
                if not math.isfinite(value):
                    self._writer.flush()
                    raise NonFiniteError(
                        f"step {step}: {name} is {value}; lower the learning rate or "
                        "clip the gradient. The saved checkpoints are finite."
                    )
            line["learning_rate"] = float(self._schedule(step - 1))
            self._writer.write(step, line | (speed if step == lines[-1][0] else {}))
        self._writer.flush()
        self.restart_clock()
        return (
            f"loss {lines[-1][1]['loss']:.3f}, "
            f"{speed['images_per_second']:.1f} images/s, "
            f"{speed['data_wait_fraction']:.0%} waiting for data"
            + (f", {self._skipped} samples skipped" if self._skipped else "")
        )


def _to_floats(scalars: dict[str, jax.Array]) -> dict[str, float]:
    return {name: float(value) for name, value in first_replica(scalars).items()}

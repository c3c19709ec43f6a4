"""What a run says while it runs: files for later, a progress bar for now."""

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
from segloss.writing import write_text

# Steps that may be on their way before the host waits for one: enough to keep a device
# busy, few enough for collectives on CPU devices not to run out of threads.
_IN_FLIGHT = 10


class NonFiniteError(FloatingPointError):
    """A quantity of a step was NaN or infinite."""


class MetricWriter:
    """Scalars by step, to `metrics.jsonl` and `tensorboard/`.

    Args:
        workdir: the run's directory.
        start_step: step the run goes on from; what a killed run wrote past it is
            removed, so that each step is there once.
    """

    def __init__(self, workdir: Path, *, start_step: int):
        path = workdir / "metrics.jsonl"
        kept = []
        if path.exists():
            lines = path.read_text().splitlines()
            kept = [line for line in lines if _step_of(line) <= start_step]
        write_text(path, "".join(f"{line}\n" for line in kept))
        self._before = [json.loads(line) for line in kept]
        self._file = path.open("a")
        self._tensorboard = tensorboardX.SummaryWriter(
            str(workdir / "tensorboard"), purge_step=start_step + 1, max_queue=100
        )

    def has(self, step: int, name: str) -> bool:
        """Whether the run that goes on had written this scalar."""
        return any(x["step"] == step and name in x for x in self._before)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Appends one line, and a TensorBoard point for each of its scalars."""
        # A score of no class at all is NaN, which JSON cannot say.
        finite = {k: v if math.isfinite(v) else None for k, v in scalars.items()}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        for name, value in scalars.items():
            self._tensorboard.add_scalar(name, value, step)

    def flush(self) -> None:
        """Makes what was written visible to readers."""
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
        self._file.close()
        self._tensorboard.close()


def _step_of(line: str) -> float | int:
    """The step of a line; infinite where a kill cut the line short."""
    try:
        return json.loads(line)["step"]
    except json.JSONDecodeError:
        return float("inf")


class StepMeter:
    """Collects what steps return without making the devices wait for the host.

    Args:
        writer: where the scalars go at each `flush`.
        schedule: step to learning rate, which is written beside them.
    """

    def __init__(self, writer: MetricWriter, schedule: optax.Schedule):
        self._writer = writer
        self._schedule = jax.jit(schedule)
        self._pending: list[tuple[int, dict[str, jax.Array], dict[str, int]]] = []
        self._skipped = 0
        self.restart_clock()

    def restart_clock(self) -> None:
        """Starts to measure speed anew, after what was not training."""
        self._since = time.monotonic()
        self._waited_seconds = 0.0
        self._images = 0

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Counts the time inside as waiting."""
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
        """Takes the replicated scalars of one step, which may still be computed.

        Args:
            step: its number.
            scalars: by name.
            images: how many the step saw.
            skipped: bad samples in their places; None where a run skips none.
        """
        counts = {} if skipped is None else {"skipped_samples": skipped}
        self._pending.append((step, scalars, counts))
        self._images += images
        self._skipped += skipped or 0
        if len(self._pending) > _IN_FLIGHT:
            jax.block_until_ready(self._pending[-_IN_FLIGHT][1])

    def flush(self) -> str:
        """Writes what is pending; returns the last step and the speed in words.

        Raises:
            NonFiniteError: at the first step with a NaN or an infinity.
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
                        "clip the gradient. The checkpoints hold finite states."
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

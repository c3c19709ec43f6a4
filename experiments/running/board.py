"""Shows a sweep: as a live table on a terminal, elsewhere as a line for each change."""

import contextlib
import dataclasses
import functools
import json
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import IO, Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from experiments.running.fingerprint import read_results
from experiments.running.sweep import PlannedRun
from segloss.report import make_table

WAITING, RUNNING, DONE = "waiting", "running", "done"
STOPPED, FAILED = "stopped", "failed"
# A table that is too tall for the terminal keeps the runs with the first states.
_STYLES = {
    RUNNING: "cyan",
    FAILED: "red",
    STOPPED: "yellow",
    WAITING: "dim",
    DONE: "green",
}
_DASH = "\N{EN DASH}"
# Number of bytes read from the end of `metrics.jsonl`, where the newest lines are.
_TAIL_BYTES = 1 << 16


class Curve:
    """The newest step, loss and mean IoU of `split` in a run's `metrics.jsonl`.

    Loss and mean IoU are None until they are logged.
    """

    def __init__(self, path: pathlib.Path, split: str):
        self._path = path
        self._score = f"{split}_mean_iou"
        self.step = 0
        self.loss: float | None = None
        self.mean_iou: float | None = None

    def refresh(self) -> None:
        """Reads the newest values from the end of the file, if it exists."""
        with contextlib.suppress(FileNotFoundError), self._path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _TAIL_BYTES))
            for line in file:
                # The first and the last line may be incomplete.
                with contextlib.suppress(ValueError, LookupError, TypeError):
                    values = json.loads(line)
                    self.step = values["step"]
                    self.loss = values.get("loss", self.loss)
                    self.mean_iou = values.get(self._score, self.mean_iou)


@dataclasses.dataclass
class Row:
    """A run as the board shows it.

    Attributes:
        state: "waiting", "running", "done", "stopped" or "failed".
        retries: number of retries so far.
        error: message of the last failure.
    """

    run: PlannedRun
    folder: pathlib.Path
    state: str = WAITING
    retries: int = 0
    error: str = ""

    def __post_init__(self):
        split = self.run.config.evaluate.split
        self.curve = Curve(self.folder / "metrics.jsonl", split)
        self.curve.refresh()
        self.start_clock()
        if self.is_finished:
            self.state = DONE

    @property
    def is_finished(self) -> bool:
        """Whether the run has a sound `results.json`, the last file that it writes."""
        return read_results(self.folder) is not None

    @functools.cached_property
    def summary(self) -> dict[str, float | None]:
        """The scores in `results.json` of a finished run, by name; read once."""
        return read_results(self.folder)["summary"]

    def start_clock(self) -> None:
        """Starts to measure the speed from which `seconds_left` is estimated."""
        self._since = (time.monotonic(), self.curve.step)

    @property
    def status(self) -> str:
        """The `state`, or "retry N" if the N-th retry waits or runs."""
        if self.retries and self.state in (WAITING, RUNNING):
            return f"retry {self.retries}"
        return self.state

    @property
    def seconds_left(self) -> float | None:
        """Time left at the measured speed; None if none was measured."""
        since, first = self._since
        steps = self.curve.step - first
        if self.state != RUNNING or steps < 1:
            return None
        left = self.run.config.total_steps - self.curve.step
        return left * (time.monotonic() - since) / steps


class _Lasting:
    """A wrapper of a file that ignores errors of writing, such as of a closed pipe."""

    def __init__(self, file: IO[str]):
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._file.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._file.flush()


class Board:
    """Shows the rows of a sweep on a console, which may lose its terminal or pipe."""

    def __init__(self, rows: Sequence[Row], console: Console):
        self.rows = rows
        self.console = console
        console.file = _Lasting(console.file)

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Shows a live table within the block, if the console is a terminal."""
        if not self.console.is_terminal:
            yield
            return
        with Live(
            get_renderable=lambda: self.table(self.console.height - 6),
            console=self.console,
            refresh_per_second=2,
            # A run in this process writes to its log, not here.
            redirect_stdout=False,
            redirect_stderr=False,
        ):
            yield

    def say(self, text: str) -> None:
        """Prints a line, above the live table if there is one."""
        self.console.print(text, soft_wrap=True)

    def change(
        self, row: Row, state: str, remark: str = "", *, always: bool = False
    ) -> None:
        """Sets the state of a row; prints it with `remark` if no live table shows it.

        `always` prints it in any case.
        """
        row.state = state
        row.curve.refresh()
        if always or not self.console.is_terminal:
            clock = time.strftime("%H:%M:%S")
            self.say(f"{clock} {row.run.key}: {row.status}{remark}")

    def table(self, height: int | None = None) -> Table:
        """Makes a table of the runs, at most `height` of them; None means all.

        If some are left out, running and failed ones are kept first.
        """
        numbers = ("step", "", "loss", "mean IoU", "left")
        table = make_table(("arm", "seed", "state"), numbers)
        rows = list(self.rows)
        if height and len(rows) > height:
            order = list(_STYLES)
            rows = sorted(rows, key=lambda row: order.index(row.state))[:height]
        for row in rows:
            if row.state == RUNNING:
                row.curve.refresh()
            curve, total = row.curve, row.run.config.total_steps
            table.add_row(
                Text(row.run.arm),
                str(row.run.seed),
                Text(row.status, _STYLES[row.state]),
                f"{curve.step} / {total}",
                ProgressBar(total, min(curve.step, total), width=16),
                _format(curve.loss),
                _format(curve.mean_iou),
                _clock(row.seconds_left),
            )
        states = [row.state for row in self.rows]
        counts = (f"{states.count(s)} {s}" for s in _STYLES if s in states)
        table.caption = ", ".join(counts)
        return table


def _format(score: float | None) -> str:
    return _DASH if score is None else f"{score:.3f}"


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return _DASH
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"

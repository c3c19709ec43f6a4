"""What a sweep shows: one live table on a terminal, a line per change elsewhere."""

import contextlib
import dataclasses
import json
import pathlib
import statistics
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from experiments.running.sweep import PlannedRun

WAITING, RUNNING, DONE, STOPPED, FAILED = (
    "waiting",
    "running",
    "done",
    "stopped",
    "failed",
)
# In the order in which a table that is too tall keeps them.
_STYLES = {
    RUNNING: "cyan",
    FAILED: "red",
    STOPPED: "yellow",
    WAITING: "dim",
    DONE: "green",
}
_SCORES = {
    "mean_iou": "mean IoU",
    "frequency_weighted_iou": "FWIoU",
    "mean_accuracy": "MA",
    "pixel_accuracy": "PA",
}
_DASH = "\N{EN DASH}"


class Curve:
    """The newest of what a run writes to `metrics.jsonl`, read as it grows."""

    def __init__(self, path: pathlib.Path, split: str):
        self._path = path
        self._score = f"{split}_mean_iou"
        self._lock = threading.Lock()
        self._read = 0
        self.step = 0
        self.loss: float | None = None
        self.mean_iou: float | None = None

    def refresh(self) -> None:
        """Reads what came since; all of it where a run that goes on cut the file."""
        # The table is drawn by a thread of its own.
        with (
            self._lock,
            contextlib.suppress(FileNotFoundError),
            self._path.open("rb") as file,
        ):
            if file.seek(0, 2) < self._read:
                self._read = self.step = 0
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._read += len(line)
                # A kill may have cut a line that another was then put behind.
                with contextlib.suppress(json.JSONDecodeError):
                    self._take(json.loads(line))

    def _take(self, line: dict[str, Any]) -> None:
        self.step = line["step"]
        self.loss = line.get("loss", self.loss)
        self.mean_iou = line.get(self._score, self.mean_iou)


@dataclasses.dataclass
class Row:
    """A run as the board shows it."""

    run: PlannedRun
    folder: pathlib.Path
    state: str = WAITING
    retries: int = 0
    error: str = ""

    def __post_init__(self):
        split = self.run.config.evaluate.split
        self.curve = Curve(self.folder / "metrics.jsonl", split)
        self.curve.refresh()
        self._since = (0.0, 0)
        if self.is_finished:
            self.state = DONE

    @property
    def is_finished(self) -> bool:
        """Whether the run's last file is there."""
        return (self.folder / "results.json").exists()

    @property
    def summary(self) -> dict[str, float]:
        """The scores of a run that is done."""
        return json.loads((self.folder / "results.json").read_text())["summary"]

    def start_clock(self) -> None:
        """From here the time left is counted."""
        self._since = (time.monotonic(), self.curve.step)

    @property
    def status(self) -> str:
        """The state, and the how-manieth retry that is."""
        if self.retries and self.state in (WAITING, RUNNING):
            return f"retry {self.retries}"
        return self.state

    @property
    def seconds_left(self) -> float | None:
        """At the speed since the clock was started; None where there is none yet."""
        since, first = self._since
        steps = self.curve.step - first
        if self.state != RUNNING or steps < 1:
            return None
        left = self.run.config.total_steps - self.curve.step
        return left * (time.monotonic() - since) / steps


class _Lasting:
    """A file that may lose its reader; what is written then is lost, and no more."""

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
    """The rows of a sweep on a console.

    Args:
        console: from here on, losing its terminal or pipe is no error.
    """

    def __init__(self, rows: Sequence[Row], console: Console):
        self.rows = rows
        self.console = console
        console.file = _Lasting(console.file)

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Draws the table again and again, where there is a terminal to do so."""
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
        """A line above the table."""
        self.console.print(text, soft_wrap=True)

    def change(
        self, row: Row, state: str, remark: str = "", *, always: bool = False
    ) -> None:
        """Puts a run into another state, and says so where no table does."""
        row.state = state
        row.curve.refresh()
        if always or not self.console.is_terminal:
            clock = time.strftime("%H:%M:%S")
            self.say(f"{clock} {row.run.key}: {row.status}{remark}")

    def table(self, height: int | None = None) -> Table:
        """Every run, or as many as there is room for, those that run first."""
        table = Table(caption_justify="left")
        for name in ("arm", "seed", "state"):
            table.add_column(name)
        for name in ("step", "", "loss", "mean IoU", "left"):
            table.add_column(name, justify="right")
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


def arm_table(rows: Iterable[Row]) -> Table:
    """Per arm the mean over its seeds, and from which to which they go."""
    table = Table("arm", caption_justify="left")
    table.add_column("seeds", justify="right")
    for name in _SCORES.values():
        table.add_column(name, justify="right")
    arms: dict[str, list[dict[str, float]]] = {}
    for row in rows:
        arms.setdefault(row.run.arm, [])
        if row.state == DONE:
            arms[row.run.arm].append(row.summary)
    for arm, summaries in arms.items():
        cells = (_mean_and_range([s[key] for s in summaries]) for key in _SCORES)
        table.add_row(Text(arm), str(len(summaries)), *cells)
    return table


def _mean_and_range(scores: Sequence[float | None]) -> str:
    present = [score for score in scores if score is not None]
    if not present:
        return _DASH
    mean = f"{statistics.fmean(present):.3f}"
    if len(present) == 1:
        return mean
    return f"{mean} ({min(present):.3f} to {max(present):.3f})"


def _format(score: float | None) -> str:
    return _DASH if score is None else f"{score:.3f}"


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return _DASH
    hours, minutes = divmod(round(seconds) // 60, 60)
    return f"{hours}:{minutes:02}:{round(seconds) % 60:02}"

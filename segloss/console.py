"""The terminal: messages without markup, and progress bars."""

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text


def make_console() -> Console:
    """A console that prints text as it is: brackets in paths are not markup."""
    return Console(markup=False, highlight=False)


def make_progress(
    console: Console | None = None, *, transient: bool = False
) -> Progress:
    """Progress bars, shown only on a terminal.

    Args:
        console: where to show them; None means a new console.
        transient: whether they disappear when done.
    """
    console = console or make_console()
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Status(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=transient,
        disable=not console.is_terminal,
    )


class _Status(ProgressColumn):
    """The field `status` of a task, if it has one."""

    def render(self, task: Task) -> Text:
        return Text(task.fields.get("status", ""))

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


def make_console(*, quiet: bool = False) -> Console:
    """Makes a `rich.console.Console` that prints brackets as text, not as markup.

    With `quiet` it prints nothing.
    """
    return Console(markup=False, highlight=False, quiet=quiet)


def make_progress(
    console: Console | None = None, *, transient: bool = False
) -> Progress:
    """Makes progress bars; they are shown only if the console is a terminal.

    Args:
        console: where to show them; None means a new console.
        transient: True removes the bars when done; False leaves them visible.
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
    """Column that shows the field `status` of each task, or nothing without one."""

    def render(self, task: Task) -> Text:
        return Text(task.fields.get("status", ""))

"""How the command line talks: one console, progress bars with an ETA, tables, one-line errors."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from host.cli import stopping
from profiles.progress import Progress as Report

PLAIN_WIDTH = 160  # columns where there is no terminal to ask

console = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH, markup=False, emoji=False, highlight=False)
_errors = Console(stderr=True, markup=False, emoji=False, highlight=False)


def complain(message: str) -> None:
    """One line on standard error."""
    _errors.print(Text("eden:", style="bold red"), " ".join(message.split()), soft_wrap=True)


_COLUMNS = (
    TextColumn("{task.description:<36}"),
    BarColumn(),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
    TextColumn("left"),
    TimeRemainingColumn(),
)


@contextmanager
def progress_board() -> Iterator[Callable[[str, int, int], None]]:
    """Progress bars by title, or a plain line when each begins where there is no terminal.

    Yields:
        A callback (title, done, total); a title not seen before opens a bar.
    """
    seen: dict[str, TaskID] = {}
    if not console.is_terminal:

        def announce(title: str, done: int, total: int) -> None:
            stopping.go_on()
            if title not in seen:
                seen[title] = TaskID(0)
                console.print(f"{title} ...")

        yield announce
        return
    with Progress(*_COLUMNS, console=console) as bars:

        def move(title: str, done: int, total: int) -> None:
            stopping.go_on()
            if title not in seen:
                seen[title] = bars.add_task(title, total=None)
            bars.update(seen[title], completed=done, total=total)

        yield move


@contextmanager
def progress_bar(title: str) -> Iterator[Report]:
    """One bar of a `progress_board`; yields the callback that moves it."""
    with progress_board() as show:
        show(title, 0, 1)
        yield lambda done, total: show(title, done, total)


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table; the first column is left-aligned, the others right-aligned."""
    out = Table(title=title, title_justify="left", title_style="bold")
    for k, column in enumerate(columns):
        out.add_column(column, justify="left" if k == 0 else "right")
    for row in rows:
        out.add_row(*row)
    console.print(out)

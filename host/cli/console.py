"""How the command line talks: one console, progress bars with an ETA, tables, one-line errors."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from profiles.progress import Progress as Report

console = Console()
_errors = Console(stderr=True)


def complain(message: str) -> None:
    """One line on standard error."""
    _errors.print("[bold red]eden:[/]", message, highlight=False, soft_wrap=True)


@contextmanager
def progress_bar(title: str) -> Iterator[Report]:
    """A progress bar on a terminal, two plain lines elsewhere; yields the callback that moves it."""
    if not console.is_terminal:
        console.print(f"{title} ...", highlight=False)
        yield lambda done, total: None
        return
    columns = (
        TextColumn("{task.description:<44}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table; the first column is left-aligned, the others right-aligned."""
    out = Table(title=title, title_justify="left", title_style="bold")
    for k, column in enumerate(columns):
        out.add_column(column, justify="left" if k == 0 else "right")
    for row in rows:
        out.add_row(*row)
    console.print(out)

"""Opens the board of a command, and shows how far a real one's bring-up is."""

from pathlib import Path

from host.board import Board
from host.boards import open_board
from host.cli.console import progress_bar
from host.links import is_link


def open_shown(board: str, supply: Path | None, recording: Path | None = None) -> Board:
    """As `host.boards.open_board`."""
    if not is_link(board):
        return open_board(board, supply, recording)
    with progress_bar("bring-up and self-test") as progress:
        return open_board(board, supply, recording, progress)

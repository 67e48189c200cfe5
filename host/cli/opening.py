"""Opens the boards of a command, and shows how far a real one's bring-up is."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from gateware.etherbone_protocol import PORT
from host.board import Board
from host.boards import open_board
from host.cli.console import progress_bar
from host.links import is_link
from host.supply_file import SUPPLY_FILE, PmbusSettings, ScpiSettings, load_bench
from profiles.errors import PlanError


def open_shown(board: str, supply: Path | None, recording: Path | None = None) -> Board:
    """As `host.boards.open_board`."""
    if not is_link(board):
        return open_board(board, supply, recording)
    with progress_bar("bring-up and self-test") as progress:
        return open_board(board, supply, recording, progress)


@contextmanager
def opened_together(boards: Sequence[str], supplies: Sequence[Path], recording: Path | None) -> Iterator[list[Board]]:
    """Boards that one command uses at once, closed at the end; supplies as for `supply_files`.

    Raises:
        PlanError: they cannot be used at once, or there are several to be recorded; nothing was touched.
        EdenError: a supply's file is missing or damaged, or a board cannot be opened; those before it are closed.
    """
    if recording is not None and len(boards) > 1:
        raise PlanError("--record is for one board; give --board once with it")
    files = supply_files(boards, supplies)
    with ExitStack() as closing:
        opened = []
        for board, file in zip(boards, files, strict=True):
            opened.append(open_shown(board, file, recording))
            closing.callback(opened[-1].close)
        yield opened


def supply_files(boards: Sequence[str], supplies: Sequence[Path]) -> Sequence[Path | None]:
    """The supply's file of each board, where several are used at once; None where none was given.

    Raises:
        PlanError: two are the same board, or share a supply or a temperature controller; or the supplies are not as
            many as the boards.
    """
    if supplies and len(supplies) != len(boards):
        raise PlanError(
            f"boards: {len(boards)}, supplies: {len(supplies)}; give --supply once for each --board, in the same "
            "order, or not at all"
        )
    files: Sequence[Path | None] = supplies or [None] * len(boards)
    users: dict[str, str] = {}
    for board, file in zip(boards, files, strict=True):
        for thing in (_the_board(board), *_the_bench(board, file)):
            if thing in users:
                raise in_both(users[thing], board, thing)
            users[thing] = board
    return files


def in_both(one: str, other: str, thing: str) -> PlanError:
    """What to raise where two boards come with the same thing."""
    return PlanError(
        f"'{one}' and '{other}' would both use {thing}, which one of them has at a time; give each its own"
    )


def _the_board(specification: str) -> str:
    """The board, however its specification is written."""
    kind, *rest = specification.split(":")
    if kind in ("etherbone", "litex_server"):
        address, _, port = ":".join(rest).rpartition(":")
        return f"the board at {address or port}:{port if address else PORT}"
    if kind == "serial":
        return f"the board at {Path(rest[0] if rest else '').resolve()}"
    if kind in ("mock", "sim") and len(rest) == 1:
        rest.append("1")  # the seed that is meant without one
    return f"the board {':'.join([kind, *rest])}"


def _the_bench(board: str, supply: Path | None) -> list[str]:
    """Devices that a board's user moves, of those that another could move too."""
    if supply is None and not (is_link(board) and SUPPLY_FILE.exists()):
        return []  # a board in software brings its own; a real one without a file is refused when it is opened
    bench, devices = load_bench(supply or SUPPLY_FILE), []
    if isinstance(bench.supply, ScpiSettings):
        devices.append(f"the supply {bench.supply.resource.upper()}")
    if isinstance(bench.supply, PmbusSettings) and not is_link(board):  # a real board's is behind its own link
        devices.append(f"the regulator of {_the_board(bench.supply.board)}")
    if bench.temperature is not None:
        devices.append(f"the temperature controller at {Path(bench.temperature.port).resolve()}")
    return devices

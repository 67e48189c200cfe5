"""Does a board's DRAM store and return what it is given, at nominal supply and timing? What every experiment rests on.

Data lines are tried first, with patterns that tell one stuck or shorted line from the next, wherever addresses go. Then
address lines: a cell and the one whose address differs in a single bit are written one after the other, and the first
must still be there. Last a sample of rows all over the module.
"""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from host import programs
from host.board import Board
from host.programs import Traversal
from profiles.errors import BoardError
from profiles.pattern import Pattern, stored_bits
from profiles.progress import Progress, silent

# The same in every burst of a row, so that address lines have no part in it; the row is an odd one, which inverts.
ROW_PATTERNS = tuple(Pattern.parse(text) for text in ("0x00", "0xFF", "0xAA", "0x55", "walking", "walking/invert"))
_ODD_ROW = 1
# Bytes are alike in those: of a single burst, data that tell every data line from every other.
BURST_PATTERNS = tuple(Pattern.parse(f"random:{seed}") for seed in range(8))
ADDRESS_PATTERN = Pattern.parse("random:2")
SAMPLE_PATTERN = Pattern.parse("random:3")
SAMPLE_ROWS = 16  # places, evenly spread, the first and the last row among them
_SHOWN = 8  # data lines of which an error message gives the count


@dataclass(frozen=True)
class DataLine:
    """A data line that returned wrong bits.

    Attributes:
        dq: which.
        wrong: bits, of all patterns.
        stuck_at: the only value that its wrong bits had; None where they had both.
    """

    dq: int
    wrong: int
    stuck_at: int | None

    def __str__(self) -> str:
        stuck = "" if self.stuck_at is None else f", always {self.stuck_at}"
        return f"DQ {self.dq} ({self.wrong} wrong bits{stuck})"


@dataclass(frozen=True)
class SelfTest:
    """What a self-test found.

    Attributes:
        data_lines: bad ones, the worst first; where there are any, nothing else was tried.
        address_lines: bad ones, in words.
        wrong_bits: of the sample of rows; where address lines are bad, it was not tried.
        bits: read in all.
        seconds: that it took.
    """

    data_lines: tuple[DataLine, ...]
    address_lines: tuple[str, ...]
    wrong_bits: int
    bits: int
    seconds: float

    @property
    def passed(self) -> bool:
        return not (self.data_lines or self.address_lines or self.wrong_bits)

    def __str__(self) -> str:
        if self.data_lines:
            shown = ", ".join(map(str, self.data_lines[:_SHOWN]))
            more = len(self.data_lines) - _SHOWN
            return f"{len(self.data_lines)} data lines are bad: {shown}" + (f" and {more} more" if more > 0 else "")
        if self.address_lines:
            return f"address lines are bad: {', '.join(self.address_lines)}"
        if self.wrong_bits:
            return f"{self.wrong_bits} of the sample's bits came back wrong"
        return f"passed: {self.bits} bits read, none wrong, in {self.seconds:.2f} s"


def self_test(board: Board, progress: Progress = silent) -> SelfTest:
    """Test a board whose supply is at nominal. What the DRAM held in the cells tried is lost.

    Raises:
        LinkError, ProgramError: the test itself failed.
    """
    return _Test(board, progress).run()


def require_self_test(board: Board, progress: Progress = silent) -> SelfTest:
    """As `self_test`.

    Raises:
        BoardError: it did not pass.
    """
    if not (found := self_test(board, progress)).passed:
        raise BoardError(
            f"the self-test of '{board.name}' at nominal failed: {found}; seat the module, see that its supply is at "
            f"nominal, and try eden board test --board {board.name} again: no experiment on it means anything before"
        )
    return found


class _Test:
    def __init__(self, board: Board, progress: Progress) -> None:
        self._board, self._progress = board, progress
        self._geometry = board.geometry
        self._every_bank = tuple(range(self._geometry.banks))
        self._bits = self._done = 0
        self._steps = (
            len(ROW_PATTERNS)
            + len(BURST_PATTERNS)
            + 2 * len(list(self._neighbours(self._corner(False))))
            + len(self._sample())
        )

    def run(self) -> SelfTest:
        begun = time.monotonic()
        data_lines, address_lines, wrong = self._bad_data_lines(), list[str](), 0
        if not data_lines:
            address_lines = self._bad_address_lines()
        if not data_lines and not address_lines:
            wrong = sum(self._wrong(walk, SAMPLE_PATTERN).size for walk in self._sample())
        self._progress(self._steps, self._steps)
        return SelfTest(tuple(data_lines), tuple(address_lines), wrong, self._bits, time.monotonic() - begun)

    def _bad_data_lines(self) -> list[DataLine]:
        """Over a row of every bank, and with more patterns in one burst."""
        g = self._geometry
        row = Traversal(self._every_bank, _ODD_ROW, 1, 0, g.bursts_per_row)
        tests = [(row, pattern) for pattern in ROW_PATTERNS]
        tests += [(self._corner(False), pattern) for pattern in BURST_PATTERNS]
        wrong, ones = Counter[int](), Counter[int]()
        for walk, pattern in tests:
            cells = self._wrong(walk, pattern)
            lines = g.dq(cells)
            wrong.update(lines.tolist())
            ones.update(lines[stored_bits(pattern, g, cells) == 0].tolist())  # read 1 where 0 was stored
        return [
            DataLine(dq, count, 1 if ones[dq] == count else 0 if not ones[dq] else None)
            for dq, count in wrong.most_common()
        ]

    def _bad_address_lines(self) -> list[str]:
        """From both ends of the module: lines that are stuck low show at one, stuck high at the other."""
        found: dict[str, None] = {}
        for corner in (self._corner(False), self._corner(True)):
            for name, neighbour in self._neighbours(corner):
                self._fill(corner, ADDRESS_PATTERN)
                self._fill(neighbour, ADDRESS_PATTERN)
                if self._read(corner, ADDRESS_PATTERN).size:
                    found[name] = None
                self._step()
        return list(found)

    def _corner(self, last: bool) -> Traversal:
        """The first or the last burst of the module."""
        g = self._geometry
        if not last:
            return Traversal((0,), 0, 1, 0, 1)
        return Traversal((g.banks - 1,), g.rows - 1, 1, g.bursts_per_row - 1, 1)

    def _neighbours(self, corner: Traversal) -> Iterator[tuple[str, Traversal]]:
        """Each address line but those within a burst, and the burst on its other side; none where there is no such."""
        g = self._geometry
        for bit in range((g.rows - 1).bit_length()):
            yield f"row address bit {bit}", replace(corner, row_start=corner.row_start ^ 1 << bit)
        first = (g.burst_length - 1).bit_length()
        for bit in range((g.bursts_per_row - 1).bit_length()):
            yield f"column address bit {first + bit}", replace(corner, first_burst=corner.first_burst ^ 1 << bit)
        for bit in range((g.banks - 1).bit_length()):
            if (bank := corner.banks[0] ^ 1 << bit) < g.banks:
                yield f"bank address bit {bit}", replace(corner, banks=(bank,))

    def _sample(self) -> list[Traversal]:
        g = self._geometry
        rows = np.unique(np.linspace(0, g.rows - 1, SAMPLE_ROWS).round().astype(int)).tolist()
        return [Traversal(self._every_bank, row, 1, 0, g.bursts_per_row) for row in rows]

    def _wrong(self, walk: Traversal, pattern: Pattern) -> npt.NDArray[np.int64]:
        """Write, read, and count a step: the cells that failed."""
        self._fill(walk, pattern)
        cells = self._read(walk, pattern)
        self._step()
        return cells

    def _fill(self, walk: Traversal, pattern: Pattern) -> None:
        self._board.run(programs.fill(self._board.build, walk, pattern, self._board.timings.trcd))

    def _read(self, walk: Traversal, pattern: Pattern) -> npt.NDArray[np.int64]:
        board = self._board
        test = programs.test(board.build, walk, pattern, board.timings.trcd)
        self._bits += walk.length * self._geometry.burst_bits
        return np.concatenate([np.empty(0, np.int64), *board.failing_cells(test, walk)])

    def _step(self) -> None:
        self._done += 1
        self._progress(self._done, self._steps)

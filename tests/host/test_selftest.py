"""The self-test on DRAMs with planted faults: stuck and shorted data lines and address lines, and a weak cell."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateware.isa import Instruction
from gateware.registers import Fault
from host.boards import open_board
from host.programs import EngineBuild, Traversal
from host.selftest import require_self_test, self_test
from host.timings import DDR3_1600K, Timings
from profiles.errors import BoardError
from profiles.geometry import CellArray, Geometry
from tests.host.reference import Burst, ReferenceEngine

GEOMETRY = Geometry(banks=4, rows=16, columns=32, data_width=16, subarray_rows=16)
Place = tuple[int, int, int]
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=6)


def same(place: Place) -> Place:
    return place


class FaultyEngine(ReferenceEngine):
    """The reference engine before a DRAM whose addresses go astray and whose bursts come back changed."""

    def __init__(self, moved: Callable[[Place], Place], changed: Callable[[Place, int], int]) -> None:
        super().__init__(GEOMETRY, (4, 1, 2), 1, [])
        outer = self

        class Astray(dict[Place, Burst]):
            def __setitem__(self, place: Place, burst: Burst) -> None:
                super().__setitem__(outer.moved(place), burst)

        self.moved, self._changed, self.memory = moved, changed, Astray()

    def holds(self, bank: int, row: int, column: int) -> Burst:
        place = self.moved((bank, row, column))
        words = super().holds(*place)
        whole = sum(word << 32 * k for k, word in enumerate(words))
        whole = self._changed(place, whole)
        return tuple(whole >> 32 * k & 0xFFFFFFFF for k in range(len(words)))


@dataclass
class FaultyBoard:
    """As much of a `host.board.Board` as the self-test uses."""

    engine: FaultyEngine
    name: str = "planted"
    geometry = GEOMETRY
    timings = Timings.of(DDR3_1600K, 2000, 6)
    build = EngineBuild(
        **{"nphases": 4, "read_phase": 1, "write_phase": 2, "log_blocks": 256}, geometry=GEOMETRY, timings=timings
    )

    def run(self, program: Sequence[Instruction]) -> None:
        assert self.engine.run(list(program)) == Fault.NONE

    def failing_cells(self, program: Sequence[Instruction], walk: Traversal) -> Iterator[CellArray]:
        self.run(program)
        found = np.array(self.engine.mismatches, np.int64).reshape(-1, 2)
        yield walk.cells(GEOMETRY, found[:, 0].copy(), found[:, 1].copy())


def board_with(
    moved: Callable[[Place], Place] = same, changed: Callable[[Place, int], int] = lambda place, burst: burst
) -> FaultyBoard:
    return FaultyBoard(FaultyEngine(moved, changed))


def lines_of(dq: int) -> int:
    """The bits of a burst on data line ``dq``."""
    return sum(1 << 16 * beat + dq for beat in range(8))


def test_a_dram_without_faults_passes() -> None:
    found = require_self_test(board_with())  # type: ignore[arg-type]
    assert found.passed
    # 6 patterns and 16 rows of 4 bursts in 4 banks; 8 bursts; 4 + 2 + 2 address lines from both ends; each 128 bits
    assert found.bits == ((6 + 16) * 4 * 4 + 8 + 8 * 2) * 128
    assert "none wrong" in str(found)


@unhurried
@given(st.integers(0, 15), st.booleans())
def test_a_stuck_data_line_is_named(dq: int, high: bool) -> None:
    def stick(place: Place, burst: int) -> int:
        return burst | lines_of(dq) if high else burst & ~lines_of(dq)

    found = self_test(board_with(changed=stick))  # type: ignore[arg-type]
    assert [(line.dq, line.stuck_at) for line in found.data_lines] == [(dq, int(high))]
    assert not found.address_lines
    with pytest.raises(
        BoardError, match=rf"1 data lines are bad: DQ {dq} \(\d+ wrong bits, always {int(high)}\); seat"
    ):
        require_self_test(board_with(changed=stick))  # type: ignore[arg-type]


@unhurried
@given(st.lists(st.integers(0, 15), min_size=2, max_size=2, unique=True))
def test_shorted_data_lines_are_both_named(lines: list[int]) -> None:
    first, second = lines

    def short(place: Place, burst: int) -> int:
        for beat in range(8):
            both = burst >> 16 * beat + first & burst >> 16 * beat + second & 1
            for dq in lines:
                burst = burst & ~(1 << 16 * beat + dq) | both << 16 * beat + dq
        return burst

    found = self_test(board_with(changed=short))  # type: ignore[arg-type]
    assert {line.dq for line in found.data_lines} == {first, second}
    assert {line.stuck_at for line in found.data_lines} == {0}


ADDRESS_BITS = [
    *((1, bit, f"row address bit {bit}") for bit in range(4)),
    *((2, bit, f"column address bit {bit}") for bit in range(3, 5)),
    *((0, bit, f"bank address bit {bit}") for bit in range(2)),
]


@unhurried
@given(st.sampled_from(ADDRESS_BITS), st.booleans())
def test_a_stuck_address_line_is_named(line: tuple[int, int, str], high: bool) -> None:
    which, bit, name = line

    def stick(place: Place) -> Place:
        moved = list(place)
        moved[which] = moved[which] | 1 << bit if high else moved[which] & ~(1 << bit)
        return moved[0], moved[1], moved[2]

    found = self_test(board_with(moved=stick))  # type: ignore[arg-type]
    assert not found.data_lines
    assert found.address_lines == (name,)


@unhurried
@given(st.sampled_from([0, 1, 2]), st.data())
def test_shorted_address_lines_are_both_named(which: int, data: st.DataObject) -> None:
    bits = [bit for place, bit, _ in ADDRESS_BITS if place == which]
    first, second = data.draw(st.lists(st.sampled_from(bits), min_size=2, max_size=2, unique=True))
    wired_or = data.draw(st.booleans())

    def short(place: Place) -> Place:
        moved = list(place)
        a, b = moved[which] >> first & 1, moved[which] >> second & 1
        both = a | b if wired_or else a & b
        moved[which] = moved[which] & ~(1 << first | 1 << second) | both << first | both << second
        return moved[0], moved[1], moved[2]

    found = self_test(board_with(moved=short))  # type: ignore[arg-type]
    names = {name for place, bit, name in ADDRESS_BITS if place == which and bit in (first, second)}
    assert set(found.address_lines) == names


def test_a_weak_cell_of_the_last_row_is_counted() -> None:
    def weak(place: Place, burst: int) -> int:
        return burst ^ 1 << 77 if place == (3, 15, 8) else burst

    found = self_test(board_with(changed=weak))  # type: ignore[arg-type]
    assert (found.data_lines, found.address_lines, found.wrong_bits) == ((), (), 1)
    assert str(found) == "1 of the sample's bits came back wrong"


def test_a_dead_dram_is_said_in_one_short_line() -> None:
    found = self_test(board_with(changed=lambda place, burst: 0))  # type: ignore[arg-type]
    assert len(found.data_lines) == 16
    assert "16 data lines are bad: DQ" in str(found)
    assert "and 8 more" in str(found)


def test_the_mock_passes_and_reports_progress() -> None:
    board, seen = open_board("mock:B"), list[tuple[int, int]]()
    assert self_test(board, lambda done, total: seen.append((done, total))).passed
    assert [done for done, _ in seen] == [*range(1, seen[-1][1] + 1), seen[-1][1]]


def test_a_supply_that_is_too_low_shows() -> None:
    board = open_board("mock:B")
    with board.rail.guarded():
        board.rail.set(900)
        with pytest.raises(BoardError, match="self-test of 'mock:B:1' at nominal failed"):
            require_self_test(board)

"""The simulated board's DRAM, called as Verilator calls it: commands, data, masks, lost rows, memory."""

from itertools import count

import numpy as np
import numpy.typing as npt
import pytest

from gateware.engine.parameters import EngineParameters
from gateware.isa import Command
from host import simulated_dram
from host.chip_presets import PRESETS
from host.jedec_monitor import Fault, Spacing
from host.simulated_dram import DATA, DONE, DRIVEN, ENABLED, WANTS_MEMORY, SimulatedDram
from host.timings import DDR3_1600K, Timings
from profiles.errors import BoardError
from profiles.geometry import Geometry
from tests.host import expectation

Words = npt.NDArray[np.uint32]
GEOMETRY = Geometry(banks=8, rows=64, columns=64, data_width=16)
WORDS = GEOMETRY.burst_bits // 32
BUILD = EngineParameters(
    **{"geometry": GEOMETRY, "tck_ps": 2000, "nphases": 4, "read_phase": 1, "write_phase": 2},
    **{"read_latency": 8, "write_latency": 1, "cas_latency": 7, "cas_write_latency": 6},
)
TIMINGS = Timings.of(DDR3_1600K, BUILD.tck_ps, BUILD.cas_write_latency)
SPACING = Spacing.ddr3(BUILD.tck_ps, BUILD.cas_latency)
PINS = {"ACT": 0b110, "RD": 0b101, "WR": 0b001, "PRE": 0b010, "REF": 0b100, "ZQCS": 0b011, "MRS": 0b000}
PHASES = {"RD": BUILD.read_phase, "WR": BUILD.write_phase}
A10 = 1 << 10
ALL = A10


class Rig:
    """A DRAM and the pins to it; commands come as late as JEDEC may ask unless a clock is given."""

    def __init__(self, vendor: str = "A", seed: int = 1, vdd_mv: int = 1350) -> None:
        self.dram = SimulatedDram(BUILD, PRESETS[vendor], seed, TIMINGS, SPACING)
        self.dram.set_environment(vdd_mv * 1000, 20.0)
        self.dram.apply_environment()
        self._call = simulated_dram.command_function().ctypes
        self.burst = np.zeros(WORDS, np.uint32)
        self._mask = np.zeros(1, np.uint32)
        self.clock = 400

    def send(self, name: str, bank: int = 0, address: int = 0, after: int = 400, pins: int = ENABLED | DRIVEN) -> int:
        """A command ``after`` DRAM clocks from the last one."""
        self.clock += after
        return self._pins(PINS[name] | pins, bank, address)

    def data(self, words: Words, mask: int = 0) -> int:
        self.burst[:], self._mask[0] = words, mask
        return self._pins(DATA, 0, 0)

    def _pins(self, pins: int, bank: int, address: int) -> int:
        places = (self.burst.ctypes.data, self._mask.ctypes.data)
        while (answer := self._call(self.dram.address, pins, bank, address, self.clock, *places)) == WANTS_MEMORY:
            self.dram.grow()
        assert answer == DONE
        return answer

    def phased(self, name: str, bank: int, column: int, least: int = 400, **options: int) -> None:
        """RD or WR on its phase, at least ``least`` clocks after the last command."""
        late = next(k for k in count(least) if (self.clock + k) % BUILD.nphases == PHASES[name])
        self.send(name, bank, column, late, **options)

    def write(self, bank: int, row: int, column: int, words: Words, mask: int = 0) -> None:
        self.send("ACT", bank, row)
        self.phased("WR", bank, column)
        self.data(words, mask)
        self.send("PRE", bank)

    def read(self, bank: int, row: int, column: int, trcd: int = 400) -> Words:
        self.send("ACT", bank, row, after=next(k for k in count(400) if (self.clock + k + trcd) % 4 == 1))
        self.send("RD", bank, column, after=trcd)
        words = self.burst.copy()
        self.send("PRE", bank)
        return words


def words_of(number: int) -> Words:
    return np.random.default_rng(number).integers(0, 1 << 32, WORDS).astype(np.uint32)


def places() -> list[tuple[int, int, int]]:
    return [(bank, row, column) for bank in (0, 3, 7) for row in (0, 63) for column in (0, 8, 56)]


def test_what_was_written_is_read_and_nothing_else_changes() -> None:
    rig = Rig()
    before = {place: rig.read(*place) for place in places()}
    assert len({words.tobytes() for words in before.values()}) == len(before)  # power-up content differs everywhere
    for number, place in enumerate(places()[::2]):
        rig.write(*place, words_of(number))
    for number, place in enumerate(places()):
        expected = before[place] if number % 2 else words_of(number // 2)
        assert np.array_equal(rig.read(*place), expected), place
    assert rig.dram.violation_counts() == {}


def test_masked_bytes_keep_what_they_held() -> None:
    rig = Rig()
    old, new = words_of(1), words_of(2)
    for mask in (0x0001, 0x8000, 0x0FF0, 0xFFFF, 0xA5A5):
        rig.write(2, 5, 16, old)
        rig.write(2, 5, 16, new, mask)
        keep = np.array([mask >> byte & 1 for byte in range(4 * WORDS)], bool)
        expected = np.where(keep, old.view(np.uint8), new.view(np.uint8)).view(np.uint32)
        assert np.array_equal(rig.read(2, 5, 16), expected), hex(mask)


def test_data_follow_their_writes_in_order_and_late() -> None:
    """Two WRITEs to two banks before the data of either."""
    rig = Rig()
    rig.send("ACT", 0, 1)
    rig.send("ACT", 1, 2)
    rig.phased("WR", 0, 8)
    rig.phased("WR", 1, 24, least=4)
    rig.data(words_of(1))
    rig.data(words_of(2))
    rig.send("PRE", 0, ALL)
    assert np.array_equal(rig.read(0, 1, 8), words_of(1))
    assert np.array_equal(rig.read(1, 2, 24), words_of(2))
    assert rig.dram.violation_counts() == {}


def test_auto_precharge_closes_the_bank_after_the_data() -> None:
    rig = Rig()
    rig.send("ACT", 4, 9)
    rig.phased("WR", 4, 8 | A10)
    rig.data(words_of(7))
    rig.send("ACT", 4, 9)
    rig.phased("RD", 4, 8 | A10)
    assert np.array_equal(rig.burst, words_of(7))
    rig.send("REF")
    assert rig.dram.violation_counts() == {}
    rig.phased("RD", 4, 8)
    assert rig.dram.violation_counts() == {"CLOSED_BANK": 1}


@pytest.mark.parametrize("held", [17, 18])
def test_row_closed_before_tras_loses_all_it_held(held: int) -> None:
    assert TIMINGS.tras == 18
    rig, twin = Rig(), Rig()
    for each in (rig, twin):
        each.write(1, 6, 8, words_of(1))
        each.write(1, 7, 8, words_of(2))
        before = each.read(1, 6, 56)
        each.send("ACT", 1, 6)
        each.send("PRE", 1, after=held)
        kept = np.array_equal(each.read(1, 6, 8), words_of(1)), np.array_equal(each.read(1, 6, 56), before)
        assert kept == ((held >= 18,) * 2)
        assert np.array_equal(each.read(1, 7, 8), words_of(2))  # the row beside it
        assert each.dram.violation_counts() == ({} if held >= 18 else {"tRAS": 1})
    assert np.array_equal(rig.read(1, 6, 8), twin.read(1, 6, 8))  # lost, but the same each time


def test_write_whose_row_closes_too_soon_is_lost() -> None:
    rig = Rig()
    rig.write(0, 3, 8, words_of(1))
    rig.send("ACT", 0, 3)
    rig.phased("WR", 0, 8)
    rig.send("PRE", 0, after=2)
    rig.data(words_of(2))
    assert rig.dram.violation_counts() == {"tWR": 1, Fault.WRITE_DATA.name: 1}
    assert np.array_equal(rig.read(0, 3, 8), words_of(1))


def test_refused_commands_change_nothing_and_are_counted() -> None:
    rig = Rig()
    rig.write(0, 3, 8, words_of(1))
    rig.phased("WR", 0, 8)  # closed
    rig.data(words_of(2))
    rig.send("ACT", 0, 3)
    rig.send("ACT", 0, 4)  # open
    rig.phased("RD", 0, 8)
    assert np.array_equal(rig.burst, words_of(1))
    rig.phased("RD", 0, 64)  # beyond the row
    rig.phased("RD", 0, 12)  # within a burst
    rig.phased("WR", 0, 8, pins=ENABLED)  # no data
    rig.data(words_of(3))
    rig.phased("WR", 0, 8, pins=DRIVEN)  # clock stopped
    rig.data(words_of(4))
    rig.send("PRE", 0)
    rig.send("ACT", 0, 64)  # no such row
    rig.send("PRE", 0)
    counts = rig.dram.violation_counts()
    assert counts == {"CLOSED_BANK": 1, "OPEN_BANK": 1, "ADDRESS": 3, "WRITE_DATA": 1, "CLOCK_ENABLE": 1}
    assert np.array_equal(rig.read(0, 3, 8), words_of(1))


def test_a_read_of_a_closed_bank_gives_no_data_that_anyone_wrote() -> None:
    rig = Rig()
    rig.write(0, 3, 8, words_of(1))
    rig.phased("RD", 0, 8)
    assert not np.array_equal(rig.burst, words_of(1))


@pytest.mark.parametrize("name", ["RD", "WR"])
def test_data_commands_off_their_phase_are_counted(name: str) -> None:
    rig = Rig()
    rig.send("ACT", 0, 1)
    for _ in range(4):
        rig.send(name, 0, 8, after=401)  # each time on the next phase
    assert rig.dram.violation_counts() == {"PHASE": 3}
    assert PHASES[name] not in {violation.clock % 4 for violation in rig.dram.first_violations()}


def test_trcd_below_nominal_is_a_violation_unless_allowed() -> None:
    rig = Rig()
    rig.read(0, 1, 8, trcd=TIMINGS.trcd)
    assert rig.dram.violation_counts() == {}
    rig.read(0, 1, 8, trcd=TIMINGS.trcd - 1)
    assert rig.dram.violation_counts() == {"tRCD": 1}
    rig.dram.allow_trcd(4)
    rig.read(0, 1, 8, trcd=4)
    assert rig.dram.violation_counts() == {"tRCD": 1}
    rig.read(0, 1, 8, trcd=3)
    ((*_, last),) = (rig.dram.first_violations(),)
    assert (last.rule, last.command) == ("tRCD", Command.RD)


def test_short_trcd_flips_bits_as_often_as_the_model_says_and_repeats_with_the_epoch() -> None:
    everywhere = [(bank, row, column) for bank in range(8) for row in range(32) for column in range(0, 64, 8)]

    def flips() -> Words:
        rig = Rig("C", seed=5)
        for place in everywhere:
            rig.write(*place, np.full(WORDS, 0xFFFFFFFF, np.uint32))
        rig.dram.begin_epoch(3)
        return np.array([rig.read(*place, trcd=1) for place in everywhere])

    first, again = flips(), flips()
    assert np.array_equal(first, again)
    wrong = 1 - np.bitwise_count(first).sum() / (first.size * 32)
    preset = PRESETS["C"]
    expected = expectation.weak_fraction(preset, 1350, 2000) * expectation.flips(preset, 1350, 2000)[1]
    assert wrong == pytest.approx(expected, rel=0.08)


def test_memory_grows_as_it_is_used_up_and_nothing_is_lost() -> None:
    rig = Rig()
    everywhere = [(bank, row, column) for bank in range(8) for row in range(0, 64, 2) for column in range(0, 64, 8)]
    for number, place in enumerate(everywhere):
        rig.write(*place, words_of(number))
    assert all(np.array_equal(rig.read(*place), words_of(number)) for number, place in enumerate(everywhere))
    assert len(everywhere) > 4 * 256  # the pools begin with 256 entries
    assert rig.dram.violation_counts() == {}


def test_without_supply_or_below_the_model_no_clock_passes() -> None:
    dram = SimulatedDram(BUILD, PRESETS["A"], 1, TIMINGS, SPACING)
    with pytest.raises(BoardError, match="no supply"):
        dram.apply_environment()
    dram.set_environment(800_000, 20.0)
    with pytest.raises(BoardError, match="900 mV"):
        dram.apply_environment()

"""Finds the delays and bitslips at which data arrive whole, as LiteX's BIOS does (``liblitedram/sdram.c``).

Writes first, where the PHY can: each lane's DQS is moved to where the DRAM sees the clock rise (write levelling), the
clock cycle is found that the DRAM takes the data in (write latency), and DQ is centred on DQS. Then reads: the bitslip
with the widest window of delays, and its centre. All lanes are looked at in every test, and move together while they
go the same way.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from host.bringup.injector import Bits, Injector
from host.bringup.phy import Knob, Lanes, Phy, WriteKnobs
from profiles.errors import BoardError
from profiles.progress import Progress, silent

PATTERNS = 3  # bursts of random data that a test writes and reads
PROOF_PATTERNS = 16  # and that must come back whole where a delay was settled on
LEAST_TAPS = 2  # of a window: at its edges data come back now and then
SEARCH_POSITIONS = 32  # of the delays, that a search for a bitslip looks at
STROBES = 9  # a write delay's feedback is what most of so many say
STROBES_SEARCHING = 3  # while a clock delay is looked for
_WRITE_POSITIONS_SEARCHING = 32
_TCK_SLIPS = 2  # bitslips of a DRAM clock

Passed = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Window:
    """Consecutive taps at which all went well.

    Attributes:
        first, last: its ends, inclusive.
    """

    first: int
    last: int

    @property
    def taps(self) -> int:
        return self.last - self.first + 1

    @property
    def centre(self) -> int:
        return (self.first + self.last) // 2


@dataclass(frozen=True)
class LaneLevels:
    """What was found for one byte lane; None where its PHY leaves nothing to find.

    Attributes:
        read_bitslip, read: the window's centre is set.
        write_delay, write_bitslip, write_dq: likewise for writes.
    """

    read_bitslip: int
    read: Window
    write_delay: int | None = None
    write_bitslip: int | None = None
    write_dq: Window | None = None


@dataclass(frozen=True)
class Levels:
    """What was found for all lanes.

    Attributes:
        lanes: by number.
        clock_delay: of clock and commands; None where the PHY has none.
    """

    lanes: tuple[LaneLevels, ...]
    clock_delay: int | None


def longest_window(passed: Passed) -> Window | None:
    """The longest run of True, the first of equals; None where there is none."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], passed.astype(np.int8), [0]])))
    begins, ends = edges[::2], edges[1::2]
    if not begins.size:
        return None
    k = int(np.argmax(ends - begins))
    return Window(int(begins[k]), int(ends[k]) - 1)


class Levelling:
    """Levels a PHY, whose DRAM is initialised and in the injector's hands.

    Args:
        injector: issues commands.
        phy: its knobs.
        level_writes: switches the DRAM's write levelling mode on or off.
        progress: told of steps done, and of all.
    """

    def __init__(
        self, injector: Injector, phy: Phy, level_writes: Callable[[bool], None], progress: Progress = silent
    ) -> None:
        self._injector, self._phy, self._level_writes, self._progress = injector, phy, level_writes, progress
        build = injector.build
        random = np.random.default_rng(0xEDE4)
        shape = (PROOF_PATTERNS, build.geometry.burst_length, build.geometry.data_width)
        self._bursts: list[Bits] = list(random.integers(0, 2, shape, dtype=np.uint8))
        self._steps, self._done = self._count_steps(), 0

    def run(self) -> Levels:
        """Level writes and reads.

        Raises:
            BoardError: a lane has no window; the message names the lane, what was tried and what to do.
        """
        phy = self._phy
        phy.begin()
        try:
            phy.read_delay.restart(phy.lanes)
            phy.read_bitslip.restart(phy.lanes)
            clock_delay, write_delays, write_bitslips, write_dqs = None, None, None, None
            if (write := phy.write) is not None:
                write.bitslip.restart(phy.lanes)
                write.delay.restart(phy.lanes)
                tck = write.tck_taps()
                clock_delay = self._centre_clock(write, tck)
                write_delays = self._level(write, tck)
                write_bitslips = self._calibrate_write_latency(write.bitslip, tck)
                if write.dq_delay is not None:
                    self._level_reads()
                    write_dqs = self._centre(write.dq_delay, "keep the supply at nominal, and look at the lane's DQ")
            bitslips, windows = self._level_reads()
            self._prove()
        finally:
            phy.end()
        self._progress(self._steps, self._steps)
        return Levels(
            tuple(
                LaneLevels(
                    read_bitslip=bitslips[lane],
                    read=windows[lane],
                    write_delay=write_delays[lane] if write_delays else None,
                    write_bitslip=write_bitslips[lane] if write_bitslips else None,
                    write_dq=write_dqs[lane] if write_dqs else None,
                )
                for lane in phy.lanes
            ),
            clock_delay,
        )

    # ---- tests -------------------------------------------------------------------------------------------------------

    def failing_lanes(self, bursts: int = PATTERNS) -> Lanes:
        """Write and read random bursts: lanes in which a bit came back wrong, or whose strobe was not seen.

        It ends early once every lane has failed.
        """
        failing: set[int] = set()
        for burst in self._bursts[:bursts]:
            self._injector.load(burst)
            self._injector.write_burst()
            self._phy.expect_burst()
            wrong = (self._injector.read_burst() != burst).any(axis=0)
            failing |= set((np.flatnonzero(wrong) // 8).tolist())
            failing |= set(self._phy.lanes) - set(self._phy.burst_seen())
            if len(failing) == len(self._phy.lanes):
                break
        return tuple(sorted(failing))

    def _scan(self, delay: Knob, step: int = 1, positions: int | None = None) -> Passed:
        """bool[lanes, positions looked at]: where each lane passes the test, up to ``positions`` of the knob."""
        delay.restart(self._phy.lanes)
        passed = []
        for position in range(positions or delay.positions):
            if position:
                delay.advance(self._phy.lanes)
            if position % step == 0:
                failing = self.failing_lanes()
                passed.append([lane not in failing for lane in self._phy.lanes])
                self._step()
        return np.array(passed).T

    def _prove(self) -> None:
        if failing := self.failing_lanes(PROOF_PATTERNS):
            raise BoardError(
                f"{_named(failing)} fails again in the centre of its window: the link to the DRAM is not steady; keep "
                "the supply at nominal, let the board warm up, and run eden board init again"
            )

    # ---- reads -------------------------------------------------------------------------------------------------------

    def _level_reads(self) -> tuple[dict[int, int], dict[int, Window]]:
        """Bitslip and window of each lane; both are set."""
        phy = self._phy
        widest = self._widest(phy.read_bitslip)
        found = {lane: bitslip for lane, (_, bitslip) in widest.items() if bitslip is not None}
        if missing := tuple(lane for lane in phy.lanes if lane not in found):
            raise BoardError(f"{self._reads_nowhere(missing)} and {_range(phy.read_delay)}{self._remedy(missing)}")
        phy.read_bitslip.set(found)
        remedy = "seat the module, keep the supply at nominal, or build the gateware with a lower SYS_CLK_MHZ"
        return found, self._centre(phy.read_delay, remedy)

    def _widest(self, bitslip: Knob, positions: int | None = None) -> dict[int, tuple[int, int | None]]:
        """Each lane's widest window over so many delays, in positions looked at, and its bitslip; 0, None: at none."""
        lanes = self._phy.lanes
        best: dict[int, tuple[int, int | None]] = dict.fromkeys(lanes, (0, None))
        bitslip.restart(lanes)
        for position in range(bitslip.positions):
            if position:
                bitslip.advance(lanes)
            scanned = self._scan(self._phy.read_delay, self._search_step, positions)
            for lane, passed in zip(lanes, scanned, strict=True):
                window = longest_window(passed)
                if window is not None and window.taps > best[lane][0]:
                    best[lane] = window.taps, position
        return best

    def _centre(self, delay: Knob, remedy: str) -> dict[int, Window]:
        """The window of each lane; its centre is set."""
        windows = {}
        for lane, passed in zip(self._phy.lanes, self._scan(delay), strict=True):
            window = longest_window(passed)
            if window is None or window.taps < LEAST_TAPS:
                raise BoardError(
                    f"{_named((lane,))} has no window of {LEAST_TAPS} taps or more among {_range(delay)} "
                    f"({window.taps if window else 0} found); {remedy}"
                )
            windows[lane] = window
        delay.set({lane: window.centre for lane, window in windows.items()})
        return windows

    def _reads_nowhere(self, lanes: Lanes) -> str:
        return f"{_named(lanes)} reads no test data at any of {_range(self._phy.read_bitslip)}"

    def _remedy(self, lanes: Lanes) -> str:
        if lanes == self._phy.lanes:
            return ", nor does another lane: is the module seated, its supply on, and the gateware built for it?"
        return "; seat the module, clean its contacts, and look at the lane's DQ, DQS and DM"

    # ---- writes ------------------------------------------------------------------------------------------------------

    def _centre_clock(self, write: WriteKnobs, tck: int) -> int:
        """Set the clock delay, up to half a clock, that lets most lanes be levelled, and nearest to mid-range."""
        lanes, positions = self._phy.lanes, write.delay.positions
        best, span = 0, range(max(1, tck // 2))
        for step in (1,) if positions <= SEARCH_POSITIONS else (positions // 8, positions // SEARCH_POSITIONS):
            scores = {}
            write.clock_delay.restart(lanes)
            for position in range(span[::step][-1] + 1):
                if position:
                    write.clock_delay.advance(lanes)
                if position in span[::step]:
                    scores[position] = self._score_of_clock(write, tck)
            best = max(scores, key=lambda position: scores[position])
            span = range(max(0, best - step), min(positions, best + step + 1))
        write.clock_delay.set(dict.fromkeys(lanes, best))
        return best

    def _score_of_clock(self, write: WriteKnobs, tck: int) -> tuple[int, float]:
        """Lanes that can be levelled; how near, negative, the middle of what they see high is to the delays' own."""
        positions = write.delay.positions
        found = self._rising_edges(write, tck, STROBES_SEARCHING, max(1, positions // _WRITE_POSITIONS_SEARCHING))
        edges = [edge for edge in found.values() if edge is not None]
        if not edges:
            return 0, 0.0
        return len(edges), -abs(sum(edges) / len(edges) + tck / 4 - (positions - tck / 4) / 2)

    def _level(self, write: WriteKnobs, tck: int) -> dict[int, int]:
        """Write levelling: the delay of each lane at which the DRAM sees its clock rise; it is set."""
        found = self._rising_edges(write, tck, STROBES, 1)
        if missing := tuple(lane for lane, edge in found.items() if edge is None):
            raise BoardError(
                f"{_named(missing)} sees no rising clock at write delays 0 to {write.delay.positions - tck // 4 - 1} "
                f"(tCK is {tck} taps); seat the module, and look at the lane's DQS and DQ: or build the gateware with "
                "another SYS_CLK_MHZ"
            )
        edges = {lane: edge for lane, edge in found.items() if edge is not None}
        write.delay.set(edges)
        return edges

    def _rising_edges(self, write: WriteKnobs, tck: int, strobes: int, step: int) -> dict[int, int | None]:
        """Where the DRAM begins to find its clock high, by lane; None where that lies too far outside.

        The last quarter of a clock is left out: DQS, that much later than DQ, has no taps for it.
        """
        lanes = self._phy.lanes
        positions = range(0, write.delay.positions - tck // 4)
        self._level_writes(True)
        write.enable(True)
        try:
            write.delay.restart(lanes)
            high = []
            for position in positions:
                if position:
                    write.delay.advance(lanes)
                if position % step == 0:
                    high.append(self._clock_seen_high(write, strobes))
                    self._step()
            write.delay.restart(lanes)
        finally:
            write.enable(False)
            self._level_writes(False)
        edges: dict[int, int | None] = {}
        for lane, seen in zip(lanes, np.array(high).T, strict=True):
            window = longest_window(seen)
            # one that begins at 0 rose before: within tDQSS if more than a quarter of a clock is left of it
            usable = window is not None and (window.first > 0 or window.taps * step > tck // 4)
            edges[lane] = window.first * step if usable and window is not None else None
        return edges

    def _clock_seen_high(self, write: WriteKnobs, strobes: int) -> Passed:
        """bool[lanes]: what most of ``strobes`` say. A lane's DRAM answers on one DQ or on all of them."""
        votes = np.zeros(len(self._phy.lanes), np.int64)
        for _ in range(strobes):
            write.strobe()
            votes += self._injector.captured()[0].reshape(-1, 8).any(axis=1)
        return 2 * votes > strobes

    def _calibrate_write_latency(self, write_bitslip: Knob, tck: int) -> dict[int, int]:
        """The write bitslip, in whole clocks, at which each lane reads back well over the most delays; it is set.

        Over all read bitslips, delays of a unit interval (half a clock) find every eye there is.
        """
        lanes, phy = self._phy.lanes, self._phy
        best: dict[int, tuple[int, int | None]] = dict.fromkeys(lanes, (0, None))
        write_bitslip.restart(lanes)
        for position in range(0, write_bitslip.positions, _TCK_SLIPS):
            for _ in range(_TCK_SLIPS if position else 0):
                write_bitslip.advance(lanes)
            widest = self._widest(phy.read_bitslip, min(tck // 2, phy.read_delay.positions))
            for lane in lanes:
                if widest[lane][0] > best[lane][0]:
                    best[lane] = widest[lane][0], position
        found = {lane: position for lane, (_, position) in best.items() if position is not None}
        if missing := tuple(lane for lane in lanes if lane not in found):
            raise BoardError(f"{self._reads_nowhere(missing)} and {_range(write_bitslip)}{self._remedy(missing)}")
        write_bitslip.set(found)
        return found

    # ---- progress ----------------------------------------------------------------------------------------------------

    @property
    def _search_step(self) -> int:
        return max(1, self._phy.read_delay.positions // SEARCH_POSITIONS)

    def _count_steps(self) -> int:
        """About how many positions will be looked at."""
        phy = self._phy
        search = phy.read_bitslip.positions * -(-phy.read_delay.positions // self._search_step)
        steps = search + phy.read_delay.positions
        if phy.write is not None:
            steps += 16 * _WRITE_POSITIONS_SEARCHING + phy.write.delay.positions
            steps += search * phy.write.bitslip.positions // _TCK_SLIPS
            if phy.write.dq_delay is not None:
                steps += search + phy.read_delay.positions + phy.write.dq_delay.positions
        return steps

    def _step(self) -> None:
        self._done = min(self._done + 1, self._steps - 1)
        self._progress(self._done, self._steps)


def _range(knob: Knob) -> str:
    return f"{knob.name}s 0 to {knob.positions - 1}"


def _named(lanes: Lanes) -> str:
    """Lanes and their data lines, in words."""
    return "; ".join(f"lane {lane} (DQ {8 * lane} to {8 * lane + 7})" for lane in lanes)


def in_words(levels: Levels) -> list[dict[str, str]]:
    """A row of a table for each lane, by column."""
    rows = []
    for number, lane in enumerate(levels.lanes):
        row = {"lane": f"{number} (DQ {8 * number} .. {8 * number + 7})"}
        if lane.write_delay is not None:
            row["write delay"] = str(lane.write_delay)
        if lane.write_bitslip is not None:
            row["write bitslip"] = str(lane.write_bitslip)
        if lane.write_dq is not None:
            row["write DQ"] = _span(lane.write_dq)
        row["read bitslip"], row["read delay"] = str(lane.read_bitslip), _span(lane.read)
        rows.append(row)
    return rows


def _span(window: Window) -> str:
    return f"{window.centre} of {window.first} .. {window.last}"

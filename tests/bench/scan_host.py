"""Benchmark: what the host adds to a scan, from the words of the bus to the finished profile on disk.

A mock board's scan is run twice: once with the answers of its bus put on a tape, once from that tape, so that what is
timed is the host alone: programs, registers, log, placing of errors, statistics and files, synced to disk.

Overhead is that over what a real board and link would take: the engine's own clock, and the bytes on the bus by the
line rate. It is an upper bound, as a real board goes on while the host works. Over Ethernet at a BER of 1e-3 the three
take as long as each other; how much of that would overlap only a board can tell, so that no goal stands there.
"""

import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from host.board import Board
from host.boards import open_mock
from host.bus import Bus, Words
from host.links import BAUDRATE
from host.plan import Grid, Rows, ScanPlan
from host.scan import scan
from profiles.pattern import Pattern
from profiles.storage import Profile

REPEATS = 5
ROWS, ROUNDS, PATTERNS = 8192, 4, ("0x33", "0xCC")  # rows of each of eight banks: 512 MiB
ERRORS_PER_S, OVERHEAD = 10e6, 0.05
MANY_ERRORS = 1e-4  # BER from which the log, not the test, is what takes time
ETHERBONE_BYTES_PER_S = 0.8 * 125e6  # the share of a 1 Gbit/s wire that the gateware must keep up with
POINTS = (("ber_1e-5", 1300, (1e-6, 1e-5)), ("ber_1e-3", 1200, (5e-4, 2e-3)))  # name, mV, BER that it must show


class _Tape:
    """A bus whose answers are kept."""

    def __init__(self, bus: Bus) -> None:
        self._bus, self.answers, self.words = bus, list[tuple[int, Words]](), 0

    def read(self, address: int, count: int) -> Words:
        """See `Bus.read`."""
        words = self._bus.read(address, count)
        self.answers.append((address, words.copy()))
        self.words += count
        return words

    def write(self, address: int, words: Words) -> None:
        """See `Bus.write`."""
        self._bus.write(address, words)
        self.words += words.size

    def close(self) -> None:
        """See `Bus.close`."""
        self._bus.close()


class _Player:
    """A bus that answers at once, as the taped one did."""

    def __init__(self, tape: _Tape) -> None:
        self._answers = iter(tape.answers)

    def read(self, address: int, count: int) -> Words:
        """See `Bus.read`."""
        asked, words = next(self._answers)
        if (asked, words.size) != (address, count):
            raise AssertionError(f"{count} words at {address:#x} are read, the tape has {words.size} at {asked:#x}")
        return words

    def write(self, address: int, words: Words) -> None:
        """See `Bus.write`."""

    def close(self) -> None:
        """See `Bus.close`."""


def figures() -> Iterator[dict[str, Any]]:
    """Medians over `REPEATS`, by wall clock."""
    with tempfile.TemporaryDirectory() as folder:
        for name, vdd_mv, (low, high) in POINTS:
            plan = ScanPlan(
                grid=(Grid(trcd_ps=8000, vdd_mv=(vdd_mv,)),),
                patterns=tuple(Pattern.parse(text) for text in PATTERNS),
                rounds=ROUNDS,
                banks=tuple(range(8)),
                rows=Rows(start=0, count=ROWS),
            )
            board = open_mock("A", 3)
            board.bus = tape = _Tape(board.bus)
            found = scan(board, plan, Path(folder) / name)
            errors = sum(_errors(found))
            ber = errors / sum(record.region.cells(board.geometry) * record.rounds for record in found.points)
            if not low <= ber <= high:
                raise AssertionError(f"{name} shows a BER of {ber:.2g}; choose another point of the preset")
            runs = [_played(tape, plan, Path(folder) / f"{name}_{k}", found) for k in range(REPEATS)]
            seconds = statistics.median(runs)
            if low >= MANY_ERRORS:
                yield _figure("host_wire_to_profile", errors / seconds, "errors/s", None, ERRORS_PER_S, at_most=False)
            dram_s = board.usage.clocks * board.build.nphases * board.timings.tck_ps * 1e-12
            for link, bytes_per_s in (("serial", BAUDRATE / 10), ("etherbone", ETHERBONE_BYTES_PER_S)):
                bound = dram_s + 4 * tape.words / bytes_per_s
                goal = None if link == "etherbone" and low >= MANY_ERRORS else OVERHEAD
                yield _figure(f"scan_overhead_{link}_{name}", seconds, "s", bound, goal, at_most=True)


def _played(tape: _Tape, plan: ScanPlan, path: Path, expected: Profile) -> float:
    """Seconds of the scan from the tape, which must find the same."""
    board: Board = open_mock("A", 3)
    board.bus = _Player(tape)
    begun = time.perf_counter()
    found = scan(board, plan, path)
    seconds = time.perf_counter() - begun
    if _errors(found) != _errors(expected):
        raise AssertionError(f"the tape gave {_errors(found)} errors, the mock {_errors(expected)}")
    return seconds


def _errors(profile: Profile) -> list[int]:
    return [errors for record in profile.points for errors in (record.errors_zero_to_one, record.errors_one_to_zero)]


def _figure(
    name: str, value: float, unit: str, bound: float | None, goal: float | None, at_most: bool
) -> dict[str, Any]:
    ratio = None if bound is None else value / bound
    reached = value if ratio is None else ratio
    met = None if goal is None else (reached <= goal if at_most else reached >= goal)
    return {
        **{"bench": "links", "name": name, "value": value, "unit": unit, "bound": bound, "ratio": ratio},
        **{"goal": goal, "met": met},
    }

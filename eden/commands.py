"""Traces of DRAM commands, and what a trace did: commands counted, and clocks spent in each state.

State convention (DRAMPower's): any bank open is active standby, from ACT to PRE; of a refresh's tRFC the last tRP
counts as precharged and the rest as active. Power-down is not modelled: CKE stays high.
"""

from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import numpy as np
import numpy.typing as npt
from numba import njit

from eden.dram_specs import DramSpec
from profiles.errors import ModelError

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
U8 = npt.NDArray[np.uint8]


class Command(IntEnum):
    """What a trace holds; PREA precharges all banks, REF refreshes all."""

    ACT = 0
    PRE = 1
    RD = 2
    WR = 3
    PREA = 4
    REF = 5


@dataclass(frozen=True)
class CommandTrace:
    """Commands of one channel in order of their clock.

    Attributes:
        clock: int64[n], DRAM clocks.
        command, bank: uint8[n]; the bank of PREA and REF is 0.
        address: int32[n], the row of ACT, the column of RD and WR (in bursts); 0 for others.
        length: clocks of the whole trace, at least up to its last command.
    """

    clock: I64
    command: U8
    bank: U8
    address: I32
    length: int


@dataclass(frozen=True)
class Activity:
    """What one device saw: commands, and clocks by state. The two states sum to ``length``.

    ``precharges`` counts banks that were closed: a PREA counts once a bank that was open, a PRE of a closed bank not.
    """

    activates: int
    precharges: int
    reads: int
    writes: int
    refreshes: int
    active_clocks: int
    precharged_clocks: int

    @property
    def length(self) -> int:
        return self.active_clocks + self.precharged_clocks


_ACT, _PRE, _RD, _WR, _PREA, _REF = (int(command) for command in Command)
_SOUND, _UNORDERED, _OPEN, _CLOSED, _BANKS_OPEN, _REFRESHING, _UNKNOWN = range(7)
_WRONG = {
    _UNORDERED: "comes before the one before it; sort the trace by clock",
    _OPEN: "activates a bank that is open; precharge it first",
    _CLOSED: "reads or writes a bank that is closed; activate it first",
    _BANKS_OPEN: "refreshes with a bank open; precharge all first",
    _REFRESHING: "comes within tRFC of a refresh; wait for it",
    _UNKNOWN: f"has no such code or bank; codes are 0..{_REF}, banks below the DRAM's",
}


def activity(trace: CommandTrace, spec: DramSpec) -> Activity:
    """Counts and state clocks of ``trace``.

    Raises:
        ModelError: the trace is out of order, longer than its length, or not a sequence that the DRAM's states allow.
    """
    end = int(trace.clock[-1]) if trace.clock.size else 0
    if trace.length < end:
        raise ModelError(f"the trace ends at clock {end}, beyond its length of {trace.length}; give at least {end}")
    counts = np.zeros(7, np.int64)
    wrong, index = _count(
        trace.clock, trace.command, trace.bank, trace.length, spec.banks, spec.clocks.trfc, spec.clocks.trp, counts
    )
    if wrong:
        raise ModelError(f"command {index} at clock {trace.clock[index]} {_WRONG[wrong]}")
    return Activity(*counts.tolist())


@njit(cache=True)
def _count(
    clock: I64, command: U8, bank: U8, length: int, banks: int, trfc: int, trp: int, counts: I64
) -> tuple[int, int]:
    is_open = np.zeros(banks, np.uint8)
    opened = 0
    since, refreshed = 0, 0  # clock up to which all is accounted for; end of a refresh's tRFC
    for i in range(clock.size):
        now, what, which = clock[i], command[i], bank[i]
        if now < refreshed:
            return _REFRESHING, i
        if now < since:
            return _UNORDERED, i
        if what > _REF or which >= banks:
            return _UNKNOWN, i
        counts[5 if opened else 6] += now - since
        since = now
        if what in (_RD, _WR):
            if not is_open[which]:
                return _CLOSED, i
            counts[2 if what == _RD else 3] += 1
        elif what == _ACT:
            if is_open[which]:
                return _OPEN, i
            is_open[which] = 1
            opened += 1
            counts[0] += 1
        elif what == _PRE:
            opened -= is_open[which]
            counts[1] += is_open[which]
            is_open[which] = 0
        elif what == _PREA:
            counts[1] += opened
            is_open[:] = 0
            opened = 0
        else:
            if opened:
                return _BANKS_OPEN, i
            counts[4] += 1
            refreshed = now + trfc
            counts[5] += min(refreshed - trp, length) - min(now, length)
            counts[6] += min(refreshed, length) - min(refreshed - trp, length)
            since = min(refreshed, length)
    counts[5 if opened else 6] += length - since
    return _SOUND, 0


def export_drampower(trace: CommandTrace, spec: DramSpec, path: Path) -> None:
    """Write DRAMPower 5's command list: timestamp, command, rank, bank group, bank, row, column[, data].

    Data are zeros, so that of its energies the core's are this trace's, the interface's are not.
    """
    names = {_ACT: "ACT", _PRE: "PRE", _RD: "RD", _WR: "WR", _PREA: "PREA", _REF: "REFA"}
    zeros = "00" * (spec.width * spec.burst_beats // 8)
    in_group = spec.banks // spec.bank_groups
    columns = (trace.clock, trace.command, trace.bank, trace.address)
    open_row = [0] * spec.banks
    with path.open("w", encoding="ascii") as file:
        for clock, command, bank, address in zip(*(values.tolist() for values in columns), strict=True):
            if command == _ACT:
                open_row[bank] = address
            row = open_row[bank] if command in (_ACT, _RD, _WR) else 0
            column = f"{address * spec.burst_beats},{zeros}" if command in (_RD, _WR) else "0"
            group, within = divmod(bank, in_group)
            file.write(f"{clock},{names[command]},0,{group},{within},{row},{column}\n")
        file.write(f"{trace.length},END,0,0,0,0,0\n")

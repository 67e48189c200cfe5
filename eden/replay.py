"""When each command of a stream of bursts may come, by JEDEC's distances: the time that a DRAM takes for a trace.

The distances are a table (`constraints`), as in Ramulator 2: a command comes at least so many clocks after another of
the same bank, the same bank group, or any bank. The controller serves bursts in their order; it may activate ahead
for the bursts that are outstanding, issues one command a clock, and refreshes all banks every tREFI.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from pathlib import Path

import numpy as np
import numpy.typing as npt
from numba import njit

from eden.commands import I32, I64, U8, Command, CommandTrace
from eden.dram_specs import DramSpec
from profiles.errors import ModelError

Bools = npt.NDArray[np.bool_]

SERIAL = 1  # outstanding bursts when each depends on the one before
BACK_TO_BACK = 64  # as many as a controller's queue holds: nothing waits but for the DRAM


class RowPolicy(StrEnum):
    """OPEN: a row stays open until another of its bank is wanted. CLOSED: it is precharged after every burst."""

    OPEN = "open"
    CLOSED = "closed"


class Scope(IntEnum):
    """Which earlier command a constraint looks at."""

    BANK = 0  # the last of the same bank
    GROUP = 1  # the last of the same bank group
    ANY = 2  # the last of any bank
    FOURTH = 3  # the last but three, of any bank


@dataclass(frozen=True)
class Constraint:
    """``following`` comes at least ``clocks`` DRAM clocks after the ``preceding`` that ``scope`` names."""

    name: str
    preceding: Command
    following: Command
    scope: Scope
    clocks: int


@dataclass(frozen=True)
class Bursts:
    """Bursts that one channel is to read and write, in order.

    Attributes:
        bank: uint8[n]; the bank group is ``bank // (banks / bank_groups)``.
        row, column: int32[n], column in bursts.
        write: bool[n].
        arrival: int64[n], DRAM clock before which a burst is not asked for.
    """

    bank: U8
    row: I32
    column: I32
    write: Bools
    arrival: I64


def constraints(spec: DramSpec, trcd: int) -> tuple[Constraint, ...]:
    """The distances that a DRAM asks for (JESD79-3F, 79-4, 209-3, 209-4), with a tRCD of ``trcd`` clocks.

    tRC is tRAS + tRP, and tREFI longer than tRFC: neither needs a row of its own.
    """
    c, burst = spec.clocks, spec.burst_clocks
    act, pre, rd, wr, ref = Command.ACT, Command.PRE, Command.RD, Command.WR, Command.REF
    written = c.cwl + burst
    table = [
        Constraint("tRCD", act, rd, Scope.BANK, trcd),
        Constraint("tRCD", act, wr, Scope.BANK, trcd),
        Constraint("tRAS", act, pre, Scope.BANK, c.tras),
        Constraint("tRP", pre, act, Scope.BANK, c.trp),
        Constraint("tRP", pre, ref, Scope.ANY, c.trp_all),
        Constraint("tRRD_S", act, act, Scope.ANY, c.trrd_s),
        Constraint("tFAW", act, act, Scope.FOURTH, c.tfaw),
        Constraint("tRTP", rd, pre, Scope.BANK, c.trtp),
        Constraint("tWR", wr, pre, Scope.BANK, written + c.twr),
        Constraint("tCCD_S", rd, rd, Scope.ANY, c.tccd_s),
        Constraint("tCCD_S", wr, wr, Scope.ANY, c.tccd_s),
        Constraint("tWTR_S", wr, rd, Scope.ANY, written + c.twtr_s),
        Constraint("tRTW", rd, wr, Scope.ANY, c.cl + burst + 2 - c.cwl),
        Constraint("tRFC", ref, act, Scope.ANY, c.trfc),
    ]
    if spec.bank_groups > 1:
        table += [
            Constraint("tRRD_L", act, act, Scope.GROUP, c.trrd_l),
            Constraint("tCCD_L", rd, rd, Scope.GROUP, c.tccd_l),
            Constraint("tCCD_L", wr, wr, Scope.GROUP, c.tccd_l),
            Constraint("tWTR_L", wr, rd, Scope.GROUP, written + c.twtr_l),
        ]
    return tuple(table)


def place(bursts: I64, spec: DramSpec, write: Bools, arrival: I64) -> Bursts:
    """Where bursts lie: int64[n] numbers of a channel's bursts, from 0, to banks, rows and columns.

    Consecutive bursts go to different bank groups (tCCD_S, not tCCD_L, keeps them apart), then along the row, then to
    the next bank.
    """
    in_group = spec.banks // spec.bank_groups
    bursts, group = np.divmod(bursts, spec.bank_groups)
    bursts, column = np.divmod(bursts, spec.row_bursts)
    row, within = np.divmod(bursts, in_group)
    bank = (group * in_group + within).astype(np.uint8)
    return Bursts(bank, row.astype(np.int32), column.astype(np.int32), write, arrival)


def replay(
    bursts: Bursts,
    spec: DramSpec,
    trcd: int,
    outstanding: int,
    policy: RowPolicy = RowPolicy.OPEN,
    table: Sequence[Constraint] | None = None,
    until: int = 0,
) -> CommandTrace:
    """The commands that serve ``bursts``, each as early as it may come.

    Args:
        trcd: clocks from ACT to the first RD or WR.
        outstanding: bursts under way at once: a burst is begun when all but the last ``outstanding - 1`` before it have
            been transferred. `SERIAL` is a dependent chain, `BACK_TO_BACK` saturates.
        table: distances to hold; `constraints` by default.
        until: the trace goes on, refreshing, at least to this clock.

    Returns:
        The trace; it ends when the last burst has been transferred, or at ``until``.

    Raises:
        ModelError: no burst may be outstanding, a bank lies outside the DRAM, or refreshes leave no time for bursts.
    """
    if not 1 <= outstanding <= _RING // 4:
        raise ModelError(f"{outstanding} outstanding bursts; give 1 to {_RING // 4}")
    if bursts.bank.size and int(bursts.bank.max()) >= spec.banks:
        raise ModelError(
            f"bank {int(bursts.bank.max())} is outside {spec.name}'s {spec.banks}; place the bursts for it"
        )
    rules, first = _pack(constraints(spec, trcd) if table is None else table, spec.banks)
    room = _most_commands(bursts, spec, trcd, until)
    clock, command, bank = np.empty(room, np.int64), np.empty(room, np.uint8), np.empty(room, np.uint8)
    address = np.empty(room, np.int32)
    settings = (
        *(spec.banks, spec.banks // spec.bank_groups, outstanding, policy is RowPolicy.CLOSED, until),
        *(spec.clocks.trefi, spec.clocks.cl + spec.burst_clocks, spec.clocks.cwl + spec.burst_clocks),
    )
    asked = (bursts.bank, bursts.row, bursts.column, bursts.write, bursts.arrival)
    out = (clock, command, bank, address)
    used, length = _replay(*asked, rules, first, np.array(settings, np.int64), *out)
    if used < 0:
        raise ModelError(f"refreshes leave no time for bursts at these distances; tREFI is {spec.clocks.trefi} clocks")
    return CommandTrace(clock[:used], command[:used], bank[:used], address[:used], length)


def _pack(table: Sequence[Constraint], banks: int) -> tuple[I64, I64]:
    """Rules in order of the following command, as where in `_replay`'s memory to look, by which index, and how far.

    The memory holds the last clock of each command by bank, by group and of all, then those of the last four ACTs.
    """
    rules = sorted(table, key=lambda rule: rule.following)
    kinds = len(Command)
    base = {Scope.BANK: 0, Scope.GROUP: kinds * banks, Scope.ANY: 2 * kinds * banks, Scope.FOURTH: _fourth(banks)}
    step = {Scope.BANK: banks, Scope.GROUP: banks, Scope.ANY: 1, Scope.FOURTH: 0}
    rows = [(base[r.scope] + r.preceding * step[r.scope], r.scope, r.clocks) for r in rules]
    first = np.searchsorted([rule.following for rule in rules], np.arange(kinds + 1))
    return np.array(rows, np.int64).reshape(-1, 3), first.astype(np.int64)


def _fourth(banks: int) -> int:
    return len(Command) * (2 * banks + 1)


def _most_commands(bursts: Bursts, spec: DramSpec, trcd: int, until: int) -> int:
    """Room for every command: ACT, RD or WR and PRE a burst, PREA and REF a refresh."""
    count = bursts.bank.size
    worst = sum(value for name, value in spec.clocks.model_dump().items() if name not in ("trfc", "trefi")) + trcd
    busy = max(until, int(bursts.arrival.max()) if count else 0) + count * worst
    return 3 * count + 4 + 2 * (2 + busy // (spec.clocks.trefi - spec.clocks.trfc - worst))


_ACT, _PRE, _RD, _WR, _PREA, _REF = (int(command) for command in Command)
_KINDS = len(Command)
_BANK, _GROUP, _FOURTH = int(Scope.BANK), int(Scope.GROUP), int(Scope.FOURTH)
_LONG_AGO = -(1 << 40)
_RING = 1 << 12  # clocks of the command bus, and bursts, that are remembered


@njit(cache=True, error_model="numpy")
def _earliest(memory: I64, rules: I64, begin: int, end: int, at: I64, clock: int) -> int:
    for k in range(begin, end):
        clock = max(clock, memory[rules[k, 0] + at[rules[k, 1]]] + rules[k, 2])
    return clock


@njit(cache=True, error_model="numpy")
def _remember(memory: I64, banks: int, command: int, at: I64, clock: int) -> None:
    memory[command * banks + at[_BANK]] = clock
    group = (_KINDS + command) * banks + at[_GROUP]
    memory[group] = max(memory[group], clock)
    anywhere = 2 * _KINDS * banks + command
    memory[anywhere] = max(memory[anywhere], clock)
    if command == _ACT:
        memory[_KINDS * (2 * banks + 1) + at[_FOURTH]] = clock
        at[_FOURTH] = (at[_FOURTH] + 1) & 3


@njit(cache=True, error_model="numpy")
def _free(bus: I64, clock: int) -> int:
    """The first clock from ``clock`` on with the command bus free, which it then takes."""
    while bus[clock & (_RING - 1)] == clock:
        clock += 1
    bus[clock & (_RING - 1)] = clock
    return clock


@njit(cache=True, error_model="numpy")
def _insert(
    clocks: I64, commands: U8, banks: U8, addresses: I32, used: int, clock: int, command: int, bank: int, address: int
) -> int:
    """Keeps the trace in order: a command may be earlier than those of bursts before it, though not by much."""
    while used > 0 and clocks[used - 1] > clock:
        clocks[used], commands[used] = clocks[used - 1], commands[used - 1]
        banks[used], addresses[used] = banks[used - 1], addresses[used - 1]
        used -= 1
    clocks[used], commands[used], banks[used], addresses[used] = clock, command, bank, address
    return used


@njit(cache=True, error_model="numpy")
def _replay(
    banks: U8, rows: I32, columns: I32, writes: Bools, arrivals: I64, rules: I64, first: I64, settings: I64,
    out_clock: I64, out_command: U8, out_bank: U8, out_address: I32,
) -> tuple[int, int]:  # fmt: skip
    bank_count, group_banks, outstanding, closes, until, trefi, read_clocks, write_clocks = settings
    memory = np.full(_KINDS * (2 * bank_count + 1) + 4, _LONG_AGO, np.int64)
    at = np.zeros(4, np.int64)  # by scope: this bank, its group, nothing, the fourth last ACT
    bus = np.full(_RING, _LONG_AGO, np.int64)
    finished = np.zeros(_RING, np.int64)
    open_row = np.full(bank_count, -1, np.int64)
    used, newest, length, next_refresh = 0, 0, 0, trefi

    i = 0
    while True:
        if used + 4 > out_clock.size:
            return -1, 0
        start = 0
        if i < banks.size:
            start = arrivals[i]
            if i >= outstanding:
                start = max(start, finished[(i - outstanding) & (_RING - 1)])
        if max(start, newest if i < banks.size else until) >= next_refresh:
            start, clock = max(next_refresh, newest), 0
            for bank in range(bank_count):
                if open_row[bank] >= 0:
                    at[_BANK], at[_GROUP] = bank, bank // group_banks
                    clock = max(clock, _earliest(memory, rules, first[_PRE], first[_PRE + 1], at, start))
            if clock:
                clock = _free(bus, clock)
                for bank in range(bank_count):
                    if open_row[bank] >= 0:
                        at[_BANK], at[_GROUP] = bank, bank // group_banks
                        _remember(memory, bank_count, _PRE, at, clock)
                        open_row[bank] = -1
                _insert(out_clock, out_command, out_bank, out_address, used, clock, _PREA, 0, 0)
                used += 1
            clock = _free(bus, _earliest(memory, rules, first[_REF], first[_REF + 1], at, start))
            _remember(memory, bank_count, _REF, at, clock)
            _insert(out_clock, out_command, out_bank, out_address, used, clock, _REF, 0, 0)
            used += 1
            next_refresh += trefi
            newest = max(newest, clock)
            continue
        if i == banks.size:
            break
        bank, row = int(banks[i]), int(rows[i])
        at[_BANK], at[_GROUP] = bank, bank // group_banks
        hit = open_row[bank] == row
        for step in range(4):  # precharge another row, activate, transfer, precharge
            if (step < 2 and hit) or (step == 0 and open_row[bank] < 0) or (step == 3 and not closes):
                continue
            command, address = _PRE, 0
            if step == 1:
                command, address = _ACT, row
            elif step == 2:
                command, address = _WR if writes[i] else _RD, int(columns[i])
            clock = _free(bus, _earliest(memory, rules, first[command], first[command + 1], at, start))
            _remember(memory, bank_count, command, at, clock)
            _insert(out_clock, out_command, out_bank, out_address, used, clock, command, bank, address)
            used += 1
            newest = max(newest, clock)
            if step == 2:
                done = clock + (write_clocks if writes[i] else read_clocks)
                finished[i & (_RING - 1)] = done
                length = max(length, done)
        open_row[bank] = -1 if closes else row
        i += 1
    return used, max(length, max(newest, until))


def export_ramulator(bursts: Bursts, spec: DramSpec, path: Path) -> None:
    """Write Ramulator 2's ReadWriteTrace: ``R`` or ``W`` and channel, rank, [bank group,] bank, row, column.

    The column is in DRAM columns, a burst apart. (Its LoadStoreTrace takes loads for stores, as of 2.1.)
    """
    in_group = spec.banks // spec.bank_groups
    columns = (bursts.write, bursts.bank, bursts.row, bursts.column)
    with path.open("w", encoding="ascii") as file:
        for write, bank, row, column in zip(*(values.tolist() for values in columns), strict=True):
            group, within = divmod(bank, in_group)
            where = f"{group},{within}" if spec.bank_groups > 1 else f"{within}"
            file.write(f"{'W' if write else 'R'} 0,0,{where},{row},{column * spec.burst_beats}\n")

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


@dataclass(frozen=True)
class Controller:
    """What a controller's own clock adds to the DRAM's distances; by default nothing.

    Attributes:
        phases: DRAM clocks in one of its clocks, a power of two; it issues one command in each of its clocks.
        read_phase, write_phase: phase that RD and WR go out on. A row is activated on the one from which its first data
            command can come exactly tRCD later.
    """

    phases: int = 1
    read_phase: int = 0
    write_phase: int = 0


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
    """Where bursts lie: int64[n] numbers of a channel's bursts, from 0 and below 2^32, to banks, rows and columns.

    Consecutive bursts go to different bank groups (tCCD_S, not tCCD_L, keeps them apart), then along the row, then to
    the next bank.
    """
    bank, row, column = (
        np.empty(bursts.size, np.uint8),
        np.empty(bursts.size, np.int32),
        np.empty(bursts.size, np.int32),
    )
    _place(bursts, *spec.address_bits, bank, row, column)
    return Bursts(bank, row, column, write, arrival)


@njit(cache=True, error_model="numpy")
def _place(bursts: I64, group_bits: int, burst_bits: int, bank_bits: int, bank: U8, row: I32, column: I32) -> None:
    for i in range(bursts.size):
        bank[i], row[i], column[i] = place_one(bursts[i], group_bits, burst_bits, bank_bits)


@njit(cache=True, error_model="numpy")
def place_one(number: int, group_bits: int, burst_bits: int, bank_bits: int) -> tuple[int, int, int]:
    """Bank, row and column of one burst, as `place` says, by `DramSpec.address_bits`; for compiled code."""
    group, rest = number & ((1 << group_bits) - 1), number >> group_bits
    column, rest = rest & ((1 << burst_bits) - 1), rest >> burst_bits
    return group << bank_bits | rest & ((1 << bank_bits) - 1), rest >> bank_bits, column


def replay(
    bursts: Bursts,
    spec: DramSpec,
    trcd: int,
    outstanding: int,
    policy: RowPolicy = RowPolicy.OPEN,
    table: Sequence[Constraint] | None = None,
    until: int = 0,
    controller: Controller | None = None,
) -> CommandTrace:
    """The commands that serve ``bursts``, each as early as it may come.

    Args:
        trcd: clocks from ACT to the first RD or WR.
        outstanding: bursts under way at once: a burst is begun when all but the last ``outstanding - 1`` before it have
            been transferred. `SERIAL` is a dependent chain, `BACK_TO_BACK` saturates.
        table: distances to hold; `constraints` by default.
        until: the trace goes on, refreshing, at least to this clock.
        controller: who issues them; one that takes any clock by default.

    Returns:
        The trace; it ends when the last burst has been transferred, or at ``until``.

    Raises:
        ModelError: no burst may be outstanding, a bank lies outside the DRAM, refreshes leave no time for bursts, or
            tRCD is shorter than a clock of the controller, which issues one command in each.
    """
    if not 1 <= outstanding <= _RING // 4:
        raise ModelError(f"{outstanding} outstanding bursts; give 1 to {_RING // 4}")
    if bursts.bank.size and int(bursts.bank.max()) >= spec.banks:
        raise ModelError(
            f"bank {int(bursts.bank.max())} is outside {spec.name}'s {spec.banks}; place the bursts for it"
        )
    by = controller or Controller()
    if by.phases > 1 and trcd < by.phases:
        raise ModelError(f"a tRCD of {trcd} clocks is shorter than the controller's own clock of {by.phases}; cut less")
    rules, first = _pack(constraints(spec, trcd) if table is None else table, spec.banks)
    room = _most_commands(bursts, spec, trcd + 4 * by.phases, until)
    clock, command, bank = np.empty(room, np.int64), np.empty(room, np.uint8), np.empty(room, np.uint8)
    address = np.empty(room, np.int32)
    settings = (
        *(spec.banks, spec.banks // spec.bank_groups, outstanding, policy is RowPolicy.CLOSED, until),
        *(spec.clocks.trefi, spec.clocks.cl + spec.burst_clocks, spec.clocks.cwl + spec.burst_clocks),
        *(by.phases.bit_length() - 1, by.read_phase, by.write_phase, trcd),
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


def _most_commands(bursts: Bursts, spec: DramSpec, more: int, until: int) -> int:
    """Room for every command: ACT, RD or WR and PRE a burst, PREA and REF a refresh.

    ``more`` clocks of a burst are beyond the distances of ``spec``.
    """
    count = bursts.bank.size
    worst = sum(value for name, value in spec.clocks.model_dump().items() if name not in ("trfc", "trefi")) + more
    busy = max(until, int(bursts.arrival.max()) if count else 0) + count * worst
    return 3 * count + 4 + 2 * (2 + busy // (spec.clocks.trefi - spec.clocks.trfc - worst))


_ACT, _PRE, _RD, _WR, _PREA, _REF = (int(command) for command in Command)
_KINDS = len(Command)
_BANK, _GROUP, _FOURTH = int(Scope.BANK), int(Scope.GROUP), int(Scope.FOURTH)
_LONG_AGO = -(1 << 40)
_RING = 1 << 12  # clocks of the command bus, and bursts, that are remembered


# Arrays are passed to compiled functions whole, many words each: what is called for every command is inlined.


@njit(cache=True, error_model="numpy", inline="always")
def _earliest(memory: I64, rules: I64, begin: int, end: int, at: I64, clock: int) -> int:
    for k in range(begin, end):
        clock = max(clock, memory[rules[k, 0] + at[rules[k, 1]]] + rules[k, 2])
    return clock


@njit(cache=True, error_model="numpy", inline="always")
def _remember(memory: I64, banks: int, command: int, at: I64, clock: int) -> None:
    memory[command * banks + at[_BANK]] = clock
    group = (_KINDS + command) * banks + at[_GROUP]
    memory[group] = max(memory[group], clock)
    anywhere = 2 * _KINDS * banks + command
    memory[anywhere] = max(memory[anywhere], clock)
    if command == _ACT:
        memory[_KINDS * (2 * banks + 1) + at[_FOURTH]] = clock
        at[_FOURTH] = (at[_FOURTH] + 1) & 3


@njit(cache=True, error_model="numpy", inline="always")
def _free(bus: I64, clock: int, shift: int, phase: int) -> int:
    """The first clock from ``clock`` on, at ``phase`` (-1: any), with the command bus free, which it then takes.

    A command takes the bus for a clock of the controller, which is ``1 << shift`` of the DRAM's.
    """
    while True:
        if phase >= 0:
            clock += (phase - clock) & ((1 << shift) - 1)
        turn = clock >> shift
        if bus[turn & (_RING - 1)] != turn:
            bus[turn & (_RING - 1)] = turn
            return clock
        clock = (turn + 1) << shift


@njit(cache=True, error_model="numpy", inline="always")
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
    bank_count, group_banks, outstanding, closes, until, trefi, read_clocks, write_clocks = settings[:8]
    shift, read_phase, write_phase, trcd = settings[8:]
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
                clock = _free(bus, clock, shift, -1)
                for bank in range(bank_count):
                    if open_row[bank] >= 0:
                        at[_BANK], at[_GROUP] = bank, bank // group_banks
                        _remember(memory, bank_count, _PRE, at, clock)
                        open_row[bank] = -1
                _insert(out_clock, out_command, out_bank, out_address, used, clock, _PREA, 0, 0)
                used += 1
            clock = _free(bus, _earliest(memory, rules, first[_REF], first[_REF + 1], at, start), shift, -1)
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
        data_phase = write_phase if writes[i] else read_phase
        for step in range(4):  # precharge another row, activate, transfer, precharge
            if (step < 2 and hit) or (step == 0 and open_row[bank] < 0) or (step == 3 and not closes):
                continue
            command, address, phase = _PRE, 0, -1
            if step == 1:
                command, address, phase = _ACT, row, (data_phase - trcd) & ((1 << shift) - 1)
            elif step == 2:
                command, address, phase = _WR if writes[i] else _RD, int(columns[i]), data_phase
            clock = _free(bus, _earliest(memory, rules, first[command], first[command + 1], at, start), shift, phase)
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

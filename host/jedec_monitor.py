"""Watches the commands that reach a DRAM and counts every one that JEDEC forbids.

The rules are a table: a command comes at least so many clocks after another of the same bank, of the same bank group,
or of any bank. Beside it stand the rules of state. The monitor knows nothing of who sends the commands: it holds what
arrives against `host.timings` and the latencies that the DRAM is set to.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from gateware.isa import Command
from host.chip import I64
from host.compiled import inlined
from host.timings import Timings

BURST_CLOCKS = 4  # BL8
REMEMBERED = 16  # violations of which clock, command and bank are kept


class Scope(IntEnum):
    """Which earlier command a rule looks at."""

    BANK = 0  # the last of the same bank
    GROUP = 1  # the last of the same bank group
    ANY = 2  # the last of any bank
    FOURTH = 3  # the last but three, of any bank; only for ACT


class Fault(IntEnum):
    """What is wrong with a command whenever it comes."""

    OPEN_BANK = 0  # ACT to a bank with a row open
    CLOSED_BANK = 1  # RD or WR to a bank without
    BANKS_OPEN = 2  # REF, ZQ or MRS with a row open
    ADDRESS = 3  # a row or column that the module does not have
    CLOCK_ENABLE = 4  # a command while CKE or RESET# is low
    UNDEFINED = 5  # a command that the toolkit does not know
    PHASE = 6  # RD or WR off the PHY's rdphase or wrphase, where its data are shifted
    WRITE_DATA = 7  # WR that the PHY drives no data for, or whose row was closed before they came


@dataclass(frozen=True)
class GroupSpacing:
    """DDR4's bank groups: where `Timings` and `Spacing` hold one of two values, the other; in DRAM clocks.

    Attributes:
        banks: of a group.
        trrd_short: tRRD_S, between ACTs to different groups.
        twtr_long: tWTR_L, within a group.
    """

    banks: int
    trrd_short: int
    twtr_long: int


@dataclass(frozen=True)
class Spacing:
    """What JEDEC's distances depend on beyond `Timings`, in DRAM clocks.

    Attributes:
        cas_latency: that the DRAM is set to (CL).
        twtr: from the end of a WRITE's data to a READ; DDR4's tWTR_S.
        tmrd, tmod, tzqcs, tzqoper: after MRS, and after ZQ commands.
        group: None where there are no bank groups.
    """

    cas_latency: int
    twtr: int
    tmrd: int
    tmod: int
    tzqcs: int
    tzqoper: int
    group: GroupSpacing | None = None

    @classmethod
    def ddr3(cls, tck_ps: int, cas_latency: int) -> "Spacing":
        """JESD79-3F."""
        return cls(
            cas_latency,
            twtr=_clocks(4, 7_500, tck_ps),
            tmrd=4,
            tmod=_clocks(12, 15_000, tck_ps),
            tzqcs=_clocks(64, 80_000, tck_ps),
            tzqoper=_clocks(256, 320_000, tck_ps),
        )

    @classmethod
    def ddr4(cls, tck_ps: int, cas_latency: int) -> "Spacing":
        """JESD79-4, speed bin DDR4-1600, 1 KiB pages."""
        group = GroupSpacing(4, trrd_short=_clocks(4, 5_000, tck_ps), twtr_long=_clocks(4, 7_500, tck_ps))
        twtr, tmod = _clocks(2, 2_500, tck_ps), _clocks(24, 15_000, tck_ps)
        return cls(cas_latency, twtr=twtr, tmrd=8, tmod=tmod, tzqcs=128, tzqoper=512, group=group)


def _clocks(least: int, ps: int, tck_ps: int) -> int:
    return max(least, -(-ps // tck_ps))


@dataclass(frozen=True)
class Rule:
    """``following`` comes at least ``clocks`` DRAM clocks after the ``preceding`` that ``scope`` names."""

    name: str
    preceding: Command
    following: Command
    scope: Scope
    clocks: int


def rules(timings: Timings, spacing: Spacing) -> tuple[Rule, ...]:
    """Every distance between two commands that a DRAM asks for, at nominal tRCD."""
    t, s = timings, spacing
    act, rd, wr, pre, ref = Command.ACT, Command.RD, Command.WR, Command.PRE, Command.REF
    idle = (act, ref, Command.ZQCS, Command.ZQCL, Command.MRS)  # commands that want the banks they concern precharged
    written = t.write_latency + BURST_CLOCKS  # from WRITE to the end of its data
    table = [
        Rule("tRCD", act, rd, Scope.BANK, t.trcd),
        Rule("tRCD", act, wr, Scope.BANK, t.trcd),
        Rule("tRAS", act, pre, Scope.BANK, t.tras),
        Rule("tRC", act, act, Scope.BANK, t.tras + t.trp),
        Rule("tRRD", act, act, Scope.ANY, s.group.trrd_short if s.group else t.trrd),
        Rule("tFAW", act, act, Scope.FOURTH, t.tfaw),
        Rule("tRTP", rd, pre, Scope.BANK, t.trtp),
        Rule("tWR", wr, pre, Scope.BANK, written + t.twr),
        Rule("tCCD", rd, rd, Scope.ANY, BURST_CLOCKS),
        Rule("tCCD", wr, wr, Scope.ANY, BURST_CLOCKS),
        Rule("tWTR", wr, rd, Scope.ANY, written + s.twtr),
        Rule("tRTW", rd, wr, Scope.ANY, s.cas_latency + BURST_CLOCKS + 2 - t.write_latency),
        Rule("tRP", pre, act, Scope.BANK, t.trp),
        *(Rule("tRP", pre, following, Scope.ANY, t.trp) for following in idle[1:]),
        *(Rule("tRFC", ref, following, Scope.ANY, t.trfc) for following in idle),
        *(Rule("tZQCS", Command.ZQCS, following, Scope.ANY, s.tzqcs) for following in idle),
        *(Rule("tZQoper", Command.ZQCL, following, Scope.ANY, s.tzqoper) for following in idle),
        *(Rule("tMOD", Command.MRS, following, Scope.ANY, s.tmod) for following in idle[:-1]),
        Rule("tMRD", Command.MRS, Command.MRS, Scope.ANY, s.tmrd),
    ]
    if s.group:
        table += [
            Rule("tRRD_L", act, act, Scope.GROUP, t.trrd),
            Rule("tCCD_L", rd, rd, Scope.GROUP, t.tccd),
            Rule("tCCD_L", wr, wr, Scope.GROUP, t.tccd),
            Rule("tWTR_L", wr, rd, Scope.GROUP, written + s.group.twtr_long),
        ]
    return tuple(sorted(table, key=lambda rule: rule.following))


# indices into Monitor.parameters
GROUP_BANKS, FOUND, ACTIVATIONS, TRAS, TRTP, WRITE_RECOVERY = range(6)
# columns of Monitor.rules
PRECEDING, SCOPE, DISTANCE = range(3)
_LONG_AGO = -(1 << 40)


class Monitor(NamedTuple):
    """State of a monitor, for compiled code.

    Attributes:
        parameters: int64[6], indexed by the names above.
        rules: int64[rules, 3], preceding command, scope, clocks; in order of the following command.
        first_rule: int64[commands + 1], where a following command's rules begin.
        last_of_bank, last_of_group, last: int64[commands, banks or groups or 1], DRAM clock of the last command.
        activations: int64[4], DRAM clocks of the last four ACTs, a ring.
        is_open: int64[banks].
        counts: int64[rules + faults], violations.
        found: int64[REMEMBERED, 4], the first ones: index into `counts`, DRAM clock, command, bank.
    """

    parameters: I64
    rules: I64
    first_rule: I64
    last_of_bank: I64
    last_of_group: I64
    last: I64
    activations: I64
    is_open: I64
    counts: I64
    found: I64


def build_monitor(table: Sequence[Rule], banks: int, timings: Timings, spacing: Spacing) -> Monitor:
    """A monitor of a DRAM that has been idle for long; ``table`` is in order of the following command (`rules`)."""
    group_banks = spacing.group.banks if spacing.group else banks
    following = [rule.following for rule in table]
    recovery = timings.write_latency + BURST_CLOCKS + timings.twr
    return Monitor(
        parameters=np.array([group_banks, 0, 0, timings.tras, timings.trtp, recovery], np.int64),
        rules=np.array([(rule.preceding, rule.scope, rule.clocks) for rule in table], np.int64),
        first_rule=np.searchsorted(following, np.arange(len(Command) + 1)).astype(np.int64),
        last_of_bank=np.full((len(Command), banks), _LONG_AGO, np.int64),
        last_of_group=np.full((len(Command), -(-banks // group_banks)), _LONG_AGO, np.int64),
        last=np.full((len(Command), 1), _LONG_AGO, np.int64),
        activations=np.full(4, _LONG_AGO, np.int64),
        is_open=np.zeros(banks, np.int64),
        counts=np.zeros(len(table) + len(Fault), np.int64),
        found=np.zeros((REMEMBERED, 4), np.int64),
    )


_ACT, _RD, _WR, _PRE, _PREA, _REF = (int(Command[n]) for n in ("ACT", "RD", "WR", "PRE", "PREA", "REF"))
_BANK, _GROUP, _ANY = int(Scope.BANK), int(Scope.GROUP), int(Scope.ANY)
_OPEN_BANK, _CLOSED_BANK, _BANKS_OPEN = int(Fault.OPEN_BANK), int(Fault.CLOSED_BANK), int(Fault.BANKS_OPEN)


@inlined()
def _count(monitor: Monitor, which: int, clock: int, command: int, bank: int) -> None:
    p = monitor.parameters
    monitor.counts[which] += 1
    if p[FOUND] < REMEMBERED:
        found = monitor.found[p[FOUND]]
        found[0], found[1], found[2], found[3] = which, clock, command, bank
        p[FOUND] += 1


@inlined()
def report(monitor: Monitor, fault: int, clock: int, command: int, bank: int) -> None:
    """Count a `Fault` that only the DRAM behind the monitor can see."""
    _count(monitor, monitor.rules.shape[0] + fault, clock, command, bank)


@inlined()
def _remember(monitor: Monitor, command: int, bank: int, clock: int) -> None:
    group = bank // monitor.parameters[GROUP_BANKS]
    monitor.last_of_bank[command, bank] = clock
    monitor.last_of_group[command, group] = max(clock, monitor.last_of_group[command, group])
    monitor.last[command, 0] = max(clock, monitor.last[command, 0])


@inlined()
def _check_state(monitor: Monitor, command: int, bank: int, clock: int) -> None:
    if command == _ACT:
        if monitor.is_open[bank]:
            report(monitor, _OPEN_BANK, clock, command, bank)
    elif command in (_RD, _WR):
        if not monitor.is_open[bank]:
            report(monitor, _CLOSED_BANK, clock, command, bank)
    elif command >= _REF and monitor.is_open.any():
        report(monitor, _BANKS_OPEN, clock, command, bank)


@inlined()
def observe(monitor: Monitor, command: int, bank: int, clock: int) -> None:
    """Judge one command, a `gateware.isa.Command` but no PREA (see `observe_precharge_all`), at a DRAM clock."""
    p = monitor.parameters
    for k in range(monitor.first_rule[command], monitor.first_rule[command + 1]):
        preceding, scope = monitor.rules[k, PRECEDING], monitor.rules[k, SCOPE]
        if scope == _BANK:
            before = monitor.last_of_bank[preceding, bank]
        elif scope == _GROUP:
            before = monitor.last_of_group[preceding, bank // p[GROUP_BANKS]]
        elif scope == _ANY:
            before = monitor.last[preceding, 0]
        else:
            before = monitor.activations[p[ACTIVATIONS] & 3]
        if clock - before < monitor.rules[k, DISTANCE]:
            _count(monitor, k, clock, command, bank)
    _check_state(monitor, command, bank, clock)
    if command == _ACT:
        monitor.activations[p[ACTIVATIONS] & 3] = clock
        p[ACTIVATIONS] += 1
        monitor.is_open[bank] = 1
    elif command == _PRE:
        monitor.is_open[bank] = 0
    _remember(monitor, command, bank, clock)


@inlined()
def observe_precharge_all(monitor: Monitor, clock: int) -> None:
    """PREA: a PRE of every bank."""
    for bank in range(monitor.is_open.size):
        observe(monitor, _PRE, bank, clock)


@inlined()
def observe_auto_precharge(monitor: Monitor, command: int, bank: int, clock: int) -> None:
    """After `observe` of a RD or WR with auto-precharge: the DRAM closes the bank as soon as it may."""
    p = monitor.parameters
    recovered = clock + (p[TRTP] if command == _RD else p[WRITE_RECOVERY])
    monitor.is_open[bank] = 0
    _remember(monitor, _PRE, bank, max(recovered, monitor.last_of_bank[_ACT, bank] + p[TRAS]))


@dataclass(frozen=True)
class Violation:
    """A command that broke a rule; ``clock`` is the DRAM clock."""

    rule: str
    clock: int
    command: Command
    bank: int


def violation_counts(monitor: Monitor, table: Sequence[Rule]) -> dict[str, int]:
    """How often each rule (by its name) or `Fault` was broken; those never broken are left out."""
    out: dict[str, int] = {}
    for name, count in zip(_names(table), monitor.counts.tolist(), strict=True):
        if count:
            out[name] = out.get(name, 0) + count
    return out


def first_violations(monitor: Monitor, table: Sequence[Rule]) -> list[Violation]:
    """The first `REMEMBERED` violations, in order."""
    names = _names(table)
    found = monitor.found[: monitor.parameters[FOUND]].tolist()
    return [Violation(names[which], clock, Command(command), bank) for which, clock, command, bank in found]


def _names(table: Sequence[Rule]) -> list[str]:
    return [rule.name for rule in table] + [fault.name for fault in Fault]

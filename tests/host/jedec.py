"""A JEDEC monitor: a table of least distances between DRAM commands, and what it finds wrong with a stream of them."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from gateware.isa import Command
from host.timings import Timings
from tests.host.reference import Issued

ACT, RD, WR, PRE, REF = Command.ACT, Command.RD, Command.WR, Command.PRE, Command.REF


@dataclass(frozen=True)
class Rule:
    """``following`` comes at least ``clocks`` DRAM clocks after ``preceding`` (of the same bank, or of any)."""

    name: str
    preceding: Command
    following: Command
    same_bank: bool
    clocks: int


def rules(timings: Timings, trcd: int, burst_clocks: int) -> list[Rule]:
    """JESD79-3F's distances at the tRCD that was asked for."""
    t = timings
    write_to_precharge = t.write_latency + burst_clocks + t.twr
    return [
        Rule("tRCD", ACT, RD, True, trcd),
        Rule("tRCD", ACT, WR, True, trcd),
        Rule("tRAS", ACT, PRE, True, t.tras),
        Rule("tRP", PRE, ACT, True, t.trp),
        Rule("tRC", ACT, ACT, True, t.tras + t.trp),
        Rule("tRRD", ACT, ACT, False, t.trrd),
        Rule("tRTP", RD, PRE, True, t.trtp),
        Rule("tWR", WR, PRE, True, write_to_precharge),
        Rule("tCCD", RD, RD, False, burst_clocks),
        Rule("tCCD", WR, WR, False, burst_clocks),
        Rule("tRP", PRE, REF, False, t.trp),
        Rule("tRFC", REF, ACT, False, t.trfc),
    ]


def violations(
    issued: Iterable[Issued],
    timings: Timings,
    trcd: int,
    burst_clocks: int,
    phases: tuple[int, int, int],
    exact_trcd: bool,
) -> list[str]:
    """What is wrong with a command stream, one line a finding.

    Args:
        phases: DRAM clocks in a system clock, and the ones of RD and WR.
        exact_trcd: RD and WR must come exactly ``trcd`` after their ACT, not later: the point of a tRCD test.
    """
    table = rules(timings, trcd, burst_clocks)
    found: list[str] = []
    last: dict[tuple[Command, int | None], int] = {}
    activations: deque[int] = deque(maxlen=4)
    open_banks: set[int] = set()
    previous = -1
    for command in issued:
        at, what, bank = command.clock, command.command, command.bank
        say = f"{what.name} to bank {bank} at {at}"
        if at <= previous:
            found.append(f"{say}: two commands in one DRAM clock, or out of order")
        previous = at
        for rule in table:
            if rule.following == what:
                before = last.get((rule.preceding, bank if rule.same_bank else None))
                if before is not None and at - before < rule.clocks:
                    found.append(f"{say}: {rule.name} of {rule.clocks} is {at - before}")
        if what in (RD, WR):
            if bank not in open_banks:
                found.append(f"{say}: the bank is closed")
            elif exact_trcd and at - last[ACT, bank] != trcd:
                found.append(f"{say}: tRCD is {at - last[ACT, bank]}, not {trcd}")
            if at % phases[0] != phases[1 + (what == WR)]:
                found.append(f"{say}: off its phase")
        elif what == ACT:
            if bank in open_banks:
                found.append(f"{say}: the bank is open")
            if len(activations) == 4 and at - activations[0] < timings.tfaw:
                found.append(f"{say}: five activations in {at - activations[0]}, tFAW is {timings.tfaw}")
            activations.append(at)
            open_banks.add(bank)
        elif what == PRE:
            open_banks.discard(bank)
        elif what == REF and open_banks:
            found.append(f"{say}: banks {sorted(open_banks)} are open")
        last[what, bank] = last[what, None] = at
    if open_banks:
        found.append(f"banks {sorted(open_banks)} are left open")
    return found

"""The JEDEC monitor: every rule of its table, one clock short and exact, and the rules of state."""

import numpy as np
import pytest

from gateware.isa import Command
from host import jedec_monitor as jedec
from host.compiled import njit
from host.jedec_monitor import Fault, Monitor, Rule, Scope, Spacing
from host.timings import DDR3_1600K, DDR4_1600K, Timings

ACT, RD, WR, PRE, REF, MRS = Command.ACT, Command.RD, Command.WR, Command.PRE, Command.REF, Command.MRS
DDR3 = (Timings.of(DDR3_1600K, 2000, 6), Spacing.ddr3(2000, 7), 8)
DDR4 = (Timings.of(DDR4_1600K, 1250, 9), Spacing.ddr4(1250, 11), 16)


@njit()
def _observe(monitor, command, bank, clock):
    jedec.observe(monitor, command, bank, clock)


@njit()
def _observe_auto_precharge(monitor, command, bank, clock):
    jedec.observe(monitor, command, bank, clock)
    jedec.observe_auto_precharge(monitor, command, bank, clock)


@njit()
def _observe_precharge_all(monitor, clock):
    jedec.observe_precharge_all(monitor, clock)


class Watched:
    """A monitor and its rules."""

    def __init__(self, timings: Timings, spacing: Spacing, banks: int) -> None:
        self.rules = jedec.rules(timings, spacing)
        self.monitor: Monitor = jedec.build_monitor(self.rules, banks, timings, spacing)

    def send(self, *commands: tuple[int, Command, int]) -> "Watched":
        for clock, command, bank in commands:
            _observe(self.monitor, int(command), bank, clock)
        return self

    def counts(self) -> dict[str, int]:
        return jedec.violation_counts(self.monitor, self.rules)


EVERY_RULE = [
    pytest.param(dram, rule, id=f"{kind}-{rule.name}-{rule.preceding.name}-{rule.following.name}")
    for kind, dram in (("ddr3", DDR3), ("ddr4", DDR4))
    for rule in jedec.rules(dram[0], dram[1])
]


def _distance_apart(rule: Rule, clocks: int) -> list[tuple[int, Command, int]]:
    """The rule's two commands ``clocks`` apart, to banks as far apart as its scope lets them be."""
    other = {Scope.BANK: 0, Scope.GROUP: 1, Scope.ANY: 7, Scope.FOURTH: 7}[rule.scope]
    between = [(k * rule.clocks // 4, ACT, k) for k in range(1, 4)] if rule.scope == Scope.FOURTH else []
    return [(0, rule.preceding, 0), *between, (clocks, rule.following, other)]


@pytest.mark.parametrize(("dram", "rule"), EVERY_RULE)
def test_rule_is_caught_one_clock_short_and_no_sooner(dram: tuple[Timings, Spacing, int], rule: Rule) -> None:
    exact, short = Watched(*dram), Watched(*dram)
    which = exact.rules.index(rule)
    exact.send(*_distance_apart(rule, rule.clocks))
    short.send(*_distance_apart(rule, rule.clocks - 1))
    assert exact.monitor.counts[which] == 0
    assert short.monitor.counts[which] == 1
    assert rule.clocks > 1


@pytest.mark.parametrize(
    ("scope", "outside"),
    [pytest.param(Scope.BANK, 1, id="another bank"), pytest.param(Scope.GROUP, 4, id="another bank group")],
)
def test_rule_looks_no_further_than_its_scope(scope: Scope, outside: int) -> None:
    for rule in jedec.rules(DDR4[0], DDR4[1]):
        if rule.scope == scope:
            watched = Watched(*DDR4).send((0, rule.preceding, 0), (1, rule.following, outside))
            assert watched.monitor.counts[watched.rules.index(rule)] == 0, rule


def test_table_has_no_rule_twice_and_every_name() -> None:
    for timings, spacing, _ in (DDR3, DDR4):
        table = jedec.rules(timings, spacing)
        assert len({(r.preceding, r.following, r.scope) for r in table}) == len(table)
    names = {rule.name for rule in jedec.rules(DDR4[0], DDR4[1])}
    assert names >= {"tRCD", "tRAS", "tRC", "tRP", "tRRD", "tRRD_L", "tFAW", "tRTP", "tWR", "tCCD", "tCCD_L"}
    assert names >= {"tWTR", "tWTR_L", "tRTW", "tRFC", "tMRD", "tMOD", "tZQCS", "tZQoper"}


def test_distances_are_those_of_the_data_sheets() -> None:
    """DDR3-1600K at 2 ns with CL 7 and CWL 6, DDR4-1600K at 1.25 ns with CL 11 and CWL 9; worked out by hand."""
    ddr3 = {"tRCD": 7, "tRAS": 18, "tRC": 25, "tRP": 7, "tRRD": 4, "tFAW": 15, "tRTP": 4, "tWR": 18, "tCCD": 4}
    ddr3 |= {"tWTR": 14, "tRTW": 7, "tRFC": 55, "tMRD": 4, "tMOD": 12, "tZQCS": 64, "tZQoper": 256}
    ddr4 = {"tRCD": 11, "tRAS": 28, "tRC": 39, "tRP": 11, "tRRD": 4, "tFAW": 20, "tRTP": 6, "tWR": 25, "tCCD": 4}
    ddr4 |= {"tWTR": 15, "tRTW": 8, "tRFC": 280, "tMRD": 8, "tMOD": 24, "tZQCS": 128, "tZQoper": 512}
    ddr4 |= {"tRRD_L": 5, "tCCD_L": 5, "tWTR_L": 19}
    for (timings, spacing, _), expected in ((DDR3, ddr3), (DDR4, ddr4)):
        assert {(rule.name, rule.clocks) for rule in jedec.rules(timings, spacing)} == set(expected.items())


def test_fifth_activation_waits_but_the_ring_forgets() -> None:
    t = DDR3[0]
    spaced = [(k * t.tfaw, ACT, k) for k in range(8)]
    assert "tFAW" not in Watched(*DDR3).send(*spaced).counts()
    dense = [(k * t.trrd, ACT, k) for k in range(3)]  # the fourth comes late: the window is that of any four
    assert Watched(*DDR3).send(*dense, (t.tfaw - 1, ACT, 3), (t.tfaw, ACT, 4)).counts() == {"tRRD": 1}


@pytest.mark.parametrize(
    ("commands", "fault"),
    [
        ([(0, ACT, 0), (100, ACT, 0)], Fault.OPEN_BANK),
        ([(0, RD, 0)], Fault.CLOSED_BANK),
        ([(0, WR, 0)], Fault.CLOSED_BANK),
        ([(0, ACT, 1), (100, RD, 0)], Fault.CLOSED_BANK),
        ([(0, ACT, 0), (100, PRE, 0), (200, RD, 0)], Fault.CLOSED_BANK),
        *(([(0, ACT, 5), (100, command, 0)], Fault.BANKS_OPEN) for command in (REF, MRS, Command.ZQCS, Command.ZQCL)),
    ],
)
def test_command_in_the_wrong_state(commands: list[tuple[int, Command, int]], fault: Fault) -> None:
    watched = Watched(*DDR3).send(*commands)
    assert watched.counts() == {fault.name: 1}
    ((first,), (clock, command, bank)) = jedec.first_violations(watched.monitor, watched.rules), commands[-1]
    assert (first.rule, first.clock, first.command, first.bank) == (fault.name, clock, command, bank)


def test_precharging_all_banks_precharges_each() -> None:
    t = DDR3[0]
    watched = Watched(*DDR3).send((0, ACT, 0), (t.trrd, ACT, 7))
    _observe_precharge_all(watched.monitor, t.trrd + t.tras - 1)
    assert watched.counts() == {"tRAS": 1}  # bank 7's
    watched.send((t.trrd + t.tras - 1 + t.trp, REF, 0))
    assert watched.counts() == {"tRAS": 1}


@pytest.mark.parametrize(("command", "late"), [(RD, False), (RD, True), (WR, False), (WR, True)])
def test_auto_precharge_begins_when_the_dram_may(command: Command, late: bool) -> None:
    """After tRTP or tWR, and not before tRAS; another ACT may follow tRP later."""
    t = DDR3[0]
    at = 100 if late else t.trcd
    recovery = t.trtp if command == RD else t.write_latency + 4 + t.twr
    ready = max(at + recovery, t.tras) + t.trp
    for clock, expected in ((ready, {}), (ready - 1, {"tRP": 1})):
        watched = Watched(*DDR3).send((0, ACT, 0))
        _observe_auto_precharge(watched.monitor, int(command), 0, at)
        if clock == t.tras + t.trp - 1:
            expected = {"tRP": 1, "tRC": 1}
        assert watched.send((clock, ACT, 0)).counts() == expected


def test_only_the_first_violations_are_remembered_and_all_are_counted() -> None:
    watched = Watched(*DDR3).send(*((1000 * k, RD, 3) for k in range(100)))
    assert watched.counts() == {"CLOSED_BANK": 100}
    remembered = jedec.first_violations(watched.monitor, watched.rules)
    assert [violation.clock for violation in remembered] == [1000 * k for k in range(jedec.REMEMBERED)]


def test_clean_stream_is_clean() -> None:
    """A refresh, then two banks opened, written, read and closed, each as soon as JEDEC allows."""
    t, s, _ = DDR3
    begin = t.trfc
    write = begin + t.trrd + t.trcd
    read = write + t.write_latency + 4 + s.twtr
    close = max(begin + t.trrd + t.tras, read + t.trtp, write + t.write_latency + 4 + t.twr)
    watched = Watched(*DDR3).send(
        *((0, REF, 0), (begin, ACT, 0), (begin + t.trrd, ACT, 1), (write, WR, 1), (read, RD, 1)),
        *((close, PRE, 1), (close + 1, PRE, 0), (close + t.trp, ACT, 1)),
    )
    assert watched.counts() == {}
    assert not np.any(watched.monitor.counts)

"""Replay of bursts: every distance held and every distance felt, and the gains that the field's simulators measure."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eden import dram_specs
from eden.commands import Command, CommandTrace, activity
from eden.replay import (
    BACK_TO_BACK,
    SERIAL,
    Bursts,
    Constraint,
    Controller,
    RowPolicy,
    Scope,
    constraints,
    export_ramulator,
    place,
    replay,
)
from profiles.errors import ModelError

DDR4 = dram_specs.load("ddr4-2400")
ACT, PRE, RD, WR, PREA, REF = Command
READ, WRITE = False, True

Asked = list[tuple[int, int, bool]]  # bank, row, whether it is a write


def bursts_of(asked: Asked, arrivals: list[int] | None = None) -> Bursts:
    bank, row, write = zip(*asked, strict=True)
    columns = np.arange(len(asked), dtype=np.int32) % 128
    arrival = np.zeros(len(asked)) if arrivals is None else np.array(arrivals)
    return Bursts(
        *(np.array(bank, np.uint8), np.array(row, np.int32), columns, np.array(write, np.bool_)),
        arrival.astype(np.int64),
    )


def commands(trace: CommandTrace) -> list[tuple[int, Command, int]]:
    what = [Command(code) for code in trace.command.tolist()]
    return list(zip(trace.clock.tolist(), what, trace.bank.tolist(), strict=True))


def test_a_read_of_a_closed_and_of_another_row_come_when_a_hand_says() -> None:
    """DDR4-2400 17-17-17, tRAS 39: ACT 0, RD 17; the other row waits for tRAS, then tRP and tRCD; data after CL + 4."""
    trace = replay(bursts_of([(0, 0, READ), (0, 1, READ)]), DDR4, 17, SERIAL)
    assert commands(trace) == [(0, ACT, 0), (17, RD, 0), (39, PRE, 0), (56, ACT, 0), (73, RD, 0)]
    assert trace.length == 73 + 17 + 4


def test_dependent_hits_wait_for_data_and_others_for_the_bus() -> None:
    hits = bursts_of([(0, 0, READ)] * 3)
    assert [c for c, what, _ in commands(replay(hits, DDR4, 17, SERIAL)) if what is RD] == [17, 38, 59]
    assert [c for c, what, _ in commands(replay(hits, DDR4, 17, BACK_TO_BACK)) if what is RD] == [17, 23, 29]


def test_closed_rows_are_precharged_after_each_burst() -> None:
    trace = replay(bursts_of([(0, 0, READ), (0, 0, READ)]), DDR4, 17, BACK_TO_BACK, RowPolicy.CLOSED)
    assert [what for _, what, _ in commands(trace)] == [ACT, RD, PRE, ACT, RD, PRE]


# by rule (name, preceding, following): bursts and their arrivals, of which one command waits for that rule alone
TREFI = DDR4.clocks.trefi
DELAYED: dict[tuple[str, Command, Command], tuple[Asked, list[int] | None]] = {
    ("tRCD", ACT, RD): ([(0, 0, READ)], None),
    ("tRCD", ACT, WR): ([(0, 0, WRITE)], None),
    ("tRAS", ACT, PRE): ([(0, 0, READ), (0, 1, READ)], None),
    ("tRP", PRE, ACT): ([(0, 0, READ), (0, 1, READ)], None),
    ("tRP", PRE, REF): ([(0, 0, READ), (0, 0, READ)], [TREFI - 60, TREFI + 1]),
    ("tRFC", REF, ACT): ([(0, 0, READ)], [TREFI]),
    ("tRRD_S", ACT, ACT): ([(0, 0, READ), (4, 0, READ)], None),
    ("tRRD_L", ACT, ACT): ([(0, 0, READ), (1, 0, READ)], None),
    ("tFAW", ACT, ACT): ([(bank, 0, READ) for bank in (0, 4, 8, 12, 1)], None),
    ("tRTP", RD, PRE): ([(0, 0, READ)] * 8 + [(0, 1, READ)], None),
    ("tWR", WR, PRE): ([(0, 0, WRITE), (0, 1, WRITE)], None),
    ("tCCD_S", RD, RD): ([(0, 0, READ), (4, 0, READ), (0, 0, READ)], None),
    ("tCCD_S", WR, WR): ([(0, 0, WRITE), (4, 0, WRITE), (0, 0, WRITE)], None),
    ("tCCD_L", RD, RD): ([(0, 0, READ), (0, 0, READ)], None),
    ("tCCD_L", WR, WR): ([(0, 0, WRITE), (0, 0, WRITE)], None),
    ("tWTR_S", WR, RD): ([(4, 0, READ), (0, 0, WRITE), (4, 0, READ)], None),
    ("tWTR_L", WR, RD): ([(0, 0, WRITE), (0, 0, READ)], None),
    ("tRTW", RD, WR): ([(0, 0, READ), (0, 0, WRITE)], None),
}


@pytest.mark.parametrize("rule", constraints(DDR4, 17), ids=lambda rule: f"{rule.name}-{rule.following.name}")
def test_every_constraint_has_a_command_that_only_it_delays(rule: Constraint) -> None:
    asked, arrivals = DELAYED[rule.name, rule.preceding, rule.following]
    table = constraints(DDR4, 17)

    def serve(kept: list[Constraint]) -> tuple[list[int], list[tuple[int, Command, int]]]:
        found = commands(replay(bursts_of(asked, arrivals), DDR4, 17, BACK_TO_BACK, table=kept))
        return [clock for clock, what, _ in found if what is rule.following], found

    (full, everything), (without, _) = serve(list(table)), serve([other for other in table if other != rule])
    which = next(k for k, clock in enumerate(full) if clock != without[k])
    preceding = PREA if rule.following is REF else rule.preceding
    assert without[which] < full[which]
    assert full[which] - rule.clocks in [clock for clock, what, _ in everything if what is preceding]
    for other in table:
        longer = dataclasses.replace(other, clocks=other.clocks + 1)
        stretched, moved = serve([longer if each == other else each for each in table])
        if [c for c in moved if c[0] < full[which]] == [c for c in everything if c[0] < full[which]]:
            assert (stretched[which] != full[which]) == (other == rule), other


def violations(trace: CommandTrace, table: tuple[Constraint, ...], group_banks: int) -> list[str]:
    """Pairs of commands that are too close, each compared with every one before it."""
    found, seen = [], []
    for clock, what, bank in commands(trace):
        for banks in [bank] if what is not PREA else sorted({b for _, w, b in seen if w is ACT}):
            for rule in table:
                if rule.following is not (PRE if what is PREA else what):
                    continue
                before = [
                    c
                    for c, w, b in seen
                    if w is rule.preceding
                    and (rule.scope is not Scope.BANK or b == banks)
                    and (rule.scope is not Scope.GROUP or b // group_banks == banks // group_banks)
                ]
                nth = 4 if rule.scope is Scope.FOURTH else 1
                if len(before) >= nth and clock - before[-nth] < rule.clocks:
                    found.append(f"{rule.name} at {clock}")
        if what is PREA:
            seen += [(clock, PRE, b) for b in range(DDR4.banks)]
        seen.append((clock, what, bank))
    return found


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 15), st.integers(0, 2), st.booleans()), min_size=1, max_size=40),
    st.sampled_from([1, 2, 5, BACK_TO_BACK]),
    st.sampled_from(list(RowPolicy)),
    st.sampled_from(dram_specs.names()),
    st.integers(0, 9400),
)
def test_no_distance_is_broken_and_states_sum_to_the_length(
    asked: Asked, outstanding: int, policy: RowPolicy, name: str, arrival: int
) -> None:
    spec = dram_specs.load(name)
    asked = [(bank % spec.banks, row, write) for bank, row, write in asked]
    trace = replay(bursts_of(asked, [arrival] * len(asked)), spec, spec.trcd, outstanding, policy)
    assert violations(trace, constraints(spec, spec.trcd), spec.banks // spec.bank_groups) == []
    assert np.all(np.diff(trace.clock) > 0)  # one command a clock
    found = activity(trace, spec)  # and raises unless the states allow every command
    assert found.length == trace.length
    assert found.reads + found.writes == len(asked)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 15), st.integers(0, 2), st.booleans()), min_size=1, max_size=40),
    st.sampled_from([1, 2, 5, BACK_TO_BACK]),
    st.sampled_from(list(RowPolicy)),
    st.sampled_from([Controller(2, 1, 0), Controller(4, 1, 2), Controller(8, 0, 3)]),
    st.integers(8, 17),
)
def test_a_controllers_clock_holds_one_command_and_data_on_their_phases(
    asked: Asked, outstanding: int, policy: RowPolicy, by: Controller, trcd: int
) -> None:
    trace = replay(bursts_of(asked), DDR4, trcd, outstanding, policy, controller=by)
    assert violations(trace, constraints(DDR4, trcd), 4) == []
    assert activity(trace, DDR4).length == trace.length
    assert np.all(np.diff(trace.clock // by.phases) > 0)
    for clock, what, _ in commands(trace):
        if what in (RD, WR):
            assert clock % by.phases == (by.read_phase if what is RD else by.write_phase)
    if outstanding == SERIAL:
        opened = {bank: clock for clock, what, bank in commands(trace) if what is ACT}
        last = commands(trace)[-2 if policy is RowPolicy.CLOSED else -1]
        assert last[0] - opened[last[2]] >= trcd
        alone = commands(replay(bursts_of(asked[:1]), DDR4, trcd, SERIAL, policy, controller=by))
        assert alone[1][0] - alone[0][0] == trcd


def test_refreshes_come_every_trefi_also_after_the_last_burst() -> None:
    trace = replay(bursts_of([(0, 0, READ)]), DDR4, 17, SERIAL, until=10 * TREFI + 5)
    refreshes = [clock for clock, what, _ in commands(trace) if what is REF]
    assert len(refreshes) == 10
    assert trace.length == 10 * TREFI + 5
    assert [clock - TREFI * (k + 1) for k, clock in enumerate(refreshes)] == [17] + [0] * 9  # PREA first, once


def time_saved(numbers: np.ndarray, outstanding: int, policy: RowPolicy) -> float:
    """Share of a trace's time that a tRCD six clocks shorter saves."""
    count = numbers.size
    bursts = place(numbers.astype(np.int64), DDR4, np.zeros(count, np.bool_), np.zeros(count, np.int64))
    before, after = (replay(bursts, DDR4, trcd, outstanding, policy).length for trcd in (16, 10))
    return 1 - after / before


def test_gains_are_those_of_the_latencies_that_a_burst_waits_for() -> None:
    """nRCD 16 to 10 of DDR4-2400, of what a dependent burst takes: tRP + tRCD + CL + 4 in a miss, tRCD + CL + 4 where
    rows are closed, but tRC in one bank, which no tRCD shortens; a stream in open rows misses once in 128."""
    stream, anywhere = np.arange(20_000), np.random.default_rng(1).integers(0, 1 << 24, 20_000)
    assert time_saved(anywhere, SERIAL, RowPolicy.OPEN) == pytest.approx(6 / 54, abs=0.01)
    assert time_saved(stream, SERIAL, RowPolicy.CLOSED) == pytest.approx(6 / 37, abs=0.01)
    assert abs(time_saved(stream * DDR4.bank_groups, SERIAL, RowPolicy.CLOSED)) < 0.002
    assert 0 <= time_saved(stream, SERIAL, RowPolicy.OPEN) < 0.01
    assert abs(time_saved(stream, BACK_TO_BACK, RowPolicy.OPEN)) < 0.002


def test_bursts_lie_once_each_and_neighbours_in_other_groups() -> None:
    count = DDR4.banks * DDR4.row_bursts * 2
    placed = place(np.arange(count), DDR4, np.zeros(count, np.bool_), np.zeros(count, np.int64))
    assert len(set(zip(placed.bank.tolist(), placed.row.tolist(), placed.column.tolist(), strict=True))) == count
    assert placed.row.max() == 1
    assert placed.column.max() == DDR4.row_bursts - 1
    assert (np.diff(placed.bank // 4) != 0).all()


def test_ramulator_gets_its_address_vectors(tmp_path: Path) -> None:
    bursts = bursts_of([(5, 9, READ), (15, 3, WRITE)])
    export_ramulator(bursts, DDR4, tmp_path / "trace")
    assert (tmp_path / "trace").read_text() == "R 0,0,1,1,9,0\nW 0,0,3,3,3,8\n"


def test_impossible_requests_are_refused() -> None:
    with pytest.raises(ModelError, match="0 outstanding bursts; give 1 to"):
        replay(bursts_of([(0, 0, READ)]), DDR4, 17, 0)
    with pytest.raises(ModelError, match="a tRCD of 3 clocks is shorter than the controller's own clock of 4"):
        replay(bursts_of([(0, 0, READ)]), DDR4, 3, 1, controller=Controller(4, 1, 2))
    with pytest.raises(ModelError, match="bank 16 is outside DDR4-2400's 16"):
        replay(bursts_of([(16, 0, READ)]), DDR4, 17, 1)

"""Exported traces, read back by readers that follow the other programs' own parsers; and DRAMPower's energies of them.

Ramulator 2: `src/frontend/impl/memory_trace/readwrite_trace.cpp` (two tokens a line, R or W and an address vector in
the order of the DRAM's levels). DRAMPower 5: `parse_command_list` of its command line and `CmdTypeUtil::from_string`
(seven columns, data in hexadecimal where a command moves any; a name that it does not know becomes a NOP, silently).
"""

import csv
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from eden import dram_specs
from eden.commands import Command, CommandTrace, activity, export_drampower
from eden.dram_specs import DramSpec, Rail
from eden.energy import energy
from eden.replay import Bursts, RowPolicy, export_ramulator, place, replay

# as Ramulator 2 names the levels of its DDR3, DDR4, LPDDR3 and LPDDR4
LEVELS = {
    1: ("channel", "rank", "bank", "row", "column"),
    4: ("channel", "rank", "bankgroup", "bank", "row", "column"),
}
# as DRAMPower 5 names commands; those that move data have a column of it
NAMES = {"ACT", "PRE", "PREA", "RD", "WR", "REFA", "END"}
MOVING = {"RD", "WR"}


def some_bursts(spec: DramSpec, count: int = 400) -> Bursts:
    rng = np.random.default_rng(1)
    numbers = rng.integers(0, 4 * spec.banks * spec.row_bursts, count)
    numbers[1::3] = numbers[:-1:3] ^ 1  # hits among them
    return place(numbers, spec, rng.random(count) < 0.3, np.sort(rng.integers(0, 60 * count, count)))


def read_ramulator(path: Path) -> list[tuple[bool, tuple[int, ...]]]:
    found = []
    for line in path.read_text().splitlines():
        what, vector = line.split(" ")
        assert what in ("R", "W")
        found.append((what == "W", tuple(int(token) for token in vector.split(","))))
    return found


@dataclass(frozen=True)
class Row:
    """A line of DRAMPower's command list."""

    clock: int
    name: str
    rank: int
    group: int
    bank: int
    row: int
    column: int
    data: bytes


def read_drampower(path: Path) -> list[Row]:
    found = []
    with path.open(newline="") as file:
        for cells in csv.reader(file):
            assert len(cells) >= 7
            clock, name, *where = cells[:7]
            assert name in NAMES
            data = bytes.fromhex(cells[7]) if name in MOVING else b""
            found.append(Row(int(clock), name, *map(int, where), data))
    return found


@pytest.mark.parametrize("name", dram_specs.names())
def test_ramulator_reads_every_burst_where_it_is(name: str, tmp_path: Path) -> None:
    spec = dram_specs.load(name)
    bursts = some_bursts(spec)
    export_ramulator(bursts, spec, tmp_path / "trace")
    read = read_ramulator(tmp_path / "trace")
    levels = LEVELS[spec.bank_groups]
    assert len(read) == bursts.bank.size
    for k, (write, vector) in enumerate(read):
        at = dict(zip(levels, vector, strict=True))
        bank = at.get("bankgroup", 0) * (spec.banks // spec.bank_groups) + at["bank"]
        assert (write, bank, at["row"]) == (bursts.write[k], bursts.bank[k], bursts.row[k])
        assert at["column"] == bursts.column[k] * spec.burst_beats
        assert (at["channel"], at["rank"]) == (0, 0)


@pytest.mark.parametrize("name", dram_specs.names())
def test_drampower_reads_every_command_at_its_clock(name: str, tmp_path: Path) -> None:
    spec = dram_specs.load(name)
    trace = replay(some_bursts(spec), spec, spec.trcd, 4)
    export_drampower(trace, spec, tmp_path / "trace.csv")
    *rows, end = read_drampower(tmp_path / "trace.csv")
    assert (end.name, end.clock) == ("END", trace.length)
    names = {"REFA": "REF"}
    in_group, open_row = spec.banks // spec.bank_groups, dict[int, int]()
    assert len(rows) == trace.clock.size
    for k, row in enumerate(rows):
        bank = row.group * in_group + row.bank
        assert row.clock == trace.clock[k]
        assert Command[names.get(row.name, row.name)] == trace.command[k]
        assert bank == trace.bank[k]
        if row.name == "ACT":
            open_row[bank] = row.row
            assert row.row == trace.address[k]
        if row.name in MOVING:
            assert row.row == open_row[bank]
            assert row.column == trace.address[k] * spec.burst_beats
            assert len(row.data) * 8 == spec.width * spec.burst_beats  # of one device: DRAMPower multiplies by them


def drampower_energies(rows: list[Row], spec: DramSpec, rail: Rail) -> dict[str, float]:
    """Joules of a channel by DRAMPower 5's equations (its `core_calculation_DDR4`), bank by bank.

    With all of the active background in the shared part (rho = 1) and the precharge's current IDD0 (beta), as for a
    memory whose bank-wise parameters nobody gives. States are counted a clock at a time.
    """
    clocks = spec.clocks
    tck = spec.tck_ps * 1e-12
    volts, banks, rho = rail.mv * 1e-3, spec.banks, 1.0
    idd0, idd2n, idd3n = (value * 1e-3 for value in (rail.idd0, rail.idd2n, rail.idd3n))
    t_ras, t_rp, t_rfc = (value * tck for value in (clocks.tras, clocks.trp, clocks.trfc))
    i_rho = rho * (idd3n - idd2n) + idd2n
    i_theta = (idd0 * (t_rp + t_ras) - idd0 * t_rp) / t_ras
    i_1 = (idd3n + (banks - 1) * i_rho) / banks
    counts: dict[tuple[int, str], int] = defaultdict(int)
    opened: set[int] = set()
    active = precharged = 0
    refreshing = -1  # clock up to which a refresh counts as active
    at = {row.clock: row for row in rows if row.name != "END"}
    for clock in range(rows[-1].clock):
        if (row := at.get(clock)) is not None:
            bank = row.group * (spec.banks // spec.bank_groups) + row.bank
            closing = {"PRE": {bank}, "PREA": set(range(banks))}.get(row.name, set()) & opened
            for each in closing:
                counts[each, "PRE"] += 1
            opened -= closing
            if row.name == "ACT":
                opened.add(bank)
            if row.name == "REFA":
                refreshing = clock + clocks.trfc - clocks.trp
                for each in range(banks):
                    counts[each, "REFA"] += 1
            elif row.name not in ("PRE", "PREA"):
                counts[bank, row.name] += 1
        if opened or clock < refreshing:
            active += 1
        else:
            precharged += 1
    of = {"activate": 0.0, "precharge": 0.0, "read": 0.0, "write": 0.0, "refresh": 0.0}
    burst = spec.burst_beats / 2 * tck
    for bank in range(banks):
        of["activate"] += volts * (i_theta - i_1) * t_ras * counts[bank, "ACT"]
        of["precharge"] += volts * (idd0 - idd2n) * t_rp * counts[bank, "PRE"]
        of["read"] += volts * (rail.idd4r * 1e-3 - idd3n) * burst * counts[bank, "RD"]
        of["write"] += volts * (rail.idd4w * 1e-3 - idd3n) * burst * counts[bank, "WR"]
        of["refresh"] += volts * (rail.idd5b * 1e-3 - idd3n) * t_rfc * counts[bank, "REFA"] / banks
    of["active_standby"] = volts * i_rho * active * tck
    of["precharge_standby"] = volts * idd2n * precharged * tck
    return {name: joules * spec.devices for name, joules in of.items()}


@pytest.mark.parametrize("policy", RowPolicy)
@pytest.mark.parametrize("name", dram_specs.names())
def test_each_term_is_drampowers_within_half_a_per_cent(name: str, policy: RowPolicy, tmp_path: Path) -> None:
    """From the exported file alone, which is what DRAMPower would be given."""
    spec = dram_specs.load(name)
    trace = replay(some_bursts(spec), spec, spec.trcd, 4, policy)
    export_drampower(trace, spec, tmp_path / "trace.csv")
    rows = read_drampower(tmp_path / "trace.csv")
    expected: dict[str, float] = defaultdict(float)
    for rail in spec.rails:
        for term, joules in drampower_energies(rows, spec, rail).items():
            expected[term] += joules
    found = energy(activity(trace, spec), spec).parts()
    assert all(joules > 0 for joules in expected.values())
    for term, joules in expected.items():
        assert found[term] == pytest.approx(joules, rel=0.005), term


@pytest.mark.parametrize("name", ["ddr3-1600", "ddr4-2400"])
def test_each_term_is_microns_within_half_a_per_cent(name: str) -> None:
    """TN-41-01's way (as TN-40-07's for DDR4): mean power of a steady pattern, term by term, derated to its rate.

    One bank is activated, read and written once and precharged again every so many clocks, and a refresh comes after
    every 64 of these: Pds(ACT) of tRC over the spacing of ACTs, RD and WR by the share of clocks with their data, REF
    by tRFC over tREFI, and standby by the shares of time with a bank open and with none.
    """
    spec = dram_specs.load(name)
    c, spacing, each = spec.clocks, 200, 64
    period = each * spacing + 2 * c.trfc
    steps = []
    for k in range(20 * each):
        begun = k // each * period + k % each * spacing
        steps += [(begun, Command.ACT), (begun + 20, Command.RD), (begun + 60, Command.WR), (begun + 120, Command.PRE)]
        if k % each == each - 1:
            steps.append((begun + spacing, Command.REF))
    clock, command = (np.array(column) for column in zip(*steps, strict=True))
    nothing = np.zeros(clock.size, np.uint8)
    trace = CommandTrace(
        clock.astype(np.int64), command.astype(np.uint8), nothing, nothing.astype(np.int32), 20 * period
    )
    found = energy(activity(trace, spec), spec).parts()
    seconds = trace.length * spec.tck_ps * 1e-12 * spec.devices
    active = 120 * each / period
    refreshing = (c.trfc - c.trp) / period
    expected: dict[str, float] = defaultdict(float)
    for rail in spec.rails:
        watts = rail.mv * 1e-6
        trc = c.tras + c.trp
        standby = (rail.idd3n * c.tras + rail.idd2n * c.trp) / trc
        expected["activating"] += watts * (rail.idd0 - standby) * trc * each / period
        expected["read"] += watts * (rail.idd4r - rail.idd3n) * spec.burst_clocks * each / period
        expected["write"] += watts * (rail.idd4w - rail.idd3n) * spec.burst_clocks * each / period
        expected["refresh"] += watts * (rail.idd5b - rail.idd3n) * c.trfc / period
        expected["active_standby"] += watts * rail.idd3n * (active + refreshing)
        expected["precharge_standby"] += watts * rail.idd2n * (1 - active - refreshing)
    found["activating"] = found["activate"] + found["precharge"]
    for term, power in expected.items():
        assert found[term] / seconds == pytest.approx(power, rel=0.005), term

"""Energy of traces worked by hand, and state clocks against a clock-by-clock count."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eden import dram_specs
from eden.commands import Activity, Command, CommandTrace, activity, export_drampower
from eden.energy import LAWS, CoreLaw, VddLaw, energy, saving, savings
from profiles.errors import ModelError

DDR3 = dram_specs.load("ddr3-1600")
ACT, PRE, RD, WR, PREA, REF = Command
PICOJOULE = 1e-12

Step = tuple[int, Command, int]


def trace_of(steps: list[Step], length: int) -> CommandTrace:
    clock, command, bank = zip(*steps, strict=True) if steps else ((), (), ())
    address = np.zeros(len(steps), np.int32)
    return CommandTrace(
        np.array(clock, np.int64), np.array(command, np.uint8), np.array(bank, np.uint8), address, length
    )


def energies(steps: list[Step], length: int) -> dict[str, float]:
    """In picojoules of one of the eight devices, those that are not zero."""
    parts = energy(activity(trace_of(steps, length), DDR3), DDR3).parts()
    return {name: value / PICOJOULE / 8 for name, value in parts.items() if value}


# DDR3-1600: 1.5 V, tCK 1.25 ns, so 1 mA for 1 clock is 1.875 pJ; tRAS 28, tRP 11, burst 4, tRFC 208
GOLDEN = {
    "idle": ([], 100, {"precharge_standby": 100 * 32 * 1.875}),
    "activate": (
        [(10, ACT, 3)],
        100,
        {"activate": 28 * (55 - 38) * 1.875, "active_standby": 90 * 38 * 1.875, "precharge_standby": 10 * 32 * 1.875},
    ),
    "precharge": (
        [(0, ACT, 0), (28, PRE, 0)],
        39,
        {
            "activate": 28 * 17 * 1.875,
            "precharge": 11 * (55 - 32) * 1.875,
            "active_standby": 28 * 38 * 1.875,
            "precharge_standby": 11 * 32 * 1.875,
        },
    ),
    "read": (
        [(0, ACT, 0), (11, RD, 0)],
        20,
        {
            "activate": 28 * 17 * 1.875,
            "read": 4 * (157 - 38) * 1.875,
            "active_standby": 20 * 38 * 1.875,
            "read_io": 10 * 4.6 * 4 * 1.25,  # mW and ns
        },
    ),
    "write": (
        [(0, ACT, 0), (11, WR, 0)],
        20,
        {
            "activate": 28 * 17 * 1.875,
            "write": 4 * (125 - 38) * 1.875,
            "active_standby": 20 * 38 * 1.875,
            "write_io": 11 * 21.2 * 4 * 1.25,
        },
    ),
    "refresh": (  # of 208 clocks the last 11 are precharged
        [(50, REF, 0)],
        300,
        {
            "refresh": 208 * (235 - 38) * 1.875,
            "active_standby": 197 * 38 * 1.875,
            "precharge_standby": 103 * 32 * 1.875,
        },
    ),
    "precharge all": (  # two banks open, so two precharges; a PRE of a closed bank is none
        [(0, ACT, 0), (5, ACT, 1), (40, PREA, 0), (60, PRE, 2)],
        100,
        {
            "activate": 2 * 28 * 17 * 1.875,
            "precharge": 2 * 11 * 23 * 1.875,
            "active_standby": 40 * 38 * 1.875,
            "precharge_standby": 60 * 32 * 1.875,
        },
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_each_command_and_state_takes_what_a_hand_calculation_says(name: str) -> None:
    steps, length, expected = GOLDEN[name]
    assert energies(steps, length) == pytest.approx(expected)


def test_idd0_is_the_mean_current_of_activating_and_precharging_without_end() -> None:
    """By IDD0's definition; TN-41-01."""
    cycles = [(39 * k + at, what, 0) for k in range(100) for at, what in ((0, ACT), (28, PRE))]
    total = sum(energies(cycles, 3900).values())
    assert total / (3900 * 1.875) == pytest.approx(55)


def test_every_rail_counts_and_only_scaled_ones_fall() -> None:
    ddr4 = dram_specs.load("ddr4-2400")
    idle = Activity(0, 0, 0, 0, 0, 0, 1000)
    amperes = (1.2 * 0.034, 2.5 * 0.003)
    seconds = 1000 * 833e-12 * 8
    assert energy(idle, ddr4).total == pytest.approx(sum(amperes) * seconds)
    half = energy(idle, ddr4, VddLaw(CoreLaw.SQUARE, io_scaled=True), 0.5).total
    assert half == pytest.approx((amperes[0] / 4 + amperes[1]) * seconds)


def test_laws_scale_commands_standby_and_pins_as_they_say() -> None:
    busy = Activity(10, 10, 100, 50, 1, 3000, 500)
    nominal = energy(busy, DDR3).parts()
    for law in LAWS:
        command = 0.8 if law.core is CoreLaw.LINEAR else 0.64
        standby = 0.64 if law.core is CoreLaw.SQUARE else 0.8
        for name, value in energy(busy, DDR3, law, 0.8).parts().items():
            io = command if law.io_scaled else 1.0
            factor = io if name.endswith("io") else standby if name.endswith("standby") else command
            assert value == pytest.approx(nominal[name] * factor), (law, name)


def test_the_band_is_that_of_all_laws() -> None:
    busy = Activity(10, 10, 100, 50, 1, 3000, 500)
    shares = savings(busy, busy, DDR3, 0.8)
    assert set(shares) == set(LAWS)
    found = saving(shares, LAWS[0])
    assert (found.share, found.low, found.high) == (shares[LAWS[0]], min(shares.values()), max(shares.values()))
    assert found.low == pytest.approx(shares[VddLaw(CoreLaw.LINEAR, io_scaled=False)])
    assert shares[VddLaw(CoreLaw.SQUARE, io_scaled=True)] == pytest.approx(1 - 0.64) == found.high


def test_a_reduced_voltage_needs_a_law() -> None:
    with pytest.raises(ModelError, match=r"0\.8 of nominal has no energy without a law; choose"):
        energy(Activity(0, 0, 0, 0, 0, 0, 1), DDR3, None, 0.8)
    with pytest.raises(ModelError, match="outside 0"):
        energy(Activity(0, 0, 0, 0, 0, 0, 1), DDR3, LAWS[0], 1.2)


@st.composite
def legal_traces(draw: st.DrawFn) -> tuple[list[Step], int]:
    """Sequences that the states allow, at any spacing."""
    now, ready, steps, is_open = draw(st.integers(0, 50)), 0, [], set[int]()
    for _ in range(draw(st.integers(0, 30))):
        choices = [PREA, PRE] + ([RD, WR] if is_open else [REF]) + ([ACT] if len(is_open) < 8 else [])
        what = draw(st.sampled_from(choices))
        bank = 0
        if what in (RD, WR):
            bank = draw(st.sampled_from(sorted(is_open)))
        elif what is ACT:
            bank = draw(st.sampled_from(sorted(set(range(8)) - is_open)))
            is_open.add(bank)
        elif what is PRE:
            bank = draw(st.integers(0, 7))
            is_open.discard(bank)
        elif what is PREA:
            is_open.clear()
        now = max(now, ready)
        steps.append((now, what, bank))
        if what is REF:
            ready = now + DDR3.clocks.trfc
        now += draw(st.integers(0, 300))
    last = steps[-1][0] if steps else 0
    return steps, last + draw(st.integers(0, 500))


def clock_by_clock(steps: list[Step], length: int) -> tuple[int, int]:
    """Active and precharged clocks, one at a time."""
    active = 0
    for clock in range(length):
        is_open: set[int] = set()
        refreshing = False
        for at, what, bank in steps:
            if at > clock:
                break
            if what is ACT:
                is_open.add(bank)
            elif what is PRE:
                is_open.discard(bank)
            elif what is PREA:
                is_open.clear()
            elif what is REF:
                refreshing = clock < at + DDR3.clocks.trfc - DDR3.clocks.trp
        active += bool(is_open) or refreshing
    return active, length - active


@settings(max_examples=60, deadline=None)
@given(legal_traces())
def test_state_clocks_are_those_of_a_count_clock_by_clock(made: tuple[list[Step], int]) -> None:
    steps, length = made
    found = activity(trace_of(steps, length), DDR3)
    assert found.length == length
    assert (found.active_clocks, found.precharged_clocks) == clock_by_clock(steps, length)
    counted = found.activates, found.reads, found.writes, found.refreshes
    assert counted == tuple(sum(step[1] is what for step in steps) for what in (ACT, RD, WR, REF))


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([(5, ACT, 0), (4, RD, 0)], "command 1 at clock 4 comes before"),
        ([(0, ACT, 0), (50, ACT, 0)], "activates a bank that is open"),
        ([(0, RD, 0)], "a bank that is closed"),
        ([(0, ACT, 0), (40, REF, 0)], "refreshes with a bank open"),
        ([(0, REF, 0), (207, ACT, 0)], "within tRFC"),
        ([(0, ACT, 8)], "no such code or bank"),
        ([(200, ACT, 0)], "beyond its length of 100"),
    ],
)
def test_traces_that_no_dram_could_follow_are_refused(steps: list[Step], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        activity(trace_of(steps, 100 if steps[-1][0] == 200 else 1000), DDR3)


def test_drampower_gets_its_command_list(tmp_path: Path) -> None:
    ddr4 = dram_specs.load("ddr4-2400")
    trace = trace_of([(0, ACT, 5), (17, RD, 5), (60, PREA, 0), (80, REF, 0)], 600)
    trace.address[:2] = 77, 3
    export_drampower(trace, ddr4, tmp_path / "trace.csv")
    assert (tmp_path / "trace.csv").read_text().splitlines() == [
        "0,ACT,0,1,1,77,0",
        "17,RD,0,1,1,77,24,0000000000000000",
        "60,PREA,0,0,0,0,0",
        "80,REFA,0,0,0,0,0",
        "600,END,0,0,0,0,0",
    ]


@pytest.mark.parametrize("name", dram_specs.names())
def test_every_dram_names_its_datasheet_and_makes_sense(name: str) -> None:
    spec = dram_specs.load(name)
    assert "IDD" in spec.source
    assert spec.uncertain
    assert spec.trcd * spec.tck_ps >= spec.trcd_ps > (spec.trcd - 1) * spec.tck_ps
    core = next(rail for rail in spec.rails if rail.scaled)
    assert core.idd2n < core.idd3n < core.idd0 < min(core.idd4r, core.idd4w)
    assert spec.burst_bytes in (32, 64)


def test_a_dram_that_is_not_there_is_refused() -> None:
    with pytest.raises(ModelError, match="no DRAM 'ddr9'; choose from ddr3-1600"):
        dram_specs.load("ddr9")
    with pytest.raises(ModelError, match="leaves -250 ps"):
        DDR3.trcd_clocks(14_000)

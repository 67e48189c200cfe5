"""Bring-up against stand-ins of each PHY with planted skews: what it finds, in which order, and what it says if not."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from host.bringup.initialisation import InitialisationWaits, PowerUp
from host.bringup.injector import Control, Injector
from host.bringup.levelling import Levels, Window, longest_window
from host.bringup.sequence import bring_up
from host.bus import Words
from host.chip_presets import PRESETS
from host.identity import Description
from host.simulation import SimulatedBoard
from host.timings import DDR3_1600K, DDR4_1600K
from profiles.errors import BoardError, UnacknowledgedError
from tests.host.phy_stand_in import (
    ARTIX,
    ECP5,
    FAMILIES,
    KINTEX,
    ULTRASCALE,
    Family,
    PhyStandIn,
    Skew,
    dram_init,
    expected_window,
)

SMALL_ULTRASCALE = replace(ULTRASCALE, delays=128, tck_taps=96, ui_taps=48)  # as the real one, and quicker
EYES = {"ECP5DDRPHY": (2, 3), "A7DDRPHY": (4, 14), "K7DDRPHY": (4, 11), "USPDDRPHY": (12, 40)}
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


class StoredDescription(Description):
    """A description whose registers are a stand-in's."""

    addresses: dict[str, int]

    def registers(self) -> dict[str, int]:
        return self.addresses


def description_of(stand_in: PhyStandIn, **more: object) -> Description:
    family, build = stand_in.family, stand_in.build
    about = {
        "phy": {name: getattr(family, name) for name in ("phytype", "memtype", "delays", "bitslips")},
        "dram_init": dram_init(family.memtype),
        "sys_clk_hz": 1e12 / build.tck_ps / build.nphases,
        **more,
    }
    description = StoredDescription(Path("board.json"), about, build)
    object.__setattr__(description, "addresses", stand_in.addresses())
    return description


def brought_up(stand_in: PhyStandIn) -> Levels:
    levels = bring_up(stand_in, description_of(stand_in), pause=stand_in.pause)
    assert levels is not None
    return levels


def plain_skew(family: Family) -> Skew:
    low, high = EYES[family.phytype]
    widen = family.delays // 32 or 1
    return Skew(
        read_first=1,
        read_taps=(low + high) // 2 if family is not ULTRASCALE else 120,
        clock_rise=family.tck_taps // 3,
        dq_first=-4 * widen,
        dq_last=5 * widen,
    )


@st.composite
def skews(draw: st.DrawFn, family: Family) -> Skew:
    """A lane that can be levelled: read data lie anywhere, DQS anywhere against the clock."""
    dq_centre = draw(st.integers(-2, 6))
    return Skew(
        read_first=draw(st.integers(0, family.ui_taps - 1)),
        read_taps=draw(st.integers(*EYES[family.phytype])),
        read_slip=draw(st.integers(0, family.bitslips - 3)),
        clock_rise=draw(st.integers(0, max(0, family.tck_taps - 1))),
        write_slip=draw(st.sampled_from(range(0, family.bitslips, 2))),
        dq_first=min(0, dq_centre - draw(st.integers(2, 4))),
        dq_last=max(0, dq_centre + draw(st.integers(2, 4))),
    )


def check_levels(stand_in: PhyStandIn, levels: Levels) -> None:
    """What was found is what was planted, and what the hardware is left at."""
    family, positions = stand_in.family, stand_in.positions
    for lane, (skew, found) in enumerate(zip(stand_in.skews, levels.lanes, strict=True)):
        every = [expected_window(family, skew, stand_in.clock_delay, slip) for slip in range(family.bitslips)]
        planted = every[found.read_bitslip]
        assert planted is not None
        assert (found.read.first, found.read.last) == planted
        step = max(1, family.delays // 32)
        assert found.read.taps > max(last - first for first, last in filter(None, every)) - 2 * step
        assert abs(positions["read_delay"][lane] - sum(planted) / 2) <= 1
        assert positions["read_bitslip"][lane] == found.read_bitslip
        if family.levels_writes:
            tck, at = family.tck_taps, positions["write_dqs"][lane]
            assert at == found.write_delay
            late = (at - skew.clock_rise - stand_in.clock_delay + tck // 2) % tck - tck // 2
            assert -1 <= late <= (1 if at else tck // 4)
            assert positions["write_bitslip"][lane] == found.write_bitslip == skew.write_slip
            low, high = max(0, at + skew.dq_first), min(family.delays - 1, at + skew.dq_last)
            if found.write_dq is not None:
                assert abs(positions["write_dq"][lane] - (low + high) / 2) <= 1
            else:
                assert positions["write_dq"][lane] == at


def check_left_working(stand_in: PhyStandIn) -> None:
    dram = stand_in.dram
    assert dram.faults == []
    assert dram.control == Control.SEL
    assert not dram.open_rows
    assert not dram.levels_writes
    assert dram.modes == {int(s["bank"]): s["address"] for s in dram_init(dram.memtype) if "ras" in s["bits"]}
    assert (stand_in.held["wlevel_en"], stand_in.held["dly_sel"]) == (0, 0)
    assert stand_in.held["en_vtc"] == 1
    assert all(stand_in.in_step)


@pytest.mark.parametrize("family", [ECP5, ARTIX, KINTEX, SMALL_ULTRASCALE], ids=lambda family: family.phytype)
def test_levelling_finds_what_was_planted(family: Family) -> None:
    find_what_was_planted(family, 4 if family.levels_writes else 15)


@pytest.mark.prove
@pytest.mark.parametrize("family", [ECP5, ARTIX, KINTEX, SMALL_ULTRASCALE], ids=lambda family: family.phytype)
def test_levelling_finds_whatever_is_planted(family: Family) -> None:
    find_what_was_planted(family, 300)


def find_what_was_planted(family: Family, examples: int) -> None:
    @settings(unhurried, max_examples=examples)
    @given(st.data())
    def finds(data: st.DataObject) -> None:
        lanes = data.draw(st.lists(skews(family), min_size=1, max_size=3))
        assume(len(lanes) != 3)  # a bus is a power of two wide
        stand_in = PhyStandIn(family, lanes, data.draw(st.integers(0, 1000)))
        check_levels(stand_in, brought_up(stand_in))
        check_left_working(stand_in)

    finds()


@pytest.mark.slow
def test_levelling_of_a_whole_ultrascale_dimm() -> None:
    random = np.random.default_rng(3)
    lanes = [
        replace(
            plain_skew(ULTRASCALE), read_first=int(random.integers(0, 199)), clock_rise=100 + int(random.integers(60))
        )
        for _ in range(8)
    ]
    stand_in = PhyStandIn(ULTRASCALE, lanes)
    check_levels(stand_in, brought_up(stand_in))
    check_left_working(stand_in)


@pytest.mark.parametrize("family", [ECP5, KINTEX, SMALL_ULTRASCALE], ids=lambda family: family.phytype)
def test_bring_up_may_be_cut_off_anywhere_and_repeated(family: Family) -> None:
    """UltraScale's reset leaves DQS delays alone: DQ would be out of step with them the second time."""

    class CutError(Exception):
        pass

    whole = PhyStandIn(family, [plain_skew(family)] * 2)
    brought_up(whole)
    for at in np.linspace(20, whole.accesses - 2, 2 if family.levels_writes else 6).astype(int):

        class CutOff(PhyStandIn):
            def _access(self, at: int = int(at)) -> None:
                super()._access()
                if self.accesses == at:
                    raise CutError

        stand_in = CutOff(family, [plain_skew(family)] * 2)
        with pytest.raises(CutError):
            brought_up(stand_in)
        check_levels(stand_in, brought_up(stand_in))
        stand_in.dram.faults = [fault for fault in stand_in.dram.faults if "open" not in fault]
        check_left_working(stand_in)


# ---- JEDEC's order and waits -----------------------------------------------------------------------------------------

# JESD79-3F 3.3.1 and JESD79-4 3.3.1, in clocks where they are clocks
ORDER = {
    "DDR3": ["SEL", "RESET_N", "CKE", "MRS2", "MRS3", "MRS1", "MRS0", "ZQCL", "ODT"],
    "DDR4": ["SEL", "RESET_N", "CKE", "MRS3", "MRS6", "MRS5", "MRS4", "MRS2", "MRS1", "MRS0", "ZQCL", "ODT"],
}
CLOCKS = {"DDR3": {"tMRD": 4, "tMOD": 12, "tDLLK": 512, "tZQinit": 512}}
CLOCKS["DDR4"] = {"tMRD": 8, "tMOD": 24, "tDLLK": 1024, "tZQinit": 1024}
TRFC_NS = {"DDR3": 350, "DDR4": 550}  # of the largest chips


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.phytype)
def test_power_up_keeps_jedecs_order_and_waits_with_a_link_that_takes_no_time(family: Family) -> None:
    stand_in = PhyStandIn(family, [plain_skew(family)] * 2)
    about = description_of(stand_in).about
    power_up = PowerUp(about["dram_init"], family.memtype, family.tck_ps, about["sys_clk_hz"])
    resets: list[float] = []
    injector = Injector(stand_in, stand_in.addresses(), stand_in.build)
    power_up.run(injector, lambda: resets.append(stand_in.now), stand_in.pause)
    events = stand_in.dram.events
    assert [event.what for event in events] == ORDER[family.memtype]
    assert resets == [events[0].at_s]  # while RESET# is low, before the clock counts
    at = {event.what: event.at_s for event in events}
    tck, clocks = family.tck_ps * 1e-12, CLOCKS[family.memtype]
    modes = [event for event in events if event.what.startswith("MRS")]
    assert at["RESET_N"] - at["SEL"] >= 200e-6
    assert at["CKE"] - at["RESET_N"] >= 500e-6
    assert modes[0].at_s - at["CKE"] >= max(5 * tck, (TRFC_NS[family.memtype] + 10) * 1e-9)
    assert min(np.diff([event.at_s for event in modes])) >= clocks["tMRD"] * tck * 0.999
    assert at["ZQCL"] - modes[-1].at_s >= max(clocks["tMOD"] * tck, 15e-9, clocks["tDLLK"] * tck)
    assert at["ODT"] - at["ZQCL"] >= clocks["tZQinit"] * tck * 0.999
    if family.memtype == "DDR3":
        assert at["ODT"] - at["ZQCL"] >= 640e-9
    assert modes[-1].value >> 8 & 1  # MR0 resets the DLL
    assert stand_in.dram.faults == []


def test_waits_are_jedecs_where_the_builds_own_are_longer_or_shorter() -> None:
    waits = InitialisationWaits.of("DDR3", 1250)
    assert waits.calibration == pytest.approx(640e-9)
    assert waits.after_modes == pytest.approx(512 * 1.25e-9)


@given(st.permutations(range(7)), st.integers(0, 6))
def test_a_power_up_in_another_order_is_refused(order: list[int], dropped: int) -> None:
    steps = dram_init("DDR3")
    assume(order != list(range(7)))
    for wrong in ([steps[k] for k in order], steps[:dropped] + steps[dropped + 1 :], []):
        with pytest.raises(BoardError, match=r"board\.json"):
            PowerUp(wrong, "DDR3", 2000, 125e6)
    PowerUp(steps, "DDR3", 2000, 125e6)


# ---- what cannot be levelled -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [ECP5, ARTIX, KINTEX, SMALL_ULTRASCALE], ids=lambda family: family.phytype)
def test_a_lane_without_a_read_window_is_named(family: Family) -> None:
    good = plain_skew(family)
    stand_in = PhyStandIn(family, [good, replace(good, read_taps=0)])
    with pytest.raises(BoardError, match=r"^lane 1 \(DQ 8 to 15\) reads no test data at any of .*; seat the module"):
        brought_up(stand_in)
    assert stand_in.dram.control != Control.SEL  # the controller does not get what does not work
    stand_in = PhyStandIn(family, [replace(good, read_taps=0)] * 2)
    with pytest.raises(BoardError, match="nor does another lane: is the module seated, its supply on"):
        brought_up(stand_in)


def test_messages_tell_the_range_that_was_tried() -> None:
    good = plain_skew(KINTEX)
    with pytest.raises(BoardError, match="read bitslips 0 to 7 and write bitslips 0 to 7"):
        brought_up(PhyStandIn(KINTEX, [good, replace(good, write_slip=3)]))
    with pytest.raises(BoardError, match="read bitslips 0 to 3 and read delays 0 to 7"):
        brought_up(PhyStandIn(ECP5, [replace(plain_skew(ECP5), read_taps=0)]))


def test_a_lane_whose_strobe_the_dram_does_not_see_is_named() -> None:
    good = plain_skew(KINTEX)
    stand_in = PhyStandIn(KINTEX, [replace(good, deaf=True), good])
    with pytest.raises(BoardError, match=r"lane 0 \(DQ 0 to 7\) sees no rising clock at write delays 0 to 25 .*DQS"):
        brought_up(stand_in)
    assert not stand_in.dram.levels_writes
    assert stand_in.held["wlevel_en"] == 0


def test_a_window_too_narrow_to_trust_is_refused() -> None:
    good = plain_skew(ECP5)
    with pytest.raises(BoardError, match=r"lane 1 .* no window of 2 taps or more among read delays 0 to 7 \(1 found\)"):
        brought_up(PhyStandIn(ECP5, [good, replace(good, read_taps=1)]))


def test_a_burst_whose_strobe_was_not_seen_does_not_count() -> None:
    class Blind(PhyStandIn):
        def _receive(self, stored: np.ndarray) -> None:
            super()._receive(stored)
            self.held["burstdet_seen"] &= ~2

    with pytest.raises(BoardError, match="lane 1 "):
        brought_up(Blind(ECP5, [plain_skew(ECP5)] * 2))


def test_data_that_come_back_only_sometimes_are_not_trusted() -> None:
    class Counting(PhyStandIn):
        """The ``wrong``-th burst that is read has a wrong bit in lane 0."""

        bursts, wrong = 0, 0

        def _receive(self, stored: np.ndarray) -> None:
            super()._receive(stored)
            self.bursts += 1
            if self.bursts == self.wrong:
                self.received[0, 0] ^= 1

    steady, once = (Counting(ECP5, [plain_skew(ECP5)] * 2) for _ in range(2))
    brought_up(steady)
    once.wrong = steady.bursts - 3
    with pytest.raises(BoardError, match=r"lane 0 .*not steady"):
        brought_up(once)


# ---- links -----------------------------------------------------------------------------------------------------------


def test_writes_that_may_not_have_been_taken_begin_it_anew() -> None:
    class Losing(PhyStandIn):
        """The 30th write is taken, the 600th is not, and neither is acknowledged."""

        writes = 0

        def write(self, address: int, words: Words) -> None:
            self.writes += 1
            if self.writes != 600:
                super().write(address, words)
            if self.writes in (30, 600):
                raise UnacknowledgedError("lost")

    stand_in = Losing(ECP5, [plain_skew(ECP5)] * 2)
    check_levels(stand_in, brought_up(stand_in))
    assert [event.what for event in stand_in.dram.events].count("MRS0") == 3

    class Deaf(PhyStandIn):
        def write(self, address: int, words: Words) -> None:
            raise UnacknowledgedError("lost")

    with pytest.raises(UnacknowledgedError):
        brought_up(Deaf(ECP5, [plain_skew(ECP5)] * 2))


# ---- builds ----------------------------------------------------------------------------------------------------------


def test_builds_that_cannot_be_brought_up_are_refused() -> None:
    stand_in = PhyStandIn(ECP5, [plain_skew(ECP5)] * 2)
    phy = {"phytype": "GENSDRPHY", "memtype": "DDR3", "delays": 8, "bitslips": 4}
    for more, says in (
        ({"phy": phy}, "not GENSDRPHY"),
        ({"phy": {"memtype": "DDR3"}}, "does not describe its PHY"),
        ({"phy": {**phy, "phytype": "ECP5DDRPHY", "delays": 1 << 20}}, "1048576 delays"),
        ({"phy": {**phy, "phytype": "ECP5DDRPHY", "memtype": "SDR"}}, "knows DDR3 and DDR4, not SDR"),
    ):
        with pytest.raises(BoardError, match=says):
            bring_up(stand_in, description_of(stand_in, **more), pause=stand_in.pause)
    with pytest.raises(BoardError, match="2 ranks"):
        Injector(stand_in, stand_in.addresses(), replace(stand_in.build, ranks=2))
    addresses = stand_in.addresses()
    with pytest.raises(BoardError, match="no register 'sdram_dfii_control'"):
        Injector(stand_in, {}, stand_in.build)
    addresses["sdram_dfii_pi1_rddata"] += 4
    with pytest.raises(BoardError, match="in another order"):
        Injector(stand_in, addresses, stand_in.build)
    assert stand_in.accesses == 0  # nothing was touched


@given(st.lists(st.booleans(), max_size=40))
def test_the_longest_window_is_the_first_of_the_longest_runs(passed: list[bool]) -> None:
    runs = [(k, j) for k in range(len(passed)) for j in range(k, len(passed)) if all(passed[k : j + 1])]
    best = max(runs, key=lambda run: (run[1] - run[0], -run[0]), default=None)
    found = longest_window(np.array(passed, bool))
    assert found == (None if best is None else Window(*best))


@pytest.mark.slow
@pytest.mark.parametrize("configuration", ["small4", "small2", "small_ddr4"])
def test_the_gatewares_own_injector_powers_up_and_moves_bursts(configuration: str) -> None:
    """The registers, their order, phases, and the order of bits in a burst, by the RTL; and JEDEC, by its monitor."""
    board = SimulatedBoard(configuration, PRESETS["A"], 1, DDR4_1600K if "ddr4" in configuration else DDR3_1600K)
    board.set_environment(1_350_000, 20.0)
    build = board.build

    class Link:
        """As slow as a fast link is: 20 clocks from one access to the next, for CL, tWR and tRP."""

        read, close = board.read, board.close

        def write(self, address: int, words: Words) -> None:
            board.write(address, words)
            board.run(20)

    injector = Injector(Link(), board.registers, build)
    about = board.about
    power_up = PowerUp(about["dram_init"], about["phy"]["memtype"], build.tck_ps, about["sys_clk_hz"])
    power_up.run(injector, lambda: None, lambda seconds: board.run(int(seconds * about["sys_clk_hz"]) + 1))
    random = np.random.default_rng(1)
    for _ in range(5):
        burst = random.integers(0, 2, (8, build.geometry.data_width), dtype=np.uint8)
        injector.load(burst)
        injector.write_burst()
        assert np.array_equal(injector.read_burst(), burst)
    injector.control(Control.SEL)
    board.run(5000)  # the controller has the DRAM again, and refreshes it
    assert board.violations() == {}
    board.close()

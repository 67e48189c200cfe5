"""The DFI changes hands only with every bank closed, and the controller refreshes before it goes on.

A real LiteDRAM controller with a port that never stops asking; what it sends to the DRAM is recorded and read as a DRAM
would read it.
"""

from collections.abc import Generator
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from litedram.common import GeomSettings, PhySettings, TimingSettings
from litedram.core import LiteDRAMCore
from litedram.core.controller import ControllerSettings
from litedram.phy import dfi
from migen import Module, run_simulation

from gateware.handover import HandoverRefresher

TRP, TRFC, READ_LATENCY = 3, 9, 8
GEOMETRY = GeomSettings(bankbits=2, rowbits=6, colbits=6)
COMMANDS = {(0, 1, 1): "ACT", (1, 0, 1): "RD", (1, 0, 0): "WR", (0, 1, 0): "PRE", (0, 0, 1): "REF", (1, 1, 0): "ZQCS"}
ALL_BANKS = 1 << 10


class _Phy(Module):
    def __init__(self) -> None:
        self.settings = PhySettings(
            phytype="model",
            memtype="DDR3",
            databits=8,
            dfi_databits=16,
            nphases=4,
            rdphase=2,
            wrphase=3,
            cl=6,
            cwl=5,
            read_latency=READ_LATENCY,
            write_latency=1,
        )
        self.dfi = dfi.Interface(GEOMETRY.addressbits + 5, GEOMETRY.bankbits, 1, 16, 4)


@dataclass
class Rig:
    """LiteDRAM under load, and what it sent: (clock, command name, bank, address) each."""

    trfc: int = TRFC
    tzqcs: int | None = None
    zqcs_period: int = 1
    sent: list[tuple[int, str, int, int]] = field(default_factory=list)
    held: list[bool] = field(default_factory=list)
    reads_returned: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        timing = TimingSettings(
            tRP=TRP, tRCD=3, tWR=3, tWTR=3, tREFI=120, tRFC=self.trfc, tFAW=None, tCCD=1, tRRD=None, tRC=9, tRAS=6,
            tZQCS=self.tzqcs,
        )  # fmt: skip
        geometry = GEOMETRY
        geometry.addressbits = 11  # as of a real module: A10 says "all banks"
        settings = ControllerSettings(refresh_cls=HandoverRefresher, refresh_zqcs_freq=1e6 / self.zqcs_period)
        self.core = LiteDRAMCore(_Phy(), geometry, timing, 1e6, controller_settings=settings)
        self.refresher = self.core.controller.refresher
        self.port = self.core.crossbar.get_port()

    def run(self, clocks: int, hold: range, write: bool = True) -> None:
        """Load the controller for ``clocks``, asking for the DFI within ``hold``."""
        run_simulation(self.core, [self._load(clocks, write), self._watch(clocks, hold)])

    def _load(self, clocks: int, write: bool) -> Generator:
        """Accesses to changing banks and rows, without a pause."""
        port, number = self.port, 0
        yield port.cmd.valid.eq(1)
        yield port.cmd.we.eq(int(write))
        yield port.wdata.valid.eq(1)
        yield port.rdata.ready.eq(1)
        for _ in range(clocks):
            yield port.cmd.addr.eq(number % (1 << 11))
            yield
            number += yield port.cmd.ready

    def _watch(self, clocks: int, hold: range) -> Generator:
        for clock in range(clocks):
            yield self.refresher.hold.eq(int(clock in hold))
            yield
            self.held.append(bool((yield self.refresher.held)))
            if (yield self.port.rdata.valid):
                self.reads_returned.append(clock)
            for phase in self.core.controller.dfi.phases:
                strobes = ((yield phase.ras_n), (yield phase.cas_n), (yield phase.we_n))
                if strobes != (1, 1, 1):
                    self.sent.append((clock, COMMANDS[strobes], (yield phase.bank), (yield phase.address)))

    def open_banks(self, until: int) -> set[int]:
        opened: set[int] = set()
        for clock, command, bank, address in self.sent:
            if clock <= until:
                if command == "ACT":
                    assert bank not in opened
                    opened.add(bank)
                elif command == "PRE" and address & ALL_BANKS:
                    opened.clear()
                elif command == "PRE" or (command in ("RD", "WR") and address & ALL_BANKS):
                    opened.discard(bank)
        return opened


def held_spans(held: list[bool]) -> list[range]:
    edges = [k for k in range(1, len(held)) if held[k] != held[k - 1]]
    return [range(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True)]


# before, in and after a refresh of the controller's own
@pytest.mark.parametrize(("ask", "tzqcs"), [(90, None), (118, None), (121, 16), (126, None), (138, 16)])
def test_dfi_is_lent_with_banks_closed_and_comes_back_through_a_refresh(ask: int, tzqcs: int | None) -> None:
    rig = Rig(tzqcs=tzqcs)
    rig.run(310, range(ask, 190))
    (span,) = held_spans(rig.held)
    assert span.start < ask + 60
    assert span.stop == 191

    before = [c for c in rig.sent if c[0] < span.start]
    assert before[-1][1] == ("ZQCS" if tzqcs else "REF")
    assert span.start - before[-1][0] >= (tzqcs or TRFC)
    assert rig.open_banks(span.start) == set()
    assert len([c for c in before if c[1] == "WR"]) > 20

    assert not [c for c in rig.sent if c[0] in span]

    after = [c for c in rig.sent if c[0] >= span.stop]
    (precharge, _, _, address), (refresh, *_), (next_command, *_) = after[:3]
    assert [c[1] for c in after[:2]] == ["PRE", "REF"]
    assert address & ALL_BANKS
    assert refresh - precharge == TRP
    assert next_command - refresh >= TRFC
    assert len([c for c in after if c[1] == "WR"]) >= 8
    assert {c[1] for c in after} >= {"ACT", "WR"}


def test_refreshes_come_each_trefi_when_nobody_asks() -> None:
    rig = Rig()
    rig.run(400, range(0))
    refreshes = [clock for clock, command, _, _ in rig.sent if command == "REF"]
    assert len(refreshes) == 3
    assert all(abs(b - a - 120) < 30 for a, b in pairwise(refreshes))
    assert not any(rig.held)


def test_data_of_the_last_read_are_back_before_the_dfi_is_lent() -> None:
    rig = Rig(trfc=1)
    rig.run(120, range(50, 120), write=False)
    assert any(rig.held)
    reads = [clock for clock, command, _, _ in rig.sent if command == "RD"]
    assert len(reads) == len(rig.reads_returned) > 10
    assert rig.reads_returned[-1] < rig.held.index(True)


def test_zq_calibration_that_comes_due_between_refreshes_is_not_lost() -> None:
    rig = Rig(tzqcs=16, zqcs_period=180)
    rig.run(500, range(0))
    assert [command for _, command, _, _ in rig.sent].count("ZQCS") == 2

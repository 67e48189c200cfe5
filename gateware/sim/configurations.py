"""The boards that are simulated: one of a real board's shape, and small ones that tests build and fill quickly.

Their pads are the ports of the Verilog: clock and reset, a Wishbone slave for the host, and the serial bridge's line.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from litedram.frontend.bist import LiteDRAMBISTChecker, LiteDRAMBISTGenerator
from litedram.modules import MT8JTF12864, MT40A1G8, SDRAMModule
from litex.build.generic_platform import GenericPlatform, Pins, Subsignal
from litex.build.io import CRG
from litex.soc.interconnect import wishbone
from migen import Module

from gateware.boards.base import Board, DramRail
from gateware.sim.phy import SimulatedPHY, phy_settings
from gateware.soc import EdenSoC


class SmallDDR3(MT8JTF12864):
    """A DDR3 module of 64 rows of 64 columns; its address pins still reach A10, which says which banks to precharge."""

    nrows, ncols = 64, 64

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.geom_settings.addressbits = 14


class SmallDDR4(MT40A1G8):
    """A DDR4 module of four groups of four banks, of 64 rows of 64 columns; address pins as `SmallDDR3`'s."""

    nrows, ncols = 64, 64

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.geom_settings.addressbits = 14


def _platform() -> GenericPlatform:
    return GenericPlatform(
        "",
        [
            ("clock", 0, Pins(1)),
            ("reset", 0, Pins(1)),
            *wishbone.Interface(data_width=32, adr_width=30).get_ios("bus"),
            ("bus_error", 0, Pins(1)),
            ("serial", 0, Subsignal("tx", Pins(1)), Subsignal("rx", Pins(1))),
        ],
    )


def _clocks(platform: GenericPlatform, _sys_clk_freq: float) -> Module:
    return CRG(platform.request("clock"), platform.request("reset"))


def _peripherals(soc: EdenSoC, bist: bool) -> None:
    host = wishbone.Interface(data_width=32, adr_width=30)
    soc.bus.add_master("host", host)
    soc.comb += [
        *host.connect_to_pads(soc.platform.request("bus"), mode="slave"),
        soc.platform.request("bus_error").eq(soc.ctrl.bus_error),
    ]
    soc.add_serial_bridge(soc.platform.request("serial"), baudrate=soc.sys_clk_freq / SERIAL_CLOCKS)
    if bist:
        soc.bist_generator = LiteDRAMBISTGenerator(soc.sdram.crossbar.get_port())
        soc.bist_checker = LiteDRAMBISTChecker(soc.sdram.crossbar.get_port())


def _board(
    name: str,
    title: str,
    module: type[SDRAMModule],
    data_width: int,
    nphases: int,
    sys_clk_freq: float,
    bist: bool = False,
    **sizes: int,
) -> Board:
    def phy(_platform: GenericPlatform, _clocks: Module, sys_clk_freq: float) -> Module:
        geometry = module(sys_clk_freq, f"1:{nphases}").geom_settings
        settings = phy_settings(module.memtype, data_width, nphases, sys_clk_freq)
        return SimulatedPHY(settings, geometry.addressbits, geometry.bankbits)

    return Board(
        **{"name": name, "title": title, "sys_clk_freq": sys_clk_freq, "nphases": nphases, "module": module},
        platform=_platform,
        clocks=_clocks,
        phy=phy,
        chip_width=8,
        rail=DramRail(1350, 0, "simulated"),
        sizes=sizes,
        peripherals=partial(_peripherals, bist=bist),
        bridges="in the same process",
        loader=(),
    )


SERIAL_CLOCKS = 8  # system clocks a bit of the serial line: a real baud rate would take hours
_SMALL: Mapping[str, int] = {
    **{"program_depth": 1024, "log_blocks": 8, "buffer_bursts": 64, "row_counters": 64},
}

CONFIGURATIONS = {
    board.name: board
    for board in (
        _board("kc705", "simulated KC705", MT8JTF12864, 64, 4, 125e6),
        _board("kc705_bist", "simulated KC705 with LiteDRAM's own self-test", MT8JTF12864, 64, 4, 125e6, bist=True),
        _board("small4", "simulated, DDR3, four phases", SmallDDR3, 16, 4, 125e6, **_SMALL),
        _board("small2", "simulated, DDR3, two phases", SmallDDR3, 16, 2, 75e6, **_SMALL),
        _board("small_ddr4", "simulated, DDR4, four phases", SmallDDR4, 16, 4, 200e6, **_SMALL),
    )
}
BENCHMARKED = ("kc705_bist",)  # only a benchmark needs them, and builds them itself

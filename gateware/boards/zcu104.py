"""Xilinx ZCU104: Zynq UltraScale+, DDR4 SO-DIMM of 4 GB."""

from functools import partial

from litedram.modules import MTA4ATF51264HZ
from litedram.phy import USPDDRPHY
from litex.build.generic_platform import GenericPlatform
from litex.soc.cores.xadc import ZynqUSPSystemMonitor
from litex_boards.platforms import xilinx_zcu104
from migen import Module

from gateware.boards.base import Board, DramRail
from gateware.boards.xilinx import UltraScaleClocks
from gateware.soc import EdenSoC


def _phy(platform: GenericPlatform, clocks: UltraScaleClocks, sys_clk_freq: float) -> Module:
    return USPDDRPHY(platform.request("ddram"), memtype="DDR4", sys_clk_freq=sys_clk_freq, iodelay_clk_freq=500e6)


def _peripherals(soc: EdenSoC) -> None:
    soc.add_serial_bridge(soc.platform.request("serial"), baudrate=3_000_000)
    soc.sysmon = ZynqUSPSystemMonitor()


ZCU104 = Board(
    name="zcu104",
    title="Xilinx ZCU104 (XCZU7EV, 4 GB DDR4 SO-DIMM x64)",
    sys_clk_freq=125e6,
    nphases=4,
    platform=xilinx_zcu104.Platform,
    clocks=partial(UltraScaleClocks, clock="clk125", frequency=125e6),
    phy=_phy,
    module=MTA4ATF51264HZ,
    chip_width=16,
    rail=DramRail(1200, 950, "by the board's own controllers, which this gateware does not reach"),
    sizes={"log_blocks": 128, "buffer_bursts": 2048, "row_counters": 4096},
    peripherals=_peripherals,
    bridges="serial (FT4232, 3 Mbaud)",
    loader=(),
)

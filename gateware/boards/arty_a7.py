"""Digilent Arty A7: Artix-7 100T (the engine does not fit the 35T), 256 MB of DDR3L."""

from functools import partial

from litedram.modules import MT41K128M16
from litedram.phy import A7DDRPHY
from liteeth.phy.mii import LiteEthPHYMII
from litex.build.generic_platform import GenericPlatform
from litex.soc.cores.clock import S7PLL
from litex.soc.cores.xadc import S7SystemMonitor
from litex_boards.platforms import digilent_arty
from migen import ClockDomain, Module

from gateware.boards.base import Board, DramRail
from gateware.boards.xilinx import Series7Clocks, add_ethernet
from gateware.soc import EdenSoC


def _clocks(platform: GenericPlatform, sys_clk_freq: float) -> Series7Clocks:
    reset = ~platform.request("cpu_reset")
    return Series7Clocks(platform, sys_clk_freq, S7PLL(speedgrade=-1), "clk100", 100e6, reset, strobe_clock=True)


def _phy(platform: GenericPlatform, clocks: Series7Clocks, sys_clk_freq: float) -> Module:
    return A7DDRPHY(platform.request("ddram"), memtype="DDR3", nphases=4, sys_clk_freq=sys_clk_freq)


def _peripherals(soc: EdenSoC) -> None:
    soc.add_serial_bridge(soc.platform.request("serial"), baudrate=3_000_000)
    soc.cd_eth_ref = ClockDomain("eth_ref", reset_less=True)
    soc.crg.pll.create_clkout(soc.cd_eth_ref, 25e6, with_reset=False)
    soc.comb += soc.platform.request("eth_ref_clk").eq(soc.cd_eth_ref.clk)
    soc.ethphy = LiteEthPHYMII(soc.platform.request("eth_clocks"), soc.platform.request("eth"))
    add_ethernet(soc, phy_clocks=soc.ethphy.crg)
    soc.xadc = S7SystemMonitor()


ARTY_A7 = Board(
    name="arty_a7",
    title="Digilent Arty A7-100 (XC7A100T, 256 MB DDR3L x16)",
    sys_clk_freq=100e6,
    nphases=4,
    platform=partial(digilent_arty.Platform, variant="a7-100"),
    clocks=_clocks,
    phy=_phy,
    module=MT41K128M16,
    chip_width=16,
    rail=DramRail(1350, 1140, "fixed on the board: feed it from a bench supply"),
    sizes={"log_blocks": 128, "buffer_bursts": 2048, "row_counters": 2048},
    peripherals=_peripherals,
    bridges="serial (FT2232, 3 Mbaud), Etherbone at 192.168.1.50",
    loader=("--board", "arty_a7_100t"),
)

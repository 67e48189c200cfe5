"""ButterStick: ECP5-85F, DDR3L in two ranks."""

from functools import partial

from litedram.modules import MT41K64M16
from liteeth.phy.ecp5rgmii import LiteEthPHYRGMII
from litex_boards.platforms import gsd_butterstick

from gateware.boards.base import Board, DramRail
from gateware.boards.ecp5 import Ecp5Clocks, ecp5_phy
from gateware.soc import EdenSoC


def _peripherals(soc: EdenSoC) -> None:
    soc.ethphy = LiteEthPHYRGMII(soc.platform.request("eth_clocks"), soc.platform.request("eth"), rx_delay=0)
    soc.add_etherbone(phy=soc.ethphy, data_width=32)


BUTTERSTICK = Board(
    name="butterstick",
    title="ButterStick r1.0 (LFE5UM5G-85F, two ranks of 128 MB DDR3L x16)",
    sys_clk_freq=75e6,
    nphases=2,
    platform=gsd_butterstick.Platform,
    clocks=partial(Ecp5Clocks, clock="clk30", frequency=30e6, reset_n="user_btn"),
    phy=lambda platform, clocks, sys_clk_freq: ecp5_phy(clocks, platform.request("ddram"), sys_clk_freq),
    module=MT41K64M16,
    chip_width=16,
    rail=DramRail(1350, "fixed on the board: feed it from a bench supply"),
    sizes={"program_depth": 1024, "log_blocks": 64, "buffer_bursts": 1024, "row_counters": 1024, "backlog": 1024},
    peripherals=_peripherals,
    bridges="Etherbone at 192.168.1.50",
    loader=("--dfu", "--vid", "0x1209", "--pid", "0x5af1", "--altsetting", "0"),
)

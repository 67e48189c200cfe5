"""OrangeCrab: ECP5-85F (the engine does not fit the 25F), 128 MB of DDR3L."""

from functools import partial

from litedram.modules import MT41K64M16
from litedram.phy import ECP5DDRPHY
from litex.build.generic_platform import GenericPlatform
from litex_boards.platforms import gsd_orangecrab

from gateware.boards.base import Board, DramRail
from gateware.boards.ecp5 import Ecp5Clocks, ecp5_phy
from gateware.soc import EdenSoC


def _phy(platform: GenericPlatform, clocks: Ecp5Clocks, sys_clk_freq: float) -> ECP5DDRPHY:
    pads = platform.request("ddram")
    clocks.comb += [pads.vccio.eq(0b111111), pads.gnd.eq(0)]  # pins that the board ties to its supply
    # the command delay is what litex-boards found to work on this board
    phy = ecp5_phy(clocks, pads, sys_clk_freq, dm_remapping={0: 1, 1: 0}, cmd_delay=0 if sys_clk_freq > 64e6 else 100)
    phy.settings.rtt_nom = "disabled"
    return phy


def _peripherals(soc: EdenSoC) -> None:
    soc.platform.add_extension(gsd_orangecrab.feather_serial)
    soc.add_serial_bridge(soc.platform.request("serial"), baudrate=1_000_000)


ORANGECRAB = Board(
    name="orangecrab",
    title="OrangeCrab r0.2 with the larger FPGA (LFE5U-85F, 128 MB DDR3L x16)",
    sys_clk_freq=48e6,
    nphases=2,
    platform=partial(gsd_orangecrab.Platform, device="85F"),
    clocks=partial(
        Ecp5Clocks,
        clock="clk48",
        frequency=48e6,
        reset_n="usr_btn",
        init_frequency=24e6,
        edge_clock_bridge=True,
    ),
    phy=_phy,
    module=MT41K64M16,
    chip_width=16,
    rail=DramRail(1350, 1140, "fixed on the board: feed it from a bench supply"),
    sizes={"log_blocks": 64, "buffer_bursts": 1024, "row_counters": 1024, "look_ahead": False},
    peripherals=_peripherals,
    bridges="serial on the Feather pins (1 Mbaud, an adapter of yours)",
    loader=("--board", "orangeCrab"),
)

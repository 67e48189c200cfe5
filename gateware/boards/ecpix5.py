"""LambdaConcept ECPIX-5: ECP5-85F, 512 MB of DDR3L."""

from functools import partial

from litedram.modules import MT41K256M16
from litex_boards.platforms import lambdaconcept_ecpix5

from gateware.boards.base import Board, DramRail
from gateware.boards.ecp5 import Ecp5Clocks, add_ethernet, ecp5_phy
from gateware.soc import EdenSoC


def _peripherals(soc: EdenSoC) -> None:
    soc.add_serial_bridge(soc.platform.request("serial"), baudrate=3_000_000)
    add_ethernet(soc)


ECPIX5 = Board(
    name="ecpix5",
    title="LambdaConcept ECPIX-5 (LFE5UM5G-85F, 512 MB DDR3L x16)",
    sys_clk_freq=75e6,
    nphases=2,
    platform=lambdaconcept_ecpix5.Platform,
    clocks=partial(Ecp5Clocks, clock="clk100", frequency=100e6, reset_n="rst_n"),
    phy=lambda platform, clocks, sys_clk_freq: ecp5_phy(clocks, platform.request("ddram"), sys_clk_freq),
    module=MT41K256M16,
    chip_width=16,
    rail=DramRail(1350, 1140, "fixed on the board: feed it from a bench supply"),
    sizes={"log_blocks": 64, "buffer_bursts": 1024, "row_counters": 1024, "look_ahead": False},
    peripherals=_peripherals,
    bridges="serial (FT2232, 3 Mbaud), Etherbone at 192.168.1.50",
    loader=("--board", "ecpix5"),
)

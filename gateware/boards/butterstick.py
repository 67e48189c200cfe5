"""ButterStick: ECP5-85F, DDR3L in two ranks."""

from functools import partial

from litedram.modules import MT41K64M16
from litex_boards.platforms import gsd_butterstick

from gateware.boards.base import Board, DramRail
from gateware.boards.ecp5 import Ecp5Clocks, add_ethernet, ecp5_phy

BUTTERSTICK = Board(
    name="butterstick",
    title="ButterStick r1.0 (LFE5UM5G-85F, two ranks of 128 MB DDR3L x16)",
    sys_clk_freq=60e6,
    nphases=2,
    platform=gsd_butterstick.Platform,
    clocks=partial(Ecp5Clocks, clock="clk30", frequency=30e6, reset_n="user_btn"),
    phy=lambda platform, clocks, sys_clk_freq: ecp5_phy(clocks, platform.request("ddram"), sys_clk_freq),
    module=MT41K64M16,
    chip_width=16,
    rail=DramRail(1350, 1140, "fixed on the board: feed it from a bench supply"),
    sizes={"log_blocks": 64, "buffer_bursts": 1024, "row_counters": 1024},
    # the receive clock's pin has no way of its own to the clock network, and none from the fabric to the DCCA that
    # nextpnr 0.11 takes for it
    peripherals=partial(add_ethernet, rx_clock_buffer="X67/Y0/TDCC11"),
    bridges="Etherbone at 192.168.1.50",
    loader=("--dfu", "--vid", "0x1209", "--pid", "0x5af1", "--altsetting", "0"),
)

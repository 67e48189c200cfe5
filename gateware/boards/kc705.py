"""Xilinx KC705: Kintex-7 325T, DDR3 SO-DIMM of 1 GB, PMBus regulators."""

from litedram.modules import MT8JTF12864
from litedram.phy import K7DDRPHY
from liteeth.phy import LiteEthPHY
from litex.build.generic_platform import GenericPlatform, IOStandard, Pins, Subsignal
from litex.soc.cores.clock import S7MMCM
from litex.soc.cores.xadc import S7SystemMonitor
from litex_boards.platforms import xilinx_kc705
from migen import Module

from gateware.boards.base import Board, DramRail
from gateware.boards.xilinx import Series7Clocks, add_ethernet
from gateware.rail import RailSequencer
from gateware.smbus import SMBus
from gateware.soc import EdenSoC

# Xilinx' public pin list; litex-boards leaves the PMBus out. The bank's own supply is the DRAM's: what is read here
# while it is low is trusted as far as the levels go, and the lines are open-drain.
_PMBUS = ("pmbus", 0, Subsignal("sda", Pins("Y14")), Subsignal("scl", Pins("AG17")), IOStandard("LVCMOS15"))


def _clocks(platform: GenericPlatform, sys_clk_freq: float) -> Series7Clocks:
    reset = platform.request("cpu_reset")
    return Series7Clocks(platform, sys_clk_freq, S7MMCM(speedgrade=-2), "clk200", 200e6, reset)


def _phy(platform: GenericPlatform, clocks: Series7Clocks, sys_clk_freq: float) -> Module:
    return K7DDRPHY(platform.request("ddram"), memtype="DDR3", nphases=4, sys_clk_freq=sys_clk_freq)


def _peripherals(soc: EdenSoC) -> None:
    soc.add_serial_bridge(soc.platform.request("serial"), baudrate=921_600)
    eth_clocks, eth = soc.platform.request("eth_clocks"), soc.platform.request("eth")
    soc.ethphy = LiteEthPHY(eth_clocks, eth, clk_freq=soc.sys_clk_freq)
    add_ethernet(soc, phy_clocks=soc.ethphy.crg)
    soc.xadc = S7SystemMonitor()
    soc.platform.add_extension([_PMBUS])
    soc.rail = RailSequencer(soc.sys_clk_freq)
    soc.rail.smbus.connect(soc.platform.request("pmbus"))
    soc.i2c = SMBus(soc.platform.request("i2c"), soc.sys_clk_freq)  # the SO-DIMM's SPD, behind the switch at 0x74


KC705 = Board(
    name="kc705",
    title="Xilinx KC705 (XC7K325T, 1 GB DDR3 SO-DIMM x64)",
    sys_clk_freq=125e6,
    nphases=4,
    platform=xilinx_kc705.Platform,
    clocks=_clocks,
    phy=_phy,
    module=MT8JTF12864,
    chip_width=8,
    rail=DramRail(1500, 1140, "UCD9248 regulators on PMBus, with a restore sequencer in the gateware"),
    sizes={"log_blocks": 256, "buffer_bursts": 2048, "row_counters": 16384},
    peripherals=_peripherals,
    bridges="serial (CP2103, 921.6 kbaud), Etherbone at 192.168.1.50",
    loader=("--board", "kc705"),
)

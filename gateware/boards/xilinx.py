"""What boards with Xilinx FPGAs share: clocks for 1:4 DDR PHYs, and Etherbone."""

from liteeth.core import LiteEthUDPIPCore
from litex.build.generic_platform import GenericPlatform
from litex.gen import LiteXModule
from litex.soc.cores.clock import S7IDELAYCTRL, USIDELAYCTRL, USMMCM
from litex.soc.cores.clock.xilinx_common import XilinxClocking
from migen import ClockDomain, ClockDomainsRenamer, Instance, Module, Signal

from gateware.etherbone import IP_ADDRESS, MAC_ADDRESS, add_etherbone
from gateware.soc import EdenSoC


class Series7Clocks(LiteXModule):
    """System clock, four times that for the DDR PHY, and 200 MHz for the input delays.

    Args:
        platform: asked for the pad ``clock``.
        sys_clk_freq: hertz.
        pll: PLL or MMCM of the device's speed grade.
        clock, frequency: pad of the oscillator, hertz.
        reset: resets while high.
        strobe_clock: also make the shifted clock that a PHY without output delays wants for its strobes.
    """

    def __init__(
        self,
        platform: GenericPlatform,
        sys_clk_freq: float,
        pll: XilinxClocking,
        clock: str,
        frequency: float,
        reset: Signal,
        strobe_clock: bool = False,
    ) -> None:
        self.rst = Signal()
        self.cd_sys = ClockDomain()
        self.cd_sys4x = ClockDomain()
        self.cd_idelay = ClockDomain()

        # # #

        self.pll = pll
        self.comb += pll.reset.eq(reset | self.rst)
        pll.register_clkin(platform.request(clock), frequency)
        pll.create_clkout(self.cd_sys, sys_clk_freq)
        pll.create_clkout(self.cd_sys4x, 4 * sys_clk_freq)
        pll.create_clkout(self.cd_idelay, 200e6)
        if strobe_clock:
            self.cd_sys4x_dqs = ClockDomain()
            pll.create_clkout(self.cd_sys4x_dqs, 4 * sys_clk_freq, phase=90)
        platform.add_false_path_constraints(self.cd_sys.clk, pll.clkin)  # the SoC's reset goes to the PLL
        self.idelayctrl = S7IDELAYCTRL(self.cd_idelay)


class UltraScaleClocks(LiteXModule):
    """As `Series7Clocks`, with both DDR clocks divided from one so that they are aligned, and 500 MHz for delays."""

    def __init__(self, platform: GenericPlatform, sys_clk_freq: float, clock: str, frequency: float) -> None:
        self.rst = Signal()
        self.cd_sys = ClockDomain()
        self.cd_sys4x = ClockDomain()
        self.cd_pll4x = ClockDomain()
        self.cd_idelay = ClockDomain()

        # # #

        self.pll = pll = USMMCM(speedgrade=-2)
        self.comb += pll.reset.eq(self.rst)
        pll.register_clkin(platform.request(clock), frequency)
        pll.create_clkout(self.cd_pll4x, 4 * sys_clk_freq, buf=None, with_reset=False)
        pll.create_clkout(self.cd_idelay, 500e6)
        platform.add_false_path_constraints(self.cd_sys.clk, pll.clkin)  # the SoC's reset goes to the PLL
        self.specials += [
            Instance("BUFGCE_DIV", p_BUFGCE_DIVIDE=4, i_CE=1, i_I=self.cd_pll4x.clk, o_O=self.cd_sys.clk),
            Instance("BUFGCE", i_CE=1, i_I=self.cd_pll4x.clk, o_O=self.cd_sys4x.clk),
        ]
        self.idelayctrl = USIDELAYCTRL(cd_ref=self.cd_idelay, cd_sys=self.cd_sys)


def add_ethernet(soc: EdenSoC, phy_clocks: Module) -> None:
    """Etherbone at `IP_ADDRESS` over ``soc.ethphy``, whose clocks ``phy_clocks`` makes.

    The network stack runs a byte a clock in the PHY's receive clock, as in LiteX's own ``add_etherbone``.
    """
    core = LiteEthUDPIPCore(soc.ethphy, MAC_ADDRESS, IP_ADDRESS, soc.sys_clk_freq, dw=8)
    core.autocsr_exclude = {"mac"}  # registers would be read across clocks
    soc.ethcore = ClockDomainsRenamer({"sys": "eth_rx"})(core)
    add_etherbone(soc, core)
    receive, send = phy_clocks.cd_eth_rx.clk, phy_clocks.cd_eth_tx.clk
    soc.platform.add_period_constraint(receive, 1e9 / soc.ethphy.rx_clk_freq)
    if send is not receive:
        soc.platform.add_period_constraint(send, 1e9 / soc.ethphy.tx_clk_freq)
    soc.platform.add_false_path_constraints(soc.crg.cd_sys.clk, receive, *([] if send is receive else [send]))

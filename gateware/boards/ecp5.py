"""What boards with a Lattice ECP5 share: clocks for a 1:2 DDR3 PHY, and Etherbone at a clock that they can keep."""

from types import SimpleNamespace

from litedram.phy import ECP5DDRPHY
from liteeth.core import LiteEthUDPIPCore
from liteeth.phy.ecp5rgmii import LiteEthPHYRGMII
from litex.build.generic_platform import GenericPlatform
from litex.gen import LiteXModule
from litex.soc.cores.clock import ECP5PLL
from migen import ClockDomain, ClockDomainsRenamer, If, Instance, Record, Signal
from migen.genlib.resetsync import AsyncResetSynchronizer

from gateware.etherbone import IP_ADDRESS, MAC_ADDRESS, add_etherbone
from gateware.soc import EdenSoC

STACK_FREQUENCY = 40_000_000  # hertz, of Ethernet's network stack


class Ecp5Clocks(LiteXModule):
    """System clock, twice that for the DDR PHY (stopped and aligned by the PHY itself), and a slow one to start it by.

    Args:
        platform: asked for the pads ``clock`` and ``reset_n``.
        sys_clk_freq: hertz.
        clock, frequency: pad of the oscillator, hertz.
        reset_n: pad of a button that resets while low.
        init_frequency: clock of the PHY's start-up sequence, hertz; the PLL must make it beside the system clock.
        edge_clock_bridge: the DDR pads lie on two sides of the FPGA, so the edge clock must cross.
    """

    def __init__(
        self,
        platform: GenericPlatform,
        sys_clk_freq: float,
        clock: str,
        frequency: float,
        reset_n: str,
        init_frequency: float = 25e6,
        edge_clock_bridge: bool = False,
    ) -> None:
        self.rst = Signal()
        self.stop = Signal()
        self.reset = Signal()
        self.cd_por = ClockDomain(reset_less=True)
        self.cd_init = ClockDomain()
        self.cd_sys = ClockDomain()
        self.cd_sys2x = ClockDomain()
        self.cd_sys2x_i = ClockDomain()

        # # #

        oscillator = platform.request(clock)
        power_on = Signal(16, reset=2**16 - 1)
        self.comb += self.cd_por.clk.eq(oscillator)
        self.sync.por += If(power_on != 0, power_on.eq(power_on - 1))

        self.pll = pll = ECP5PLL()
        self.comb += pll.reset.eq((power_on != 0) | ~platform.request(reset_n) | self.rst)
        pll.register_clkin(oscillator, frequency)
        pll.create_clkout(self.cd_sys2x_i, 2 * sys_clk_freq)
        pll.create_clkout(self.cd_init, init_frequency)

        edge_clock = self.cd_sys2x_i.clk
        if edge_clock_bridge:
            bridged = Signal()
            self.specials += Instance("ECLKBRIDGECS", i_CLK0=edge_clock, i_SEL=0, o_ECSOUT=bridged)
            edge_clock = bridged
        self.specials += [
            Instance("ECLKSYNCB", i_ECLKI=edge_clock, i_STOP=self.stop, o_ECLKO=self.cd_sys2x.clk),
            Instance(
                "CLKDIVF",
                p_DIV="2.0",
                i_ALIGNWD=0,
                i_CLKI=self.cd_sys2x.clk,
                i_RST=self.reset,
                o_CDIVX=self.cd_sys.clk,
            ),
            AsyncResetSynchronizer(self.cd_sys, ~pll.locked | self.reset),
        ]


def ecp5_phy(clocks: Ecp5Clocks, pads: object, sys_clk_freq: float, **options: object) -> ECP5DDRPHY:
    """The DDR3 PHY on ``pads``, its start-up sequence wired to ``clocks``; ``options`` are the PHY's own."""
    phy = ECP5DDRPHY(pads, sys_clk_freq=sys_clk_freq, **options)
    clocks.comb += [clocks.stop.eq(phy.init.stop), clocks.reset.eq(phy.init.reset)]
    return phy


def add_ethernet(soc: EdenSoC, rx_clock_buffer: str | None = None) -> None:
    """Etherbone at `IP_ADDRESS` over the board's RGMII PHY.

    Its network stack has a clock of its own: with LiteEth's byte a clock at 125 MHz an ECP5 does not keep up, and a
    word a clock of the system clock is in the engine's way; 40 MHz carry 1 Gbit/s with a margin.

    Args:
        soc: the board's.
        rx_clock_buffer: nextpnr's name of the DCCA that drives the receive clock, where nextpnr chooses one to which it
            then finds no way.
    """
    clock_pads = soc.platform.request("eth_clocks")
    soc.platform.add_period_constraint(clock_pads.rx, 1e9 / LiteEthPHYRGMII.rx_clk_freq)
    if rx_clock_buffer:
        clock_pads = _with_rx_clock_buffer(soc, clock_pads, rx_clock_buffer)
    soc.ethphy = LiteEthPHYRGMII(clock_pads, soc.platform.request("eth"), rx_delay=0)
    soc.cd_ethcore = ClockDomain("ethcore")
    soc.crg.pll.create_clkout(soc.cd_ethcore, STACK_FREQUENCY)
    core = LiteEthUDPIPCore(soc.ethphy, MAC_ADDRESS, IP_ADDRESS, STACK_FREQUENCY, dw=32, with_sys_datapath=True)
    core.autocsr_exclude = {"mac"}  # registers would be read across clocks
    soc.ethcore = ClockDomainsRenamer({"sys": "ethcore"})(core)
    add_etherbone(soc, core)


def _with_rx_clock_buffer(soc: EdenSoC, clock_pads: Record, bel: str) -> SimpleNamespace:
    buffered = Signal()
    soc.specials += Instance("DCCA", i_CLKI=clock_pads.rx, i_CE=1, o_CLKO=buffered, attr={("BEL", bel)})
    return SimpleNamespace(tx=clock_pads.tx, rx=buffered)

"""A DDR PHY without pins: the DFI of a real one, and behind it a DRAM that a C function computes.

Latencies and phases are those of the LiteDRAM PHY that serves this memory at this number of phases: S7DDRPHY (DDR3,
four phases), USDDRPHY (DDR4, four phases) and ECP5DDRPHY (two phases, whose DFI word is still a whole BL8 burst, so
that a burst takes two system clocks of the data bus).
"""

from functools import reduce
from operator import or_

from litedram.common import PhySettings, TappedDelayLine, get_default_cl_cwl, get_sys_latency, get_sys_phase
from litedram.phy.dfi import Interface
from litex.gen import LiteXModule
from migen import Cat, ClockSignal, Instance

BURST_LENGTH = 8

# (read latency - CL, write latency - CWL), system clocks, by memory and phases: s7ddrphy, usddrphy, ecp5ddrphy
_PHY_CLOCKS = {("DDR3", 4): (6, -1), ("DDR4", 4): (5, -1), ("DDR3", 2): (10, 0)}


def phy_settings(memtype: str, data_width: int, nphases: int, sys_clk_freq: float) -> PhySettings:
    """Settings of the real PHY at this system clock (Hz)."""
    tck = 1 / (nphases * sys_clk_freq)
    cl, cwl = get_default_cl_cwl(memtype, tck)
    cl_clocks, cwl_clocks = get_sys_latency(nphases, cl), get_sys_latency(nphases, cwl)
    read_clocks, write_clocks = _PHY_CLOCKS[memtype, nphases]
    return PhySettings(
        phytype="SimulatedPHY",
        memtype=memtype,
        databits=data_width,
        dfi_databits=BURST_LENGTH * data_width // nphases,
        nphases=nphases,
        rdphase=get_sys_phase(nphases, cl_clocks, cl),
        wrphase=get_sys_phase(nphases, cwl_clocks, cwl),
        cl=cl,
        cwl=cwl,
        read_latency=cl_clocks + read_clocks,
        write_latency=cwl_clocks + write_clocks,
    )


class SimulatedPHY(LiteXModule):
    """PHY and DRAM for Verilator; needs ``dram.sv`` and the functions that it imports.

    A READ's burst is on ``rddata`` exactly ``settings.read_latency`` clocks after its command, in that clock only, and
    ``rddata_valid`` follows ``rddata_en`` by as much. A WRITE's burst is taken ``settings.write_latency`` clocks after
    its command, which must come with ``wrdata_en``.

    Attributes:
        dfi: `litedram.phy.dfi.Interface`, slave. DDR4 commands have DDR3's form: bank groups are the upper bank bits.
    """

    def __init__(self, settings: PhySettings, address_bits: int, bank_bits: int) -> None:
        self.settings = settings
        self.dfi = dfi = Interface(address_bits, bank_bits, 1, settings.dfi_databits, settings.nphases)

        # # #

        def pins(name: str) -> Cat:
            return Cat(*(getattr(phase, name) for phase in dfi.phases))

        self.specials += Instance(
            "simulated_dram",
            p_NPHASES=settings.nphases,
            p_ADDRESS_BITS=address_bits,
            p_BANK_BITS=bank_bits,
            p_BURST_BITS=BURST_LENGTH * settings.databits,
            p_READ_LATENCY=settings.read_latency,
            p_WRITE_LATENCY=settings.write_latency,
            i_clock=ClockSignal("sys"),
            o_rddata=pins("rddata"),
            **{f"i_{name}": pins(name) for name in ("cs_n", "ras_n", "cas_n", "we_n", "cke", "reset_n")},
            **{f"i_{name}": pins(name) for name in ("bank", "address", "wrdata", "wrdata_mask", "wrdata_en")},
        )
        self.reads = TappedDelayLine(reduce(or_, (p.rddata_en for p in dfi.phases)), settings.read_latency)
        self.comb += [phase.rddata_valid.eq(self.reads.output) for phase in dfi.phases]

"""The system on chip: LiteDRAM's PHY and controller, the test engine beside them, and bridges for the host. No CPU.

The bus is 32-bit Wishbone. What is where:

    0x40000000 ..   the engine's memory windows (`gateware.registers.memory_bases`)
    0x80000000 ..   the DRAM through LiteDRAM's controller, up to 1 GiB of it; no access while the engine has the DFI:
                    an access then ends in a bus error
    0xF0000000 ..   registers; the engine's come first, in the order of `gateware.registers.REGISTERS`, then LiteX's
"""

from litedram.common import PhySettings
from litedram.core.controller import ControllerSettings
from litedram.modules import SDRAMModule
from litex.build.generic_platform import GenericPlatform
from litex.soc.cores.uart import RS232PHY
from litex.soc.integration.soc import SoCRegion
from litex.soc.integration.soc_core import SoCCore
from migen import Module, Record, Signal

from gateware.bridge import SerialBridge
from gateware.engine.engine import TestEngine
from gateware.engine.parameters import EngineParameters
from gateware.handover import HandoverRefresher
from gateware.registers import BUS_ERRORS, CSR_BASE, MEMORY_STRIDE, REGISTERS, memory_bases, register_offsets
from profiles.errors import BoardError
from profiles.geometry import Geometry

DRAM_BASE = 0x80000000
DRAM_WINDOW = 0x40000000
# Clocks after which an access that nobody answers is a bus error; the longest wait is for a refresh with ZQCS.
BUS_TIMEOUT = 4096


class EdenSoC(SoCCore):
    """The same system for every board; a board adds clocks (``crg``), bridges and what else it has.

    Args:
        platform: pads and build flow.
        sys_clk_freq: system clock, hertz; a DRAM clock is ``phy.settings.nphases`` times that.
        phy: a LiteDRAM PHY.
        module: the DRAM module, of ``litedram.modules``.
        parameters: what the engine is built for (see `engine_parameters`).

    Attributes:
        ddrphy, sdram, engine: PHY, LiteDRAM core and test engine, by LiteX's names for them.
        parameters: what the engine was built for.
    """

    mem_map = {**SoCCore.mem_map, "main_ram": DRAM_BASE, "csr": CSR_BASE}  # noqa: RUF012 (LiteX's own way)
    csr_map = {"engine": 0, "ctrl": 1}  # noqa: RUF012

    def __init__(
        self,
        platform: GenericPlatform,
        sys_clk_freq: float,
        phy: Module,
        module: SDRAMModule,
        parameters: EngineParameters,
    ) -> None:
        SoCCore.__init__(
            self,
            platform,
            sys_clk_freq,
            bus_timeout=BUS_TIMEOUT,
            cpu_type=None,
            integrated_sram_size=0,
            csr_ordering="little",
            with_uart=False,
            with_timer=False,
        )
        self.parameters = parameters
        self.engine = TestEngine(parameters)
        for name, origin in memory_bases().items():
            region = SoCRegion(origin=origin, size=MEMORY_STRIDE, cached=False)
            self.bus.add_slave(name, self.engine.windows[name], region)
        self.ddrphy = phy
        self.add_sdram(
            "sdram",
            phy=phy,
            module=module,
            size=DRAM_WINDOW,
            l2_cache_size=0,  # a cache would hide what the engine writes
            controller_settings=ControllerSettings(refresh_cls=HandoverRefresher),
        )
        refresher, injector = self.sdram.controller.refresher, self.sdram.dfii
        self.comb += [
            refresher.hold.eq(self.engine.take),
            self.engine.taken.eq(refresher.held),
            injector.ext_dfi_sel.eq(refresher.held),
            self.engine.dfi.connect(injector.ext_dfi),
        ]

    def add_serial_bridge(self, pads: Record, baudrate: int) -> None:
        """Let the host in by a UART (`gateware.bridge`).

        Args:
            pads: ``rx`` and ``tx``.
            baudrate: bits a second, 8N1.
        """
        self.serial_phy = RS232PHY(pads, self.sys_clk_freq, baudrate)
        self.serial_bridge = SerialBridge(self.serial_phy, self.sys_clk_freq, BUS_TIMEOUT // 2)
        self.bus.add_master("serial_bridge", self.serial_bridge.wishbone)

    def finalize(self) -> None:
        """Finish as LiteX does, and check that the engine's registers are where the host looks for them.

        Raises:
            BoardError: they are not.
        """
        done = self.finalized
        SoCCore.finalize(self)
        if not done:
            _check_registers(self)


def _check_registers(soc: EdenSoC) -> None:
    region = soc.csr.regions["engine"]
    found, address = {}, region.origin
    for register in region.obj:
        found[register.name] = address
        address += 4 * -(-register.size // region.busword)
    expected = {register.name: CSR_BASE + 4 * register_offsets()[register.name] for register in REGISTERS}
    if found != expected:
        raise BoardError(f"the engine's registers are at {found}; gateware.registers has them at {expected}")
    errors = soc.csr.regions["ctrl"].origin + 8
    if [csr.name for csr in soc.csr.regions["ctrl"].obj] != ["reset", "scratch", "bus_errors"] or errors != BUS_ERRORS:
        raise BoardError(f"LiteX counts bus errors elsewhere than at {BUS_ERRORS:#x}; see gateware.registers")


def engine_parameters(
    settings: PhySettings, module: SDRAMModule, sys_clk_freq: float, chip_width: int, **sizes: int
) -> EngineParameters:
    """What the engine must know of PHY and module.

    Args:
        settings: of the PHY. Phases that are registers count as they are after reset.
        module: made for the same clock.
        sys_clk_freq: hertz.
        chip_width: data lines of one DRAM chip.
        sizes: `EngineParameters` memory sizes, and ``look_ahead``.
    """
    geometry = Geometry(
        banks=settings.nranks << module.geom_settings.bankbits,
        rows=1 << module.geom_settings.rowbits,
        columns=1 << module.geom_settings.colbits,
        data_width=settings.databits,
        chip_width=chip_width,
    )
    return EngineParameters(
        geometry=geometry,
        tck_ps=round(1e12 / sys_clk_freq / settings.nphases),
        nphases=settings.nphases,
        read_phase=_constant(settings.rdphase),
        write_phase=_constant(settings.wrphase),
        read_latency=settings.read_latency,
        write_latency=settings.write_latency,
        cas_latency=settings.cl,
        cas_write_latency=settings.cwl,
        **sizes,
    )


def _constant(phase: int | Signal) -> int:
    return phase.reset.value if isinstance(phase, Signal) else phase

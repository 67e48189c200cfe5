"""What a board is: everything that differs from one board to the next, and nothing else."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

from litedram.modules import SDRAMModule
from litex.build.generic_platform import GenericPlatform
from migen import Module

from gateware.soc import EdenSoC, engine_parameters
from profiles.errors import BoardError


@dataclass(frozen=True)
class DramRail:
    """The supply of a board's DRAM.

    Attributes:
        nominal_mv: what the board was designed for, millivolts.
        floor_mv: the lowest that may ever be set, millivolts: the rail feeds the FPGA's I/O bank too, so it is the
            least VCCO of its data sheet (1.14 V: 7 series, DS181 and DS182, and ECP5, FPGA-DS-02012; 0.95 V: Zynq
            UltraScale+, DS925). The sheets were not at hand: look before relying on it.
        control: how it can be lowered, in words.
    """

    nominal_mv: int
    floor_mv: int
    control: str


@dataclass(frozen=True)
class Board:
    """One FPGA board, or one variant of it.

    Attributes:
        name: what ``make gateware BOARD=`` takes.
        title: maker's name for it, FPGA and DRAM.
        sys_clk_freq: system clock that timing is met at, hertz.
        nphases: DRAM clocks in a system clock.
        platform: makes the LiteX platform.
        clocks: ``clocks(platform, sys_clk_freq)`` makes clocks and resets, and takes the pads it needs.
        phy: ``phy(platform, clocks, sys_clk_freq)`` makes the DRAM PHY.
        module: the DRAM module, of ``litedram.modules``.
        chip_width: data lines of one DRAM chip.
        rail: the DRAM's supply.
        sizes: memory sizes of the engine (`gateware.engine.parameters`) that fit the FPGA's block RAM, and whether its
            windows look ahead, as they do by default; off where the routing is full and the link does not need it.
        peripherals: adds bridges, sensors and what else the board has to a SoC.
        bridges: what the host can reach the board by, in words.
        loader: arguments of openFPGALoader that choose this board; none where it does not know it.
    """

    name: str
    title: str
    sys_clk_freq: float
    nphases: int
    platform: Callable[[], GenericPlatform]
    clocks: Callable[[GenericPlatform, float], Module]
    phy: Callable[[GenericPlatform, Module, float], Module]
    module: type[SDRAMModule]
    chip_width: int
    rail: DramRail
    sizes: Mapping[str, int]
    peripherals: Callable[[EdenSoC], None]
    bridges: str
    loader: tuple[str, ...]

    def dram(self, sys_clk_freq: float) -> Any:
        """The DRAM module with its timings in system clocks of ``sys_clk_freq``."""
        return self.module(sys_clk_freq, f"1:{self.nphases}")

    def tck_ps(self, sys_clk_freq: float) -> int:
        """DRAM clock period, picoseconds."""
        return round(1e12 / sys_clk_freq / self.nphases)

    def trcd_ps(self, sys_clk_freq: float) -> list[int]:
        """Every tRCD that the board can make, picoseconds, from one tCK up to the first that is not below nominal."""
        nominal_ps = 1000 * self.dram(sys_clk_freq).speedgrade_timings["default"].tRCD
        tck_ps = 1e12 / sys_clk_freq / self.nphases
        return [round(clocks * tck_ps) for clocks in range(1, ceil(nominal_ps / tck_ps - 1e-6) + 1)]

    def soc(self, sys_clk_freq: float) -> EdenSoC:
        """The whole system for this board.

        Raises:
            BoardError: the FPGA's PLL cannot make that clock.
        """
        self._check_clock(sys_clk_freq)
        platform = self.platform()
        clocks = self.clocks(platform, sys_clk_freq)
        phy = self.phy(platform, clocks, sys_clk_freq)
        dram = self.dram(sys_clk_freq)
        parameters = engine_parameters(phy.settings, dram, sys_clk_freq, self.chip_width, **self.sizes)
        soc = EdenSoC(platform, sys_clk_freq, phy, dram, parameters)
        soc.crg = clocks
        self.peripherals(soc)
        return soc

    def _check_clock(self, sys_clk_freq: float) -> None:
        """On clocks of its own: LiteX settles a PLL once."""
        try:
            clocks = self.clocks(self.platform(), sys_clk_freq)
            if hasattr(clocks, "pll"):  # a simulated board has none: any clock will do
                clocks.pll.compute_config()
        except (ValueError, AssertionError) as error:
            raise BoardError(
                f"the PLL of {self.name} cannot make a system clock of {sys_clk_freq / 1e6:g} MHz; "
                f"choose another SYS_CLK_MHZ than that (default {self.sys_clk_freq / 1e6:g})"
            ) from error

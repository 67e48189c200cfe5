"""JEDEC timing parameters, as data, and their conversion to DRAM clocks."""

from dataclasses import dataclass, fields, replace

from profiles.errors import BoardError, PlanError
from profiles.geometry import Geometry


@dataclass(frozen=True)
class JedecTimings:
    """Minimum times of a speed grade, picoseconds unless the name says clocks.

    Where DDR4 has two values, for other bank groups and for the same one, they are those for the same: a program for
    DDR3's banks then suits DDR4's.
    """

    trcd_ps: int
    trp_ps: int
    tras_ps: int
    trrd_ps: int
    tfaw_ps: int
    trtp_ps: int
    twr_ps: int
    trfc_ps: int
    trefi_ps: int
    tccd_ps: int = 0  # 0: only the burst itself keeps data commands apart
    twtr_ps: int = 7_500  # the same in every speed bin; of DDR4's two the longer, tWTR_L
    minimum_clocks: int = 4  # floor of tRRD, tRTP, tWTR and tCCD


# JESD79-3F, speed bin DDR3-1600K, 1 KiB pages, 1 Gb chips (tRFC), normal temperature range (tREFI)
DDR3_1600K = JedecTimings(
    trcd_ps=13_750,
    trp_ps=13_750,
    tras_ps=35_000,
    trrd_ps=6_000,
    tfaw_ps=30_000,
    trtp_ps=7_500,
    twr_ps=15_000,
    trfc_ps=110_000,
    trefi_ps=7_800_000,
)

# JESD79-4, speed bin DDR4-1600K, 1 KiB pages, 8 Gb chips (tRFC), normal temperature range (tREFI)
DDR4_1600K = JedecTimings(
    trcd_ps=13_750,
    trp_ps=13_750,
    tras_ps=35_000,
    trrd_ps=6_000,
    tfaw_ps=25_000,
    trtp_ps=7_500,
    twr_ps=15_000,
    trfc_ps=350_000,
    trefi_ps=7_800_000,
    tccd_ps=6_250,
)


# tRFC by density of a chip, Mbit: JESD79-3F table 61, JESD79-4 table 51 (tRFC1)
_TRFC_PS = {
    "DDR3": {512: 90_000, 1024: 110_000, 2048: 160_000, 4096: 260_000, 8192: 350_000},
    "DDR4": {2048: 160_000, 4096: 260_000, 8192: 350_000, 16384: 550_000},
}
# with pages of 2 KiB, those of x16 chips: (tRRD, tFAW)
_WIDE_PAGES_PS = {"DDR3": (7_500, 40_000), "DDR4": (7_500, 35_000)}


def of_soldered_chips(memtype: str, geometry: Geometry) -> JedecTimings:
    """Speed bin 1600K of "DDR3" or "DDR4" for chips without an SPD, with what their density and page size decide.

    Raises:
        BoardError: the standard has no such chips.
    """
    jedec = {"DDR3": DDR3_1600K, "DDR4": DDR4_1600K}[memtype]
    g = geometry
    density = g.banks * g.rows * g.columns * g.chip_width >> 20
    if density not in _TRFC_PS[memtype]:
        raise BoardError(f"{memtype} has no chips of {density} Mbit, which the geometry makes; build the gateware anew")
    jedec = replace(jedec, trfc_ps=_TRFC_PS[memtype][density])
    if g.columns * g.chip_width > 8 * 1024:
        trrd_ps, tfaw_ps = _WIDE_PAGES_PS[memtype]
        jedec = replace(jedec, trrd_ps=trrd_ps, tfaw_ps=tfaw_ps)
    return jedec


@dataclass(frozen=True)
class Timings:
    """Timing parameters of one board in DRAM clocks (tCK), rounded up; ``write_latency`` is the CWL of the build."""

    tck_ps: int
    trcd: int
    trp: int
    tras: int
    trrd: int
    tfaw: int
    trtp: int
    twr: int
    twtr: int
    trfc: int
    trefi: int
    tccd: int
    write_latency: int

    @classmethod
    def of(cls, jedec: JedecTimings, tck_ps: int, write_latency: int) -> "Timings":
        """The speed grade at a clock period of ``tck_ps``, and the build's CWL in clocks."""
        names = [f.name for f in fields(cls) if f.name not in ("tck_ps", "write_latency", "trefi")]
        clocks = {name: -(-getattr(jedec, f"{name}_ps") // tck_ps) for name in names}
        for name in ("trrd", "trtp", "twtr", "tccd"):
            clocks[name] = max(clocks[name], jedec.minimum_clocks)
        return cls(tck_ps=tck_ps, trefi=jedec.trefi_ps // tck_ps, write_latency=write_latency, **clocks)

    @property
    def nominal_trcd_ps(self) -> int:
        """Specified tRCD, rounded up to whole clocks."""
        return self.trcd * self.tck_ps

    def trcd_clocks(self, trcd_ps: int) -> int:
        """``trcd_ps`` in clocks.

        Raises:
            PlanError: it is no positive multiple of tCK, so this board cannot make it.
        """
        clocks, rest = divmod(trcd_ps, self.tck_ps)
        if rest or clocks < 1:
            near = sorted({max(1, clocks) * self.tck_ps, (clocks + 1) * self.tck_ps})
            raise PlanError(
                f"tRCD {trcd_ps / 1000:g} ns is no multiple of this board's tCK of {self.tck_ps / 1000:g} ns; "
                f"use {' or '.join(f'{ps / 1000:g}' for ps in near)} ns"
            )
        return clocks

"""JEDEC timing parameters, as data, and their conversion to DRAM clocks."""

from dataclasses import dataclass, fields

from profiles.errors import PlanError


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
    minimum_clocks: int = 4  # floor of tRRD, tRTP and tCCD


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
    trfc: int
    trefi: int
    tccd: int
    write_latency: int

    @classmethod
    def of(cls, jedec: JedecTimings, tck_ps: int, write_latency: int) -> "Timings":
        """The speed grade at a clock period of ``tck_ps``, and the build's CWL in clocks."""
        names = [f.name for f in fields(cls) if f.name not in ("tck_ps", "write_latency", "trefi")]
        clocks = {name: -(-getattr(jedec, f"{name}_ps") // tck_ps) for name in names}
        for name in ("trrd", "trtp", "tccd"):
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

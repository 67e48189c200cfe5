"""What a build of the test engine is made for: module, clocks, PHY and the sizes of its memories."""

from dataclasses import dataclass

from profiles.errors import ProgramError
from profiles.geometry import Geometry


@dataclass(frozen=True)
class EngineParameters:
    """Constants of one build. Sizes are powers of two.

    Attributes:
        geometry: the DRAM module; a burst fills the DFI of one system clock.
        tck_ps: DRAM clock period, picoseconds.
        nphases: DRAM clocks in a system clock.
        read_phase, write_phase: the PHY's ``rdphase`` and ``wrphase``.
        read_latency: system clocks from READ on the DFI to ``rddata_valid``.
        write_latency: system clocks from WRITE on the DFI to its data there.
        cas_latency, cas_write_latency: CL and CWL, DRAM clocks.
        ranks: ranks that the module's banks are divided over.
        program_depth: instructions.
        log_blocks: blocks of the error log's ring.
        buffer_bursts: bursts of the write buffer, and of the capture buffer.
        row_counters: rows that the row counters cover.
        backlog: failing bursts that may wait for the recorder; at least twice `gateware.isa.YIELD_READS`.
        look_ahead: whether memory windows have the word after the last one ready, which saves the bus a clock a word.
    """

    geometry: Geometry
    tck_ps: int
    nphases: int
    read_phase: int
    write_phase: int
    read_latency: int
    write_latency: int
    cas_latency: int
    cas_write_latency: int
    ranks: int = 1
    program_depth: int = 4096
    log_blocks: int = 256
    buffer_bursts: int = 4096
    row_counters: int = 4096
    backlog: int = 1024
    look_ahead: bool = True

    def __post_init__(self) -> None:
        for name in ("program_depth", "log_blocks", "buffer_bursts", "row_counters", "backlog"):
            value = getattr(self, name)
            if value < 1 or value & (value - 1):
                raise ProgramError(f"{name} is {value}; it must be a power of two")

    def constants(self) -> dict[str, int]:
        """Values of the registers that are constants of the build, by name."""
        names = ("tck_ps", "nphases", "read_phase", "write_phase", "cas_latency", "cas_write_latency")
        sizes = ("program_depth", "log_blocks", "buffer_bursts")
        shape = ("banks", "rows", "columns", "data_width", "burst_length")
        return {
            **{name: getattr(self, name) for name in (*names, *sizes)},
            "row_counters": min(self.row_counters, self.geometry.rows),
            **{name: getattr(self.geometry, name) for name in shape},
        }

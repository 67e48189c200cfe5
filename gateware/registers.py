"""The engine's registers and memories as the host sees them: one table for gateware, mock, host and documentation.

All registers are 32 bits; those of two words hold the low word first. None changes by being read. Register ``name``
lives at ``CSR_BASE + 4 * offset`` on the mock; on hardware the build's own ``csr.json`` says where.
"""

from dataclasses import dataclass
from enum import IntEnum
from functools import cache

IDENTITY = 0x4544454E  # "EDEN"
INTERFACE_VERSION = 2
CSR_BASE = 0xF0000000
BUS_ERRORS = CSR_BASE + 0x808  # LiteX's ctrl_bus_errors: accesses since reset that nobody answered, up to 2^32-1
MEMORY_BASE = 0x40000000
MEMORY_STRIDE = 0x01000000


class State(IntEnum):
    """Values of register ``state``."""

    IDLE = 0
    RUNNING = 1
    HALTED = 2  # at a YIELD: drain the log, then resume
    DONE = 3
    CHUNK = 4  # END with `more`: load the next chunk, then resume
    FAULT = 5  # see register `fault`


class Fault(IntEnum):
    """Values of register ``fault``."""

    NONE = 0
    BAD_CHECK = 1  # program_check or buffer_check is not the CRC-32 of what the memory holds
    BAD_INSTRUCTION = 2  # undefined, or a command off its phase (see gateware.isa)
    LOG_OVERFLOW = 3
    CAPTURE_OVERFLOW = 4
    CLOSED_BANK = 5  # RD or WR to a bank with no open row
    OPEN_BANK = 6  # ACT to an open bank, or YIELD or REF with a bank open
    ADDRESS = 7  # bank, row or column outside the module
    LOOP = 8
    RESERVE = 9  # LOG_RESERVE is more than the whole log


START, RESUME, STOP = 1, 2, 4


@dataclass(frozen=True)
class Register:
    """A register: words, whether the host may write it, value after reset, and what it holds (unit, latching)."""

    name: str
    words: int
    writable: bool
    reset: int
    text: str


REGISTERS = (
    Register("identity", 1, False, IDENTITY, "Constant 'EDEN': this is the test engine."),
    Register(
        "interface_version", 1, False, INTERFACE_VERSION, "Version of this register map and of the instruction set."
    ),
    Register("tck_ps", 1, False, 0, "DRAM clock period, picoseconds. Constant of the build."),
    Register("nphases", 1, False, 0, "DRAM clocks in a system clock. Constant of the build."),
    Register("read_phase", 1, False, 0, "Phase that RD must be issued on. Constant of the build."),
    Register("write_phase", 1, False, 0, "Phase that WR must be issued on. Constant of the build."),
    Register("cas_latency", 1, False, 0, "DRAM clocks from RD to its data (CL). Constant of the build."),
    Register("cas_write_latency", 1, False, 0, "DRAM clocks from WR to its data (CWL). Constant of the build."),
    Register("banks", 1, False, 0, "Banks over all ranks. Constant of the build."),
    Register("rows", 1, False, 0, "Rows a bank. Constant of the build."),
    Register("columns", 1, False, 0, "Column addresses a row. Constant of the build."),
    Register("data_width", 1, False, 0, "Data lines. Constant of the build."),
    Register("burst_length", 1, False, 0, "Beats a burst. Constant of the build."),
    Register("program_depth", 1, False, 0, "Instructions that the program memory holds."),
    Register("log_blocks", 1, False, 0, "Blocks of the error log's ring."),
    Register("buffer_bursts", 1, False, 0, "Bursts that the write buffer holds; the capture buffer holds as many."),
    Register("row_counters", 1, False, 0, "Rows that the row counters cover, from ROW_BASE."),
    Register("control", 1, True, 0, "Write 1 to start, 2 to resume, 4 to halt at the next YIELD. Reads 0."),
    Register("starts", 1, False, 0, "Programs started since reset, modulo 2^32: tells a lost start from a run."),
    Register("state", 1, False, 0, "See State. Latched until the next start or resume."),
    Register("fault", 1, False, 0, "See Fault. Latched until the next start."),
    Register("fault_pc", 1, False, 0, "Instruction that faulted. Latched until the next start."),
    Register("program_length", 1, True, 0, "Instructions of the program that start runs."),
    Register("program_check", 1, True, 0, "CRC-32 of those instructions; start faults if it differs."),
    Register("buffer_length", 1, True, 0, "Bursts of the write buffer that start checks; 0 checks none."),
    Register("buffer_check", 1, True, 0, "CRC-32 of those bursts; start faults if it differs."),
    Register("clocks", 2, False, 0, "System clocks of program time since start; stands still while halted."),
    Register("reads_compared", 2, False, 0, "READs compared since start."),
    Register("refreshes", 2, False, 0, "REF commands issued by YIELD since start."),
    Register("log_produced", 1, False, 0, "Blocks written to the log since start, modulo 2^32."),
    Register(
        "log_consumed", 1, True, 0, "Blocks that the host has drained since start, modulo 2^32. Cleared by start."
    ),
    Register("captured", 1, False, 0, "Bursts in the capture buffer since start. Cleared by start."),
    Register("capture_check", 1, False, 0, "CRC-32 of those bursts."),
    Register("build", 1, False, 0, "CRC-32 of the board.json that this build is described by; 0: none."),
)


@dataclass(frozen=True)
class Memory:
    """A memory window: its unit is the 32-bit word."""

    name: str
    writable: bool
    text: str


MEMORIES = (
    Memory("program", True, "Instructions, four words each."),
    Memory("write_buffer", True, "Bursts for pattern BUFFER, burst_bits / 32 words each."),
    Memory("capture", False, "Captured bursts, burst_bits / 32 words each."),
    Memory("log", False, "Ring of error log blocks (gateware.errorlog)."),
    Memory("bank_errors", False, "Failed bits per bank since start: 0→1 low, high, 1→0 low, high."),
    Memory("row_errors", False, "Failed bits per row from ROW_BASE, 0→1 then 1→0. Saturate at 2^32-1."),
    Memory("bitline_errors", False, "Failed bits per (column, dq), 0→1 then 1→0. Saturate at 2^32-1."),
    Memory("dq_errors", False, "Failed bits per DQ, 0→1 then 1→0. Saturate at 2^32-1."),
)


def may_be_written_twice(address: int, words: int) -> bool:
    """True if writing ``words`` words from byte ``address`` once more, at once, changes nothing.

    So it is for memories, and for the engine's registers but ``control``; of LiteX's own registers nothing is known.
    """
    if address + 4 * words <= CSR_BASE:
        return True
    return _idempotent().issuperset(range(address, address + 4 * words, 4))


@cache
def _idempotent() -> frozenset[int]:
    """Addresses of the registers that hold what was written to them."""
    offsets = register_offsets()
    return frozenset(CSR_BASE + 4 * offsets[r.name] for r in REGISTERS if r.writable and r.name != "control")


def register_offsets() -> dict[str, int]:
    """Word offset of every register from the CSR base."""
    offsets, offset = {}, 0
    for register in REGISTERS:
        offsets[register.name] = offset
        offset += register.words
    return offsets


def memory_bases() -> dict[str, int]:
    """Byte address of every memory window."""
    return {memory.name: MEMORY_BASE + k * MEMORY_STRIDE for k, memory in enumerate(MEMORIES)}


def documentation() -> str:
    """The register map as a Markdown table, generated from the tables above."""
    offsets = register_offsets()
    lines = ["| register | offset | access | reset | meaning |", "|---|---|---|---|---|"]
    lines += [
        f"| {r.name} | {4 * offsets[r.name]:#06x} | {'rw' if r.writable else 'ro'} | {r.reset:#x} | {r.text} |"
        for r in REGISTERS
    ]
    bases = memory_bases()
    lines += ["", "| memory | address | access | meaning |", "|---|---|---|---|"]
    lines += [f"| {m.name} | {bases[m.name]:#x} | {'rw' if m.writable else 'ro'} | {m.text} |" for m in MEMORIES]
    return "\n".join(lines)

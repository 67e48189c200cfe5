"""A PHY and the DRAM behind it, at the level of LiteX's registers: what bring-up meets on a real board.

Each byte lane has a skew of its own. Its data eye is so many taps wide and comes once per unit interval (half a DRAM
clock); the bitslip says which one is taken for the first, so that one skew shows as windows at several bitslips.
Outside its window a lane returns noise, and data of the wrong unit interval come shifted by it. For writes, DQS must
rise with the DRAM's clock to within a quarter of it, in the right clock, and DQ lie around DQS.

The DRAM keeps mode registers and what was written, and notes what breaks JEDEC's rules of power-up.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from gateware.engine.parameters import EngineParameters
from host.bringup.injector import Control, Dfi
from host.bus import Words
from profiles.errors import LinkError
from profiles.geometry import Geometry

Bits = npt.NDArray[np.uint8]
BASE = 0xF0001000
PULSES = {
    "rdly_dq_rst": ("read_delay", 0),
    "rdly_dq_inc": ("read_delay", 1),
    "rdly_dq_bitslip_rst": ("read_bitslip", 0),
    "rdly_dq_bitslip": ("read_bitslip", 1),
    "wdly_dq_rst": ("write_dq", 0),
    "wdly_dq_inc": ("write_dq", 1),
    "wdly_dqs_inc": ("write_dqs", 1),
    "wdly_dq_bitslip_rst": ("write_bitslip", 0),
    "wdly_dq_bitslip": ("write_bitslip", 1),
}


@dataclass(frozen=True)
class Family:
    """A PHY family, as its registers and delays go."""

    phytype: str
    memtype: str
    nphases: int
    delays: int
    bitslips: int
    tck_ps: int
    registers: tuple[str, ...]
    tck_taps: int = 0  # of its write delays; 0: it has none
    ui_taps: int = 1  # of its read delays, half a clock

    @property
    def levels_writes(self) -> bool:
        return bool(self.tck_taps)

    @property
    def pauses(self) -> bool:
        return self.phytype == "ECP5DDRPHY"

    @property
    def ultrascale(self) -> bool:
        return self.phytype == "USPDDRPHY"


_READS = ("dly_sel", "rdly_dq_rst", "rdly_dq_inc", "rdly_dq_bitslip_rst", "rdly_dq_bitslip")
_SLIPS = ("wdly_dq_bitslip_rst", "wdly_dq_bitslip")
_XILINX = ("rst", "half_sys8x_taps", "wlevel_en", "wlevel_strobe", *_READS, *_SLIPS)
_WRITES = ("cdly_rst", "cdly_inc", "wdly_dq_rst", "wdly_dq_inc", "wdly_dqs_rst", "wdly_dqs_inc")

# taps: 78 ps on the 7 series at 200 MHz; some 4 ps on UltraScale+; on ECP5 a READCLKSEL step is a quarter of a clock
ARTIX = Family("A7DDRPHY", "DDR3", 4, 32, 8, 2500, _XILINX, ui_taps=16)
KINTEX = Family("K7DDRPHY", "DDR3", 4, 32, 8, 2000, (*_XILINX, *_WRITES), tck_taps=24, ui_taps=13)
ULTRASCALE = Family(
    *("USPDDRPHY", "DDR4", 4, 512, 8, 2000),
    (*_XILINX, *_WRITES, "en_vtc", "wdly_dqs_inc_count"),
    tck_taps=400,
    ui_taps=200,
)
ECP5 = Family("ECP5DDRPHY", "DDR3", 2, 8, 4, 6667, (*_READS, "burstdet_clr", "burstdet_seen"), ui_taps=4)
FAMILIES = {family.phytype: family for family in (ARTIX, KINTEX, ULTRASCALE, ECP5)}


@dataclass(frozen=True)
class Skew:
    """Where a byte lane's windows lie.

    Attributes:
        read_first: read delay at which the eye of unit interval `read_slip` begins; may be negative.
        read_taps: width of the eye, less than a unit interval; 0: there is none.
        read_slip: bitslip for it.
        clock_rise: write delay at which DQS meets the DRAM's rising clock, clock delay being 0; modulo a clock.
        write_slip: bitslip of the clock in which the DRAM takes data.
        deaf: it answers no strobe of write levelling.
        dq_first, dq_last: taps that DQ may be moved against where write levelling left it, relative to DQS.
    """

    read_first: int = 3
    read_taps: int = 8
    read_slip: int = 2
    clock_rise: int = 8
    write_slip: int = 2
    dq_first: int = -4
    dq_last: int = 5
    deaf: bool = False


def build_of(family: Family, lanes: int) -> EngineParameters:
    """A build for this PHY with a DRAM of so many byte lanes."""
    cl, cwl = (7, 6) if family.nphases == 4 else (6, 5)
    cl_clocks, cwl_clocks = -(-cl // family.nphases), -(-cwl // family.nphases)
    return EngineParameters(
        geometry=Geometry(banks=8, rows=16384, columns=1024, data_width=8 * lanes),
        tck_ps=family.tck_ps,
        nphases=family.nphases,
        read_phase=cl_clocks * family.nphases - cl,
        write_phase=cwl_clocks * family.nphases - cwl,
        read_latency=cl_clocks + 6,
        write_latency=cwl_clocks - 1,
        cas_latency=cl,
        cas_write_latency=cwl,
        row_counters=1024,
    )


def dram_init(memtype: str) -> list[dict[str, object]]:
    """``dram_init`` as the gateware's board.json has it, values by LiteDRAM for a KC705 and a ZCU104."""
    modes = {"DDR3": ((2, 520), (3, 0), (1, 6), (0, 2352)), "DDR4": ((3, 0), (6, 0), (5, 1024), (4, 0))}[memtype]
    modes += ((2, 512), (1, 769), (0, 256)) if memtype == "DDR4" else ()

    def step(register: str, bits: str, address: int, bank: int, delay: int) -> dict[str, object]:
        return {
            **{"comment": "", "register": register, "bits": bits.split()},
            **{"address": address, "bank": bank, "delay_clocks": delay},
        }

    return [
        step("control", "odt reset_n", 0, 0, 50000),
        step("control", "cke odt reset_n", 0, 0, 10000),
        *(step("command", "ras cas we cs", value, number, 200 * (number == 0)) for number, value in modes),
        step("command", "we cs", 1024, 0, 200),
    ]


@dataclass
class Event:
    """Something that happened to the DRAM, and when, in seconds of the stand-in's own clock."""

    what: str
    at_s: float
    value: int = 0


@dataclass
class StandInDram:
    """Power-up state, mode registers and content; ``events`` and ``faults`` are what tests look at."""

    memtype: str
    control: Control = Control.SEL
    modes: dict[int, int] = field(default_factory=dict)
    open_rows: dict[int, int] = field(default_factory=dict)
    content: dict[tuple[int, int], Bits] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def levels_writes(self) -> bool:
        return bool(self.modes.get(1, 0) >> 7 & 1)

    def set_control(self, control: Control, now: float) -> None:
        if not control & (Control.RESET_N | Control.SEL):
            self.modes, self.content, self.open_rows = {}, {}, {}
        for bit in (Control.RESET_N, Control.CKE, Control.ODT, Control.SEL):
            if (control ^ self.control) & bit:
                self.events.append(Event(f"{bit.name}", now, int(bool(control & bit))))
        self.control = control

    def command(self, command: Dfi, address: int, bank: int, now: float) -> int | None:
        """Note a command; returns the row of a READ or WRITE that reaches an open one."""
        kind = command & (Dfi.RAS | Dfi.CAS | Dfi.WE)
        if not command & Dfi.CS:
            return None
        if not self.control & Control.CKE or not self.control & Control.RESET_N:
            self.faults.append(f"command {command!r} while CKE or RESET# is low")
        if kind == Dfi.RAS | Dfi.CAS | Dfi.WE:
            if self.open_rows:
                self.faults.append("MRS with a row open")
            self.modes[bank] = address
            self.events.append(Event(f"MRS{bank}", now, address))
        elif kind == Dfi.WE:
            self.events.append(Event("ZQCL" if address >> 10 & 1 else "ZQCS", now))
        elif kind == Dfi.RAS:
            if bank in self.open_rows:
                self.faults.append("ACT to an open bank")
            self.open_rows[bank] = address
            self.events.append(Event("ACT", now))
        elif kind & ~Dfi.WE == Dfi.CAS:
            row = self.open_rows.get(bank)
            if row is None:
                self.faults.append("RD or WR to a closed bank")
            if address >> 10 & 1:
                self.open_rows.pop(bank, None)
            return row
        else:
            self.faults.append(f"unknown command {command!r}")
        return None


class PhyStandIn:
    """A board's registers of PHY and injector; a `host.bus.Bus`.

    Args:
        family: of the PHY.
        skews: of each byte lane.
        seed: of the noise.
        access_s: what an access takes by the stand-in's clock.

    Attributes:
        dram: the DRAM.
        positions: of each knob, by lane, as the hardware has them.
        clock_delay: likewise.
        accesses: of the bus so far.
        now: the stand-in's clock, seconds.
    """

    def __init__(self, family: Family, skews: list[Skew], seed: int = 1, access_s: float = 0.0) -> None:
        self.family, self.skews, self.access_s = family, skews, access_s
        self.build = build_of(family, len(skews))
        self.random = np.random.default_rng(seed)
        self.dram = StandInDram(family.memtype)
        self.now, self.accesses = 0.0, 0
        lanes = len(skews)
        self.positions = {
            name: [0] * lanes for name in ("read_delay", "read_bitslip", "write_dq", "write_dqs", "write_bitslip")
        }
        self.clock_delay = 0
        self.held = {"en_vtc": 1, "dly_sel": 0, "wlevel_en": 0, "rst": 0, "burstdet_seen": 0}
        self.in_step = [True] * lanes  # ECP5's DQSBUFMs
        self.received: Bits = np.zeros((8, 8 * lanes), np.uint8)
        self._addresses = self._layout()
        self._decoded = {address: _decode(name) for name, address in self._addresses.items()}
        self._phases = [{"command": 0, "address": 0, "baddress": 0} for _ in range(self.build.nphases)]
        self._write_data: list[Bits] = [np.zeros((8, 8 * lanes), np.uint8)]

    # ---- the bus -----------------------------------------------------------------------------------------------------

    def addresses(self) -> dict[str, int]:
        """Byte addresses by LiteX's names."""
        return {name: at for name, at in self._addresses.items() if "#" not in name}

    def pause(self, seconds: float) -> None:
        """In the place of `time.sleep`."""
        self.now += seconds

    def read(self, address: int, count: int) -> Words:
        self._access()
        return np.array([self._read_word(address + 4 * k) for k in range(count)], np.uint32)

    def write(self, address: int, words: Words) -> None:
        self._access()
        for k, value in enumerate(words):
            self._write_word(address + 4 * k, int(value))

    def close(self) -> None:
        """Nothing to release."""

    def _access(self) -> None:
        self.accesses += 1
        self.now += self.access_s

    def _layout(self) -> dict[str, int]:
        words = -(-self.build.geometry.burst_bits // self.build.nphases // 32)
        names = [f"ddrphy_{name}" for name in self.family.registers]
        injector = ["sdram_dfii_control"]
        for n in range(self.build.nphases):
            phase = f"sdram_dfii_pi{n}_"
            injector += [phase + name for name in ("command", "command_issue", "address", "baddress")]
            for data in ("wrdata", "rddata"):
                injector += [phase + data, *(f"{phase}{data}#{k}" for k in range(1, words))]
        return {name: BASE + 4 * k for k, name in enumerate(names)} | {
            name: BASE + 0x800 + 4 * k for k, name in enumerate(injector)
        }

    def _decode(self, address: int) -> tuple[str, int, int]:
        if address not in self._decoded:
            raise LinkError(f"bus error: nothing answers at address {address:#x}")
        return self._decoded[address]

    def _read_word(self, address: int) -> int:
        name, phase, word = self._decode(address)
        if name == "rddata":
            return int(self._phase_words(self.received, phase)[word])
        if name == "half_sys8x_taps":
            start = self.positions["write_dqs"][0] if self.family.ultrascale else 0
            return self.family.tck_taps // 4 + start
        if name == "wdly_dqs_inc_count":
            selected = [lane for lane in range(len(self.skews)) if self.held["dly_sel"] >> lane & 1]
            return self.positions["write_dqs"][selected[-1]] if selected else 0
        return self.held.get(name, 0)

    def _write_word(self, address: int, value: int) -> None:
        name, phase, word = self._decode(address)
        if phase >= 0:
            self._write_phase(phase, name, word, value)
        elif name == "control":
            self.dram.set_control(Control(value), self.now)
        else:
            self._write_phy(name, value)

    def _phase_words(self, burst: Bits, phase: int) -> Words:
        beats = 8 // self.build.nphases
        packed = np.packbits(burst[phase * beats : (phase + 1) * beats].reshape(-1), bitorder="little")
        return np.pad(packed, (0, -packed.size % 4)).view("<u4")

    # ---- the injector ------------------------------------------------------------------------------------------------

    def _write_phase(self, phase: int, name: str, word: int, value: int) -> None:
        state = self._phases[phase]
        if name == "wrdata":
            self._set_write_data(phase, word, value)
        elif name == "command_issue":
            self._issue(phase, Dfi(state["command"]), state["address"], state["baddress"])
        elif name != "rddata":
            state[name] = value

    def _set_write_data(self, phase: int, word: int, value: int) -> None:
        beats, width = 8 // self.build.nphases, self.build.geometry.data_width
        flat = self._write_data[0].reshape(-1)
        begin = phase * beats * width
        bits = np.unpackbits(np.array([value], "<u4").view(np.uint8), bitorder="little")
        room = min(32, beats * width - 32 * word)
        flat[begin + 32 * word : begin + 32 * word + room] = bits[:room]

    def _issue(self, phase: int, command: Dfi, address: int, bank: int) -> None:
        if self.dram.control & Control.SEL:
            self.dram.faults.append("a command while the controller has the DRAM")
            return
        row = self.dram.command(command, address, bank, self.now)
        if row is None:
            return
        home = self.build.write_phase if command & Dfi.WE else self.build.read_phase
        if phase != home:
            self.dram.faults.append(f"{command!r} on phase {phase}")
        elif command & Dfi.WE:
            self.dram.content[bank, row] = self._written(self._write_data[0].copy())
        else:
            self._receive(self.dram.content.get((bank, row), self._noise(self.received.shape)))

    def _noise(self, shape: tuple[int, ...]) -> Bits:
        return self.random.integers(0, 2, shape, dtype=np.uint8)

    def _written(self, burst: Bits) -> Bits:
        """What the DRAM takes of a burst."""
        for lane, skew in enumerate(self.skews):
            columns = slice(8 * lane, 8 * lane + 8)
            if self.family.levels_writes and not self._write_reaches(lane, skew):
                burst[:, columns] = self._noise((8, 8))
        return burst

    def _write_reaches(self, lane: int, skew: Skew) -> bool:
        tck, dqs = self.family.tck_taps, self.positions["write_dqs"][lane]
        late = (dqs - skew.clock_rise - self.clock_delay + tck // 2) % tck - tck // 2
        aligned = abs(late) <= tck // 4
        dq = self.positions["write_dq"][lane] - dqs
        slip = self.positions["write_bitslip"][lane] == skew.write_slip
        return aligned and slip and skew.dq_first <= dq <= skew.dq_last

    def _receive(self, stored: Bits) -> None:
        """What the PHY makes of a burst that comes back."""
        out = stored.copy()
        for lane, skew in enumerate(self.skews):
            columns = slice(8 * lane, 8 * lane + 8)
            delay, slip = self.positions["read_delay"][lane], self.positions["read_bitslip"][lane]
            interval, inside = divmod(delay - skew.read_first - self.clock_delay, self.family.ui_taps)
            shift = interval + slip - skew.read_slip
            if inside >= skew.read_taps or not self._in_step(lane):
                out[:, columns] = self._noise((8, 8))
            elif shift:
                around = np.concatenate([self._noise((8, 8)), stored[:, columns], self._noise((8, 8))])
                begin = 8 + max(-8, min(8, shift))
                out[:, columns] = around[begin : begin + 8]
            if inside < skew.read_taps and abs(shift) <= 1:
                self.held["burstdet_seen"] |= 1 << lane
        self.received = out

    def _in_step(self, lane: int) -> bool:
        """ECP5: selecting a lane pauses it."""
        paused = self.family.pauses and self.held["dly_sel"] >> lane & 1
        return self.in_step[lane] and not paused

    # ---- the PHY -----------------------------------------------------------------------------------------------------

    def _write_phy(self, name: str, value: int) -> None:
        if name == "rst" and value:
            self._reset()
        elif name == "dly_sel":
            self._select(value)
        elif name == "burstdet_clr":
            self.held["burstdet_seen"] = 0
        elif name == "wlevel_strobe":
            self._strobe()
        elif name in ("cdly_rst", "cdly_inc"):
            self._compensated(name)
            self.clock_delay = 0 if name == "cdly_rst" else (self.clock_delay + 1) % self.family.delays
        elif name == "wdly_dqs_rst":
            self._move("write_dqs", 0, self.family.delays, works=not self.family.ultrascale)
        elif name in PULSES:
            self._compensated(name)
            knob, by = PULSES[name]
            self._move(knob, by, self.family.bitslips if "bitslip" in knob else self.family.delays)
        else:
            self.held[name] = value

    def _compensated(self, name: str) -> None:
        if self.family.ultrascale and self.held["en_vtc"] and "bitslip" not in name:
            self.dram.faults.append(f"{name} while EN_VTC is on")

    def _move(self, knob: str, by: int, positions: int, works: bool = True) -> None:
        for lane in range(len(self.skews)):
            if works and self.held["dly_sel"] >> lane & 1:
                self.positions[knob][lane] = (self.positions[knob][lane] + 1) % positions if by else 0

    def _reset(self) -> None:
        """As the PHY's `rst`: UltraScale's DQS delay alone is not reached by it."""
        for knob, values in self.positions.items():
            if not (self.family.ultrascale and knob == "write_dqs"):
                values[:] = [0] * len(values)
        self.clock_delay = 0

    def _select(self, value: int) -> None:
        """ECP5: a lane that was paused is out of step until all of them were, together."""
        before, every = self.held["dly_sel"], (1 << len(self.skews)) - 1
        self.held["dly_sel"] = value
        if not self.family.pauses or value:
            return
        for lane in range(len(self.skews)):
            if before >> lane & 1:
                self.in_step[lane] = before == every
        if before == every:
            self.in_step = [True] * len(self.skews)

    def _strobe(self) -> None:
        if not self.held["wlevel_en"] or not self.dram.levels_writes:
            self.received = self._noise(self.received.shape)
            return
        tck, answer = self.family.tck_taps, np.zeros_like(self.received)
        for lane, skew in enumerate(self.skews):
            after = (self.positions["write_dqs"][lane] - skew.clock_rise - self.clock_delay) % tck
            uncertain = (after + 1) % (tck // 2) == 0  # the tap before either edge
            high = bool(self.random.integers(2)) if uncertain else after < tck // 2
            answer[:, 8 * lane] = high and not skew.deaf  # DQ 0 alone: JEDEC leaves the others to the maker
        self.received = answer


def _decode(name: str) -> tuple[str, int, int]:
    """A register's own name, its phase (-1: it has none), and its word."""
    if name.startswith("sdram_dfii_pi"):
        base, _, word = name.partition("#")
        return base[len("sdram_dfii_pi0_") :], int(base[len("sdram_dfii_pi")]), int(word or 0)
    return name.removeprefix("sdram_dfii_").removeprefix("ddrphy_"), -1, 0


def expected_window(family: Family, skew: Skew, clock_delay: int, bitslip: int) -> tuple[int, int] | None:
    """The read delays, first and last, at which a lane reads well at ``bitslip``."""
    first = skew.read_first + clock_delay + (skew.read_slip - bitslip) * family.ui_taps
    low, high = max(0, first), min(family.delays - 1, first + skew.read_taps - 1)
    return (low, high) if high >= low else None

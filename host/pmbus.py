"""A DRAM rail behind a PMBus regulator of TI's UCD92xx family, through the gateware's SMBus master.

The rail is found by reading: a device that says it is of the family, a page whose output is set to, and reads, the
nominal of this DRAM. Anything else is refused, and nothing but PAGE is written before it is found. Whatever is written
lasts until power-down: no STORE command is ever sent (the gateware refuses them too).

Commands and number formats are of PMBus 1.2 part II. TI's command reference of the family was not at hand:
DEVICE_ID, PHASE, and that a busy device refuses now and then, are as Linux' driver ucd9200 has them; the KC705's
addresses, limits and transition rate as read from one (E. Billauer, "Power supply parameters of Xilinx' KC705 board").

When the output goes down, its limits go first (power good, then undervoltage), each as far as the output does, so that
the regulator neither trips nor loses its protection; when it comes up, they follow it in the reverse order. From the
first step away from nominal the gateware's restore sequencer is armed with the way back: it takes it `WATCHDOG_MS`
after the last sign of life, whatever became of host and link.

Not covered: an FPGA that loses its supply, clock or configuration while the rail is low, and a regulator that does not
acknowledge any more. Power-cycling the board brings back what is stored in the regulator.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from fractions import Fraction
from zlib import crc32

import numpy as np

from host.bus import Bus
from host.heartbeat import Heartbeat
from host.rail import Measurement
from host.smbus import BlockRegisters, NotAcknowledgedError, SMBus
from host.supply_file import PmbusSettings
from profiles.errors import LinkError, RailError

FAMILY = "UCD92"
PAGES = 4  # a UCD9248 has four outputs; others of the family refuse the pages that they lack
WATCHDOG_MS = 5000
BEAT_S = 1.0
NEAR = Fraction(3, 100)  # how far set and read voltage of the DRAM's rail may be off nominal
RESTORE_S = 10.0  # for the sequencer to be done
RISE_S = 1.0  # for an output to get where it is sent
ALL_PHASES = 0xFF
_ENTRIES = 16
_WORD_WRITE_S = 0.38e-3  # START, four bytes with their acknowledges and STOP at 100 kHz


class Command(IntEnum):
    """PMBus commands that are used; DEVICE_ID is the UCD92xx family's own."""

    PAGE = 0x00
    PHASE = 0x04
    VOUT_MODE = 0x20
    VOUT_COMMAND = 0x21
    VOUT_TRANSITION_RATE = 0x27
    VOUT_OV_WARN_LIMIT = 0x42
    VOUT_UV_WARN_LIMIT = 0x43
    VOUT_UV_FAULT_LIMIT = 0x44
    POWER_GOOD_ON = 0x5E
    POWER_GOOD_OFF = 0x5F
    READ_VOUT = 0x8B
    READ_IOUT = 0x8C
    DEVICE_ID = 0xFD


# In the order in which they go down before the output: never is a threshold above the one that it must lie below.
LIMITS_DOWN = (
    Command.POWER_GOOD_OFF,
    Command.POWER_GOOD_ON,
    Command.VOUT_UV_FAULT_LIMIT,
    Command.VOUT_UV_WARN_LIMIT,
)


# ---- numbers ---------------------------------------------------------------------------------------------------------


def exponent_of(vout_mode: int) -> int:
    """Exponent of LINEAR16 numbers, from VOUT_MODE.

    Raises:
        RailError: the output speaks another format (VID, direct).
    """
    if vout_mode >> 5:
        raise RailError(
            f"VOUT_MODE {vout_mode:#04x} is not the linear format; this regulator's output cannot be set by this host"
        )
    return vout_mode - 32 if vout_mode & 0x10 else vout_mode


def linear16_to_mv(raw: int, exponent: int) -> Fraction:
    """Millivolts of a LINEAR16 number, exactly."""
    return 1000 * raw * Fraction(2) ** exponent


def mv_to_linear16(millivolts: int | Fraction, exponent: int) -> int:
    """The nearest LINEAR16 number.

    Raises:
        RailError: it does not fit into 16 bits.
    """
    raw = round(Fraction(millivolts) / 1000 / Fraction(2) ** exponent)
    if not 0 <= raw < 1 << 16:
        raise RailError(f"{millivolts} mV does not fit LINEAR16 with exponent {exponent}; correct the voltage")
    return raw


def linear11(raw: int) -> Fraction:
    """The value of a LINEAR11 number, exactly: five bits of exponent, eleven of mantissa, both signed."""
    mantissa, exponent = raw & 0x7FF, raw >> 11
    return Fraction(mantissa - (mantissa >> 10 << 11)) * Fraction(2) ** (exponent - (exponent >> 4 << 5))


# ---- the gateware's registers ----------------------------------------------------------------------------------------


class RailRegisters(BlockRegisters):
    """The registers of `gateware.rail`, by which the host reaches SMBus and sequencer.

    Args:
        bus: link to the board; with a sequencer to be fed from a thread, a `host.bus.SharedBus`.
        addresses: byte addresses of the build's registers by LiteX's names (``rail_host_data`` …).

    Raises:
        RailError: the build has no such registers.
    """

    def __init__(self, bus: Bus, addresses: Mapping[str, int]) -> None:
        super().__init__(bus, addresses, "rail")
        if "host_transaction" not in self:
            raise RailError("this board's gateware has no PMBus master; name another kind of supply in the file")


# ---- finding the rail ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FoundRail:
    """The page of a regulator that feeds the DRAM, and how it was found.

    Attributes:
        address, page: where.
        device: what the regulator says it is.
        exponent: of its LINEAR16 numbers.
        nominal: VOUT_COMMAND.
        limits: `LIMITS_DOWN` at nominal.
        highest: VOUT_OV_WARN_LIMIT; the output stays below it.
    """

    address: int
    page: int
    device: str
    exponent: int
    nominal: int
    limits: Mapping[Command, int]
    highest: int

    def __str__(self) -> str:
        return f"page {self.page} of {self.device} at SMBus address {self.address}"


def find_rail(smbus: SMBus, settings: PmbusSettings) -> FoundRail:
    """The one rail that is set to, and reads, nominal.

    Raises:
        RailError: there is none, or more than one; the message lists what was seen.
    """
    seen: list[str] = []
    found: list[FoundRail] = []
    for address in settings.addresses:
        try:
            device = smbus.read_block(address, Command.DEVICE_ID).split(b"|")[0].decode("ascii", "replace")
        except NotAcknowledgedError:
            seen.append(f"{address}: nothing")
            continue
        if not device.startswith(FAMILY):
            seen.append(f"{address}: '{device}', not of the {FAMILY}xx family")
            continue
        for page in range(PAGES):
            try:
                found += _look_at(smbus, address, page, device, settings.nominal, seen)
            except NotAcknowledgedError:
                break
    if len(found) != 1:
        many = "no rail" if not found else f"{len(found)} rails"
        raise RailError(
            f"{many} at nominal, {settings.nominal} mV, on the PMBus ({'; '.join(seen)}); nothing was changed: "
            "check addresses and nominal_mv in the supply's file, and power-cycle the board if a rail was left low"
        )
    return found[0]


def _look_at(smbus: SMBus, address: int, page: int, device: str, nominal_mv: int, seen: list[str]) -> list[FoundRail]:
    select_page(smbus, address, page)
    exponent = exponent_of(smbus.read(address, Command.VOUT_MODE, word=False))

    def millivolts(command: Command) -> tuple[int, Fraction]:
        raw = smbus.read(address, command)
        return raw, linear16_to_mv(raw, exponent)

    (nominal, set_mv), (_, reads_mv) = millivolts(Command.VOUT_COMMAND), millivolts(Command.READ_VOUT)
    seen.append(f"{address} page {page}: set to {float(set_mv):.0f} mV, reads {float(reads_mv):.0f} mV")
    if not all(abs(each - nominal_mv) <= NEAR * nominal_mv for each in (set_mv, reads_mv)):
        return []
    limits = {command: smbus.read(address, command) for command in LIMITS_DOWN}
    highest = smbus.read(address, Command.VOUT_OV_WARN_LIMIT)
    off, on, fault, warn = (limits[command] for command in LIMITS_DOWN)
    if not (off <= on < nominal and fault <= warn < nominal < highest):
        raise RailError(
            f"the limits of page {page} of {device} at {address} contradict each other (power good {off}..{on}, "
            f"undervoltage {fault}..{warn}, set {nominal}, overvoltage {highest}); power-cycle the board"
        )
    return [FoundRail(address, page, device, exponent, nominal, limits, highest)]


def select_page(smbus: SMBus, address: int, page: int) -> None:
    """Choose the output that the next transactions mean, and make sure of it: a lost PAGE would move another rail.

    Raises:
        RailError: it did not take.
    """
    smbus.write(address, Command.PAGE, page, word=False)
    if (taken := smbus.read(address, Command.PAGE, word=False)) != page:
        raise RailError(f"the device at {address} is at page {taken} after being sent to page {page}; power-cycle it")


# ---- the sequencer ---------------------------------------------------------------------------------------------------


class _State(IntEnum):
    """`gateware.rail.RailState`."""

    DISARMED = 0
    CHECKING = 1
    ARMED = 2
    RESTORING = 3
    RESTORED = 4


_KICK, _ARM, _DISARM = 1, 2, 4


class RestoreSequencer:
    """The gateware's way back to nominal, taken when the host falls silent."""

    def __init__(self, registers: RailRegisters) -> None:
        self._registers = registers

    @property
    def state(self) -> _State:
        """Raises LinkError if no such state exists."""
        value = self._registers["state"] & 7
        if value not in list(_State):
            raise LinkError(f"the restore sequencer reports state {value}, which does not exist; check the link")
        return _State(value)

    def arm(self, entries: list[int]) -> None:
        """Load the writes that restore the rail (`gateware.rail`), and arm.

        Raises:
            RailError: the sequencer did not take them.
        """
        registers = self._registers
        self.settle()
        for k, entry in enumerate(entries):
            registers["select"] = k
            registers["entry"] = entry
        registers["length"] = len(entries)
        registers["check"] = crc32(np.array(entries, "<u4").tobytes())
        registers["watchdog_ms"] = WATCHDOG_MS
        registers["control"] = _ARM
        if not self._reaches(_State.ARMED, 1.0):
            raise RailError("the gateware did not arm the way back to nominal; the rail stays there: reset the board")

    def kick(self) -> None:
        """A sign of life."""
        self._registers["control"] = _KICK

    def settle(self) -> None:
        """Disarm; if it is on the way back for a host that has gone, once it is there.

        Raises:
            RailError: it does not get there.
        """
        waits_s = WATCHDOG_MS / 1000 + RESTORE_S
        if self.state in (_State.ARMED, _State.RESTORING) and not self._reaches(_State.RESTORED, waits_s):
            why = "another process moves the rail: wait until it ends"
            if self.state == _State.RESTORING:
                why = f"{self._registers['failures']} of its writes were not acknowledged: power-cycle the board"
            raise RailError(f"the gateware's restore sequencer is still {self.state.name} after {waits_s:g} s; {why}")
        self.disarm()

    def disarm(self) -> None:
        """Give up the way back: the rail is at nominal."""
        self._registers["control"] = _DISARM

    def _reaches(self, wanted: _State, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while self.state != wanted:
            if time.monotonic() > end:
                return False
            time.sleep(0.005)
        return True


# ---- the supply ------------------------------------------------------------------------------------------------------


class PmbusSupply:
    """The DRAM's output of a UCD92xx regulator; a `host.rail.Supply`.

    Args:
        registers: of the gateware; closed with the supply.
        settings: where to look for it.

    Attributes:
        rail: the output that was found.
        identity: the same in words.

    Raises:
        RailError: see `find_rail`.
    """

    def __init__(self, registers: RailRegisters, settings: PmbusSettings) -> None:
        self._registers, self._settings = registers, settings
        self._smbus, self._sequencer = SMBus(registers), RestoreSequencer(registers)
        if self._sequencer.state != _State.DISARMED:
            self._sequencer.settle()  # of a host that has gone
        self.rail = find_rail(self._smbus, settings)
        select_page(self._smbus, self.rail.address, self.rail.page)
        self._smbus.write(self.rail.address, Command.PHASE, ALL_PHASES, word=False)  # READ_IOUT is their sum then
        self.identity = str(self.rail)
        self._present = self.rail.nominal
        self._armed = False
        self._heartbeat: Heartbeat | None = None

    def set_millivolts(self, millivolts: int) -> None:
        """Limits and output, in the order that keeps the regulator from tripping.

        Raises:
            RailError: something was not acknowledged or did not take. No sign of life is given any more then, and the
                gateware brings the rail back `WATCHDOG_MS` later.
        """
        wanted = self._raw(millivolts)
        if wanted > self.rail.highest:
            raise RailError(
                f"{millivolts} mV is above {self.rail}'s overvoltage warning, "
                f"{float(linear16_to_mv(self.rail.highest, self.rail.exponent)):.0f} mV; lower it"
            )
        if wanted == self.rail.nominal and self._is_or_goes_back():
            return
        try:
            self._make_sure_of_the_way_back()
            self._move(wanted)
        except BaseException:
            self._fall_silent()
            raise

    def measure(self) -> Measurement:
        """READ_VOUT and READ_IOUT.

        Raises:
            RailError: the gateware has taken the rail back meanwhile: what was measured since the last reading is void.
        """
        self._check_not_taken_back()
        select_page(self._smbus, self.rail.address, self.rail.page)
        millivolts = float(self._read_mv(Command.READ_VOUT))
        milliamperes = float(1000 * linear11(self._smbus.read(self.rail.address, Command.READ_IOUT)))
        return Measurement(
            millivolts, self._settings.uncertainty_mv, milliamperes, milliwatts=millivolts * milliamperes / 1000
        )

    def set_point_mv(self) -> float:
        """What VOUT_COMMAND says, millivolts."""
        select_page(self._smbus, self.rail.address, self.rail.page)
        return float(self._read_mv(Command.VOUT_COMMAND))

    def close(self) -> None:
        """Disarm, if the rail is at nominal; else leave it to the sequencer. A second call does nothing."""
        self._fall_silent()
        try:
            if self._armed and self._present == self.rail.nominal:
                self._sequencer.disarm()
                self._armed = False
        finally:
            self._registers.close()

    def _raw(self, millivolts: int) -> int:
        """Nominal is what the regulator came up with, to the bit."""
        nominal = self._settings.nominal
        return self.rail.nominal if millivolts == nominal else mv_to_linear16(millivolts, self.rail.exponent)

    def _move(self, wanted: int) -> None:
        select_page(self._smbus, self.rail.address, self.rail.page)
        if wanted < self._present:
            self._set_limits(wanted, LIMITS_DOWN)
            self._write(Command.VOUT_COMMAND, wanted)
        else:  # to where it is, too: a move down that failed half way has left it lower
            self._write(Command.VOUT_COMMAND, wanted)
            self._await_rise(wanted)
            self._set_limits(wanted, LIMITS_DOWN[::-1])
        self._present = wanted

    def _set_limits(self, output: int, order: tuple[Command, ...]) -> None:
        """Each as far below its value at nominal as the output is below nominal."""
        down = max(0, self.rail.nominal - output)
        for command in order:
            self._write(command, max(0, self.rail.limits[command] - down))

    def _write(self, command: Command, value: int) -> None:
        self._smbus.write(self.rail.address, command, value)
        if (taken := self._smbus.read(self.rail.address, command)) != value:
            raise RailError(
                f"{command.name} of {self.rail} reads {taken:#06x} after {value:#06x} was written; does something "
                "else on the bus set it, or WRITE_PROTECT forbid it?"
            )

    def _await_rise(self, wanted: int) -> None:
        """Limits must not overtake the output."""
        target, end = linear16_to_mv(wanted, self.rail.exponent), time.monotonic() + RISE_S
        while (reads := self._read_mv(Command.READ_VOUT)) < target - Fraction(self._settings.tolerance_mv):
            if time.monotonic() > end:
                raise RailError(
                    f"{self.rail} reads {float(reads):.1f} mV {RISE_S:g} s after being sent to {float(target):.1f} mV; "
                    "has it tripped? power-cycle the board"
                )

    def _read_mv(self, command: Command) -> Fraction:
        return linear16_to_mv(self._smbus.read(self.rail.address, command), self.rail.exponent)

    def _is_or_goes_back(self) -> bool:
        """Whether the rail has never left nominal, or is brought back by the sequencer, which is waited for."""
        if self._armed and self._sequencer.state != _State.ARMED:
            self._fall_silent()
            self._sequencer.settle()
            self._armed, self._present = False, self.rail.nominal
        return not self._armed

    def _make_sure_of_the_way_back(self) -> None:
        if not self._armed:
            self._sequencer.arm(self._way_back())
            self._armed = True
        if self._heartbeat is None:
            self._heartbeat = Heartbeat(self._sequencer.kick, BEAT_S)
        self._check_not_taken_back()

    def _check_not_taken_back(self) -> None:
        if self._armed and (state := self._sequencer.state) != _State.ARMED:
            raise RailError(
                f"the gateware heard nothing of this host for {WATCHDOG_MS / 1000:g} s and is {state.name} the rail; "
                "the point under way is void: run the same command again"
            )

    def _way_back(self) -> list[int]:
        """PAGE, VOUT_COMMAND as often as the output takes to rise, and the limits from below."""
        address, rail = self.rail.address, self.rail

        def entry(command: Command, data: int, word: bool = True) -> int:
            return data | command << 16 | address << 24 | word << 31

        limits = [entry(command, rail.limits[command]) for command in LIMITS_DOWN[::-1]]
        rise = [entry(Command.VOUT_COMMAND, rail.nominal)] * (_ENTRIES - 1 - len(limits))
        self._check_rise_time(len(rise) * _WORD_WRITE_S)
        return [entry(Command.PAGE, rail.page, word=False), *rise, *limits]

    def _check_rise_time(self, granted_s: float) -> None:
        """Raises RailError if the regulator moves so slowly that the sequencer's limits would overtake its output."""
        select_page(self._smbus, self.rail.address, self.rail.page)
        rate = linear11(self._smbus.read(self.rail.address, Command.VOUT_TRANSITION_RATE))  # mV/µs
        up_mv = max(0, self._settings.nominal - self._settings.floor_mv)
        if rate <= 0:
            raise RailError(
                f"{self.rail} says that it moves {float(rate):g} mV/µs: how long the gateware must wait on its way back"
                " is unknown, and the rail stays where it is; give the regulator a VOUT_TRANSITION_RATE"
            )
        if up_mv / float(rate) * 1e-6 > granted_s:
            raise RailError(
                f"{self.rail} moves {float(rate):.3g} mV/µs and would take longer than {1e3 * granted_s:.1f} ms from "
                f"{self._settings.floor_mv} mV to nominal: the gateware could not bring it back safely; raise "
                "floor_mv in the supply's file"
            )

    def _fall_silent(self) -> None:
        if self._heartbeat is not None:
            self._heartbeat.stop()
            self._heartbeat = None

"""Links to real boards by their ``--board`` specification, and how good they are."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import quantiles

import numpy as np

from gateware.etherbone_protocol import PORT
from gateware.registers import CSR_BASE, State, memory_bases, register_offsets
from host.bus import Bus, Words
from host.etherbone_bus import EtherboneBus
from host.identity import Identity
from host.litex_server_bus import LitexServerBus
from host.serial_bus import SerialBus
from profiles.errors import BoardError, LinkError

BAUDRATE = 3_000_000  # of the boards' serial bridges; the KC705's has 921,600
LATENCY_READS = 100
TRANSFER_S = 0.5  # a throughput is measured over about this
_FIRST_WORDS = 64


@dataclass(frozen=True)
class _Link:
    """A kind of link, ``KIND:PLACE[:NUMBER]``: what opens it, what the number is and its default and limit."""

    open: Callable[[str, int], Bus]
    number: str
    default: int
    limit: int


_LINKS = {
    "etherbone": _Link(EtherboneBus, "UDP port", PORT, 1 << 16),
    "serial": _Link(SerialBus, "baud rate", BAUDRATE, 1 << 32),
    "litex_server": _Link(LitexServerBus, "TCP port", PORT, 1 << 16),
}
SPECIFICATIONS = "etherbone:HOST[:PORT], serial:DEVICE[:BAUD] or litex_server:HOST[:PORT]"


def is_link(specification: str) -> bool:
    """Whether a ``--board`` specification is a link's."""
    kind, _, where = specification.partition(":")
    return kind in _LINKS and bool(where)


def open_link(specification: str) -> Bus | None:
    """The bus of one of `SPECIFICATIONS`; None if the specification is no link's.

    Raises:
        BoardError: PORT or BAUD is no number.
        LinkError: nobody answers there.
    """
    if not is_link(specification):
        return None
    kind, _, where = specification.partition(":")
    link, (place, _, number) = _LINKS[kind], where.rpartition(":")
    place, number = (place, number) if place else (where, "")
    if number and not (number.isdecimal() and 0 < int(number) < link.limit):
        raise BoardError(
            f"'{number}' of '{specification}' is no {link.number}; give {SPECIFICATIONS}; without it, {link.default}"
        )
    return link.open(place, int(number or link.default))


@dataclass(frozen=True)
class LinkQuality:
    """Measured on the spot.

    Attributes:
        latency_s: 5 %, 50 % and 95 % quantiles of the time that a register takes to be read.
        read_bytes_per_s, write_bytes_per_s: of a memory, in bulk.
        repeats: requests that had to be repeated meanwhile; None where the link does not count them.
    """

    latency_s: tuple[float, float, float]
    read_bytes_per_s: float
    write_bytes_per_s: float
    repeats: int | None


def engine_state(bus: Bus) -> State:
    """What the engine is doing.

    Raises:
        LinkError: no such state exists.
    """
    value = int(bus.read(CSR_BASE + 4 * register_offsets()["state"], 1)[0])
    if value not in list(State):
        raise LinkError(f"the engine reports state {value:#x}, which does not exist; check the link")
    return State(value)


def measure_link(bus: Bus, identity: Identity) -> LinkQuality:
    """Time reads of a register, and the write buffer's way to the host and back; its content stays what it was.

    Raises:
        BoardError: the engine is in mid-program: a measurement of the link would disturb it.
        LinkError: the link failed, or what was written does not read back.
    """
    if (state := engine_state(bus)) in (State.RUNNING, State.HALTED, State.CHUNK):
        raise BoardError(f"the engine is {state.name}: somebody uses the board; measure its link when it is done")
    before = getattr(bus, "repeats", None)
    identity_register = CSR_BASE + 4 * register_offsets()["identity"]
    times = sorted(_seconds(lambda: bus.read(identity_register, 1)) for _ in range(LATENCY_READS))
    cuts = quantiles(times, n=20)
    base = memory_bases()["write_buffer"]
    c = identity.constants
    room = c["buffer_bursts"] * c["data_width"] * c["burst_length"] // 32
    content: list[Words] = []

    def read(words: int) -> None:
        content[:] = [bus.read(base, words)]

    read_rate, words = _rate(read, room)
    write_rate, _ = _rate(lambda count: bus.write(base, content[0][:count]), words)
    if not np.array_equal(bus.read(base, words), content[0]):
        raise LinkError("the write buffer does not read back as it was written; check the link")
    repeats = None if before is None else bus.repeats - before  # type: ignore[attr-defined]
    return LinkQuality((cuts[0], cuts[9], cuts[18]), read_rate, write_rate, repeats)


def _seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _rate(transfer: Callable[[int], object], room: int) -> tuple[float, int]:
    """Bytes a second of ``transfer(words)``, of as many words as `TRANSFER_S` or ``room`` allow; and how many."""
    words = min(_FIRST_WORDS, room)
    while True:
        seconds = _seconds(lambda words=words: transfer(words))  # type: ignore[misc]
        if words == room or seconds > TRANSFER_S / 3:
            return 4 * words / seconds, words
        words = min(room, words * (8 if seconds < TRANSFER_S / 20 else 2))

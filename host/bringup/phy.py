"""What all of LiteDRAM's PHYs have in common for levelling: knobs that act on byte lanes, and what they can do."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from host.bus import Bus
from profiles.errors import BoardError

Lanes = tuple[int, ...]
"""Byte lanes: lane n has DQ 8 n .. 8 n + 7."""


@dataclass(frozen=True)
class Knob:
    """A setting of each byte lane that can only be put back to 0 and moved up by one.

    Attributes:
        name: what it is, in words.
        positions: it has positions 0 .. positions - 1.
        restart: puts it back to 0 in these lanes.
        advance: moves it up by one in these lanes.
    """

    name: str
    positions: int
    restart: Callable[[Lanes], None]
    advance: Callable[[Lanes], None]

    def set(self, wanted: Mapping[int, int]) -> None:
        """Bring lanes to positions, all together as far as they go together."""
        self.restart(tuple(wanted))
        for position in range(max(wanted.values())):
            self.advance(tuple(lane for lane, last in wanted.items() if last > position))


@dataclass(frozen=True)
class WriteKnobs:
    """What a PHY with output delays has besides: its writes can be levelled.

    Attributes:
        delay: DQ and DQS together.
        bitslip: likewise, two for a DRAM clock.
        dq_delay: DQ alone, from where `delay` has left it at 0; None where the PHY has no such training.
        clock_delay: clock and commands, of all lanes at once.
        tck_taps: how many taps a DRAM clock takes, while ``delay`` is at 0.
        enable: drives DQS for write levelling, or stops.
        strobe: sends one pulse of DQS.
    """

    delay: Knob
    bitslip: Knob
    dq_delay: Knob | None
    clock_delay: Knob
    tck_taps: Callable[[], int]
    enable: Callable[[bool], None]
    strobe: Callable[[], None]


class Phy(Protocol):
    """A PHY as levelling sees it.

    Attributes:
        lanes: its byte lanes.
        read_delay, read_bitslip: of the data that come back.
        write: of the data that go out; None where writes cannot be levelled.
    """

    lanes: Lanes
    read_delay: Knob
    read_bitslip: Knob
    write: WriteKnobs | None

    def reset(self) -> None:
        """Everything to where it is after power-up."""

    def begin(self) -> None:
        """Before any knob is moved."""

    def end(self) -> None:
        """After the last one was moved."""

    def expect_burst(self) -> None:
        """Before a READ whose strobe `burst_seen` tells of."""

    def burst_seen(self) -> Lanes:
        """Lanes whose strobe was seen since; all of them where the PHY does not look."""


class PhyRegisters:
    """A PHY's registers behind a bus.

    Args:
        bus: link to the board.
        addresses: byte addresses of the build's registers by LiteX's names (``ddrphy_…``).
    """

    def __init__(self, bus: Bus, addresses: Mapping[str, int]) -> None:
        self._bus = bus
        self._at = {
            name.removeprefix("ddrphy_"): address for name, address in addresses.items() if name.startswith("ddrphy_")
        }

    def __contains__(self, name: str) -> bool:
        return name in self._at

    def __getitem__(self, name: str) -> int:
        return int(self._bus.read(self._address(name), 1)[0])

    def __setitem__(self, name: str, value: int) -> None:
        self._bus.write(self._address(name), np.array([value], np.uint32))

    def _address(self, name: str) -> int:
        if name not in self._at:
            raise BoardError(f"the build's csr.json has no register ddrphy_{name}; build the gateware anew")
        return self._at[name]


def mask_of(lanes: Lanes) -> int:
    """Lanes as bits of ``dly_sel``."""
    return sum(1 << lane for lane in lanes)

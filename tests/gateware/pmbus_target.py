"""A PMBus device on two wires, bit by bit, for simulations: it remembers what it is told and says it when asked."""

from collections.abc import Generator
from dataclasses import dataclass, field

from migen.sim import passive

from gateware.smbus import SMBusMaster

PAGE = 0x00


@dataclass
class PmbusTarget:
    """A device with a register for each (page, command).

    Attributes:
        master: whose wires it hangs on.
        address: its own, 7 bits.
        registers: values by (page, command).
        writes: (page, command, bytes) of every write that was whole and acknowledged, in order.
        refuse: how many of the next bytes to its address it does not acknowledge.
        refused_commands: those it never acknowledges.
        stretch: clocks that it holds the clock low after each byte.
        hold_scl, hold_sda: clocks from the beginning for which it holds the lines low.
        stuck_sending: how many more bits it holds the data line low at the beginning, for a master that is gone.
        rival: another master sends a 0 at the first bit that should be 1.
        sent_bytes: bytes that it has sent.
    """

    master: SMBusMaster
    address: int = 0x34
    registers: dict[tuple[int, int], int] = field(default_factory=dict)
    writes: list[tuple[int, int, bytes]] = field(default_factory=list)
    refuse: int = 0
    refused_commands: frozenset[int] = frozenset()
    stretch: int = 0
    hold_scl: int = 0
    hold_sda: int = 0
    stuck_sending: int = 0
    rival: bool = False
    page: int = 0
    sent_bytes: int = 0

    @passive
    def wires(self) -> Generator:
        """The simulation process; runs as long as the others do."""
        self._role, self._bit, self._byte = "idle", 0, 0
        self._pull, self._wait = self.stuck_sending > 0, 0
        self._received: list[int] = []
        before = (1, 1)
        while True:
            scl = int((yield self.master.scl) and not self.hold_scl and not self._wait)
            sda = int((yield self.master.sda) and not self.hold_sda and not self._pull)
            self._wait, self.hold_scl, self.hold_sda = (
                max(0, clocks - 1) for clocks in (self._wait, self.hold_scl, self.hold_sda)
            )
            self._see(*before, scl, sda)
            before = scl, sda
            yield self.master.scl_in.eq(scl)
            yield self.master.sda_in.eq(sda)
            yield

    def _see(self, scl_before: int, sda_before: int, scl: int, sda: int) -> None:
        if scl_before and scl and sda_before and not sda:
            self._role, self._bit = "address", -1  # START; the next falling edge begins bit 0
        elif scl_before and scl and sda and not sda_before:
            self._stop()
        elif scl and not scl_before and self._bit < 8:
            self._byte = self._byte << 1 & 0xFF | sda
        elif scl and not scl_before and self._role == "send" and sda:
            self._role = "idle"  # not acknowledged: the master has what it wants
        elif scl_before and not scl:
            self._fall()

    def _fall(self) -> None:
        """The clock has fallen: the line may change."""
        if self.stuck_sending:
            self.stuck_sending -= 1
            self._pull = self.stuck_sending > 0
            return
        self._bit += 1
        if self._bit == 9:
            self._bit = 0
            if self._role == "answer":
                self._role = "send"
        self._pull = self.rival and self._role == "address"
        if self._role == "send" and self._bit < 8:
            self._pull = not self._outgoing >> self._bit_of_outgoing() & 1
        elif self._role in ("address", "receive") and self._bit == 8:
            self._pull = self._accept()
            self._wait = self.stretch

    def _bit_of_outgoing(self) -> int:
        self._sent += 1
        self.sent_bytes += self._sent % 8 == 1
        return (self._sent - 1) // 8 * 8 + 7 - (self._sent - 1) % 8

    def _accept(self) -> bool:
        """A byte has come; is it acknowledged?"""
        if self._role == "address" and self._byte >> 1 != self.address:
            self._role = "idle"
            return False
        if self._role == "address" and self._byte & 1:
            command = self._received[0]
            self._role, self._sent = "answer", 0
            self._outgoing = self.registers.get((self.page, command), 0)
            return not self._refuses()
        if self._role == "receive":
            self._received.append(self._byte)
        else:
            self._role, self._received = "receive", []
        return not self._refuses()

    def _refuses(self) -> bool:
        if self.refuse or (self._received and self._received[0] in self.refused_commands):
            self.refuse = max(0, self.refuse - 1)
            self._role = "idle"
            return True
        return False

    def _stop(self) -> None:
        if self._role == "receive" and len(self._received) > 1:
            command, data = self._received[0], bytes(self._received[1:])
            if command == PAGE:
                self.page = data[0]
            self.registers[self.page, command] = int.from_bytes(data, "little")
            self.writes.append((self.page, command, data))
        self._role, self._pull = "idle", False

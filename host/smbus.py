"""The gateware's SMBus master (`gateware.smbus`): transactions with the devices on its bus."""

import time
from collections.abc import Mapping
from enum import IntEnum

import numpy as np

from host.bus import Bus
from profiles.errors import RailError, UnacknowledgedError

TRANSACTION_S = 1.0
ATTEMPTS = 3  # of a transaction that is not acknowledged, and of a register write whose acknowledge is lost
_BLOCK_BYTES = 32


class BlockRegisters:
    """Registers of one block of the gateware, by their names within it; any of them may be written twice.

    Args:
        bus: link to the board.
        addresses: byte addresses of the build's registers by LiteX's names.
        block: the block's name, e.g. "rail".
    """

    def __init__(self, bus: Bus, addresses: Mapping[str, int], block: str) -> None:
        self._bus, prefix = bus, f"{block}_"
        self._at = {
            name.removeprefix(prefix): address for name, address in addresses.items() if name.startswith(prefix)
        }

    def __contains__(self, name: str) -> bool:
        return name in self._at

    def __getitem__(self, name: str) -> int:
        return int(self._bus.read(self._at[name], 1)[0])

    def __setitem__(self, name: str, value: int) -> None:
        """A transaction made again sets and reads the same."""
        for attempt in range(ATTEMPTS):
            try:
                self._bus.write(self._at[name], np.array([value], np.uint32))
            except UnacknowledgedError:
                if attempt == ATTEMPTS - 1:
                    raise
            else:
                return

    def words(self, name: str, count: int) -> bytes:
        """A register of several words, lowest byte first."""
        return self._bus.read(self._at[name], count).astype("<u4").tobytes()

    def close(self) -> None:
        """Release the link; a second call does nothing."""
        self._bus.close()


class NotAcknowledgedError(RailError):
    """No device at the address, or it refuses the command."""


class SMBus:
    """Transactions with the devices of an SMBus.

    Args:
        registers: of its master (``host_data`` …).
    """

    def __init__(self, registers: BlockRegisters) -> None:
        self._registers = registers

    def write(self, address: int, command: int, value: int, word: bool = True) -> None:
        """Write a word or a byte. Raises RailError."""
        self._wait()
        self._registers["host_data"] = value
        self._transact(address, command, word=word)

    def read(self, address: int, command: int, word: bool = True) -> int:
        """Read a word or a byte. Raises RailError."""
        return self._transact(address, command, word=word, read=True)

    def read_block(self, address: int, command: int) -> bytes:
        """Read a block. Raises RailError."""
        length = self._transact(address, command, word=True, read=True, block=True) & 0xFF
        if not 0 < length <= _BLOCK_BYTES:
            raise RailError(f"the device at {address} answers a block of {length} bytes to {_named(command)}")
        return self._registers.words("host_block", _BLOCK_BYTES // 4)[-length:]

    def _transact(self, address: int, command: int, word: bool, read: bool = False, block: bool = False) -> int:
        for _ in range(ATTEMPTS):
            self._wait()
            self._registers["host_transaction"] = command | address << 8 | word << 15 | read << 16 | block << 17
            result = self._wait()
            if (status := result >> 16 & 3) != 1:
                break
        what = f"{_named(command)} of the SMBus device at {address}"
        if status == 1:
            raise NotAcknowledgedError(f"{what} is not acknowledged; is the device there, and does it know that?")
        if status == 2:
            raise RailError(f"{what}: the SMBus is stuck, or another master is on it; take it off and power-cycle")
        if status == 3:
            raise RailError(f"{what} is refused by the gateware, which is bringing the rail back; start again")
        return result & 0xFFFF

    def _wait(self) -> int:
        end = time.monotonic() + TRANSACTION_S
        while (result := self._registers["host_result"]) >> 18 & 1:
            if time.monotonic() > end:
                raise RailError(f"the SMBus master is busy for more than {TRANSACTION_S:g} s; reset the board")
        return result


def _named(command: int) -> str:
    return command.name if isinstance(command, IntEnum) else f"command {command}"

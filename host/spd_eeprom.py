"""Reads a module's SPD image over the gateware's I2C master, where a board has one."""

from collections.abc import Mapping

from host.bus import Bus
from host.smbus import BlockRegisters, NotAcknowledgedError, SMBus
from host.spd import DDR3_BYTES
from profiles.errors import BoardError, RailError

ADDRESS = 0x50  # of the only module, its address pins low
PAGE_ADDRESSES = (0x36, 0x37)  # EE1004: a write to one of them chooses the half of 256 bytes that is read
# Switches between the master and the module: by board, (address, channel). KC705: the public pin list of its I2C bus
# (UG810) has the SO-DIMM on channel 6 of the PCA9548 at 0x74.
SWITCHES = {"kc705": (0x74, 6)}


def has_spd(addresses: Mapping[str, int]) -> bool:
    """Whether the build reaches its module's SPD."""
    return "i2c_host_transaction" in addresses


def read_spd(bus: Bus, addresses: Mapping[str, int], board: str, memtype: str) -> bytes:
    """The whole image, undecoded: 256 bytes of DDR3, 512 of DDR4. It takes 0.7 ms for two bytes, and the link's time.

    Args:
        bus: link to the board.
        addresses: byte addresses of the build's registers by LiteX's names.
        board: the build's board, which may have a switch on the way.
        memtype: "DDR3" or "DDR4".

    Raises:
        BoardError: nothing answers.
    """
    smbus = SMBus(BlockRegisters(bus, addresses, "i2c"))
    try:
        if board in SWITCHES:
            address, channel = SWITCHES[board]
            smbus.write(address, 1 << channel, 1 << channel, word=False)  # it keeps the last byte that it gets
        if memtype == "DDR3":
            return _half(smbus)
        halves = []
        for page in PAGE_ADDRESSES:
            smbus.write(page, 0, 0, word=False)
            halves.append(_half(smbus))
        smbus.write(PAGE_ADDRESSES[0], 0, 0, word=False)
    except NotAcknowledgedError as error:
        raise BoardError(f"no SPD EEPROM answers ({error}); is a module in the socket?") from error
    except RailError as error:
        raise BoardError(f"the SPD cannot be read: {error}") from error
    return b"".join(halves)


def _half(smbus: SMBus) -> bytes:
    words = [smbus.read(ADDRESS, offset) for offset in range(0, DDR3_BYTES, 2)]
    return b"".join(word.to_bytes(2, "little") for word in words)

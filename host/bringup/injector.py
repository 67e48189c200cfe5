"""Single DRAM commands, issued through the registers of LiteDRAM's DFI injector (``litedram/dfii.py``).

Between two commands there is at least one access of a link, microseconds or more: every distance between commands that
JEDEC asks for but those of `host.bringup.initialisation` is kept by that alone. Rows stay open for as long as a link
takes, which may be more than tRASmax; nothing is refreshed meanwhile. What is written is therefore read back at once.
"""

from collections.abc import Mapping
from enum import IntFlag

import numpy as np
import numpy.typing as npt

from gateware.engine.parameters import EngineParameters
from host.bus import Bus
from profiles.errors import BoardError

Bits = npt.NDArray[np.uint8]


class Control(IntFlag):
    """Bits of ``sdram_dfii_control``."""

    SEL = 1  # LiteDRAM's controller has the DRAM, not the injector
    CKE = 2
    ODT = 4
    RESET_N = 8


class Dfi(IntFlag):
    """Bits of ``sdram_dfii_piN_command``."""

    CS = 1
    WE = 2
    CAS = 4
    RAS = 8
    WREN = 16
    RDEN = 32


ACTIVATE = Dfi.RAS | Dfi.CS
READ = Dfi.CAS | Dfi.CS | Dfi.RDEN
WRITE = Dfi.CAS | Dfi.WE | Dfi.CS | Dfi.WREN
MODE_REGISTER_SET = Dfi.RAS | Dfi.CAS | Dfi.WE | Dfi.CS
AUTO_PRECHARGE = 1 << 10  # A10 of READ and WRITE
SOFTWARE = Control.CKE | Control.ODT | Control.RESET_N
_COMMAND, _ADDRESS, _WRITE_DATA = 0, 2, 4  # words within a phase's registers


class Injector:
    """LiteDRAM's DFI injector behind a bus.

    Args:
        bus: link to the board.
        addresses: byte addresses of the build's registers by LiteX's names.
        build: what the gateware was built for.

    Raises:
        BoardError: the build has no such registers, or more than one rank.
    """

    def __init__(self, bus: Bus, addresses: Mapping[str, int], build: EngineParameters) -> None:
        if build.ranks != 1:
            raise BoardError(
                f"the module has {build.ranks} ranks; bring-up knows modules of one rank: put in such a one"
            )
        self._bus, self.build = bus, build
        geometry = build.geometry
        self._beats = geometry.burst_length // build.nphases  # of a phase
        self._words = -(-self._beats * geometry.data_width // 32)
        phases = range(build.nphases)
        try:
            self._control = addresses["sdram_dfii_control"]
            self._bases = [addresses[f"sdram_dfii_pi{n}_command"] for n in phases]
            reads = [addresses[f"sdram_dfii_pi{n}_rddata"] for n in phases]
        except KeyError as error:
            raise BoardError(f"the build's csr.json has no register {error}; build the gateware anew") from error
        expected = [base + 4 * (_WRITE_DATA + self._words) for base in self._bases]
        if reads != expected or sorted(self._bases) != self._bases:
            raise BoardError("the build's csr.json has the DFI injector's registers in another order; build it anew")
        self._first_read = reads[0]
        self._addressed: list[tuple[int, int]] = [(0, 0)] * build.nphases  # address and bank that a phase holds
        # where a row is opened: on a phase of its own, so that no address is written twice, if there is one
        taken = (build.read_phase, build.write_phase)
        self._act_phase = next((n for n in phases if n not in taken), 0)

    def control(self, bits: Control) -> None:
        """Who has the DRAM, and the levels of CKE, ODT and RESET#."""
        self._write(self._control, int(bits))

    def command(self, phase: int, command: Dfi, address: int = 0, bank: int = 0) -> None:
        """Issue ``command`` once, on ``phase``."""
        base = self._bases[phase]
        if self._addressed[phase] != (address, bank):
            self._write(base + 4 * _ADDRESS, address, bank)
            self._addressed[phase] = (address, bank)
        self._write(base + 4 * _COMMAND, int(command), 1)  # `command`, then `command_issue`

    def load(self, burst: Bits) -> None:
        """Put a burst where `write_burst` takes it from: uint8[beats, DQ] of 0 and 1.

        All phases' registers are written in one access; the commands among them select no chip.
        """
        words = np.zeros((self._bases[-1] - self._bases[0]) // 4 + _WRITE_DATA + self._words, np.uint32)
        for n, base in enumerate(self._bases):
            at = (base - self._bases[0]) // 4
            words[at + _ADDRESS : at + _ADDRESS + 2] = self._addressed[n]
            packed = np.packbits(burst[n * self._beats : (n + 1) * self._beats].reshape(-1), bitorder="little")
            data = np.zeros(4 * self._words, np.uint8)
            data[: packed.size] = packed
            words[at + _WRITE_DATA : at + _WRITE_DATA + self._words] = data.view("<u4")
        self._bus.write(self._bases[0], words)

    def write_burst(self) -> None:
        """Write what was loaded to bank 0, row 0, column 0."""
        self.command(self._act_phase, ACTIVATE)
        self.command(self.build.write_phase, WRITE, AUTO_PRECHARGE)

    def read_burst(self) -> Bits:
        """Bank 0, row 0, column 0: uint8[beats, DQ] of 0 and 1."""
        self.command(self._act_phase, ACTIVATE)
        self.command(self.build.read_phase, READ, AUTO_PRECHARGE)
        return self.captured()

    def captured(self) -> Bits:
        """What the phases have last received: uint8[beats, DQ] of 0 and 1."""
        words = self._bus.read(self._first_read, (self._bases[-1] - self._bases[0]) // 4 + self._words)
        geometry = self.build.geometry
        beats = []
        for base in self._bases:
            at = (base - self._bases[0]) // 4
            bits = np.unpackbits(words[at : at + self._words].astype("<u4").view(np.uint8), bitorder="little")
            beats.append(bits[: self._beats * geometry.data_width].reshape(self._beats, geometry.data_width))
        return np.concatenate(beats)

    def _write(self, address: int, *values: int) -> None:
        self._bus.write(address, np.array(values, np.uint32))

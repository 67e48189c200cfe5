"""The simulated board: the gateware's own SoC, compiled by Verilator to a shared library, as a bus.

It answers at the addresses that the mock answers at, and everything above the bus is the same; each access, and each
command to the DRAM, takes the clocks that it takes in the gateware. ``make sim`` builds it.
"""

import ctypes
import json
from pathlib import Path
from typing import Any

import numpy as np

from gateware.engine.parameters import EngineParameters
from gateware.registers import CSR_BASE, State, register_offsets
from gateware.sim.library import LIBRARY, folder
from host.bus import Words
from host.chip_presets import Preset
from host.jedec_monitor import Spacing, Violation
from host.simulated_dram import DONE, SimulatedDram, command_function
from host.timings import JedecTimings, Timings
from profiles.errors import BoardError, LinkError
from profiles.geometry import Geometry

_SPACINGS = {"DDR3": Spacing.ddr3, "DDR4": Spacing.ddr4}
_ACCESS_CLOCKS = 100_000  # longest wait for an answer; the SoC's own bus timeout ends an access long before
_STATE = CSR_BASE + 4 * register_offsets()["state"]
_AHEAD_CLOCKS = 50_000  # that a running engine is let go on, unless it stops, before its state is read again ...
_LOOK_CLOCKS = 16  # ... and how often the simulation looks for that

_BOARD, _INT64, _UINT32 = ctypes.c_void_p, ctypes.c_int64, ctypes.c_uint32
_ARRAY, _GROW = ctypes.c_void_p, ctypes.CFUNCTYPE(ctypes.c_int64)
_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "board_open": (_BOARD, ctypes.c_void_p, _GROW, _INT64),
    "board_close": (None, _BOARD),
    "board_clocks": (_INT64, _BOARD),
    "board_failed": (_INT64, _BOARD),
    "board_run": (None, _BOARD, _INT64),
    "board_read": (_INT64, _BOARD, _UINT32, _INT64, _ARRAY, _INT64),
    "board_write": (_INT64, _BOARD, _UINT32, _INT64, _ARRAY, _INT64),
    "board_run_while": (_INT64, _BOARD, _UINT32, _UINT32, _INT64, _INT64, _INT64),
    "board_serial_open": (None, _BOARD, _INT64),
    "board_serial_write": (None, _BOARD, ctypes.c_char_p, _INT64),
    "board_serial_read": (_INT64, _BOARD, ctypes.c_char_p, _INT64),
}


def _library(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    for name, (result, *arguments) in _FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


class SimulatedBoard:
    """A simulated board; a `host.bus.Bus`. Not for two threads at once.

    Args:
        configuration: one of `gateware.sim.configurations`.
        preset: vendor of its chips.
        seed: which chips; the same seed gives the mock's weak cells.
        jedec: speed grade that its monitor holds commands to.

    Attributes:
        build: what its gateware was built for.
        about: the build's board.json.
        registers: byte addresses of all of the SoC's registers by LiteX's names.
        dram: the DRAM, its surroundings and its monitor.

    Raises:
        BoardError: the library is not built for the present sources.
    """

    def __init__(self, configuration: str, preset: Preset, seed: int, jedec: JedecTimings) -> None:
        home = folder(configuration)
        if not home.exists():
            raise BoardError(f"{home} is missing: '{configuration}' is not built for the present sources; make sim")
        self.about: dict[str, Any] = json.loads((home / "board.json").read_text())
        csr = json.loads((home / "csr.json").read_text())
        self.registers = {name: int(register["addr"]) for name, register in csr["csr_registers"].items()}
        engine = self.about["engine"]
        self.build = EngineParameters(**{**engine, "geometry": Geometry(**engine["geometry"])})
        timings = Timings.of(jedec, self.build.tck_ps, self.build.cas_write_latency)
        spacing = _SPACINGS[self.about["phy"]["memtype"]](self.build.tck_ps, self.build.cas_latency)
        self.dram = SimulatedDram(self.build, preset, seed, timings, spacing)
        self._c = _library(home / LIBRARY)
        self._grow = _GROW(self._enlarge)
        self._board = self._c.board_open(command_function().address, self._grow, self.dram.address)
        self._c.board_serial_open(self._board, self.about["serial_divisor"])
        self._engine_runs = False

    # ---- the world around the board -------------------------------------------------------------------------------

    def set_environment(self, vdd_uv: int, temperature_c: float) -> None:
        """Supply the DRAM with ``vdd_uv`` microvolts at ``temperature_c`` degrees Celsius."""
        self.dram.set_environment(vdd_uv, temperature_c)

    @property
    def environment(self) -> tuple[int, float]:
        """Supply in microvolts and temperature in degrees Celsius."""
        return self.dram.environment

    def begin_epoch(self, epoch: int, activations: int = 0) -> None:
        """Draw reads from here on as epoch ``epoch`` does."""
        self.dram.begin_epoch(epoch)
        self.dram._state.chip.act_index[:] = activations

    def run(self, clocks: int) -> None:
        """Let ``clocks`` system clocks pass."""
        self.dram.apply_environment()
        self._c.board_run(self._board, clocks)
        self._check()

    @property
    def clocks(self) -> int:
        """System clocks since power-up."""
        return int(self._c.board_clocks(self._board))

    def violations(self) -> dict[str, int]:
        """How often each rule of `host.jedec_monitor` was broken since power-up; those never broken are left out."""
        return self.dram.violation_counts()

    def first_violations(self) -> list[Violation]:
        """The first violations, in order."""
        return self.dram.first_violations()

    # ---- the bus --------------------------------------------------------------------------------------------------

    def read(self, address: int, count: int) -> Words:
        """See `host.bus.Bus.read`. A look at a running engine's state comes when it stops, or some clocks later."""
        self.dram.apply_environment()
        if address == _STATE and self._engine_runs:
            self._c.board_run_while(self._board, address, State.RUNNING, _LOOK_CLOCKS, _AHEAD_CLOCKS, _ACCESS_CLOCKS)
        words = np.zeros(count, np.uint32)
        done = self._c.board_read(self._board, address, count, words.ctypes.data, _ACCESS_CLOCKS)
        self._check()
        if done < count:
            raise LinkError(f"bus error: nothing answers a read at address {address + 4 * done:#x}")
        if address == _STATE:
            self._engine_runs = bool(words[0] == State.RUNNING)
        return words

    def write(self, address: int, words: Words) -> None:
        """See `host.bus.Bus.write`."""
        self.dram.apply_environment()
        words = np.ascontiguousarray(words, np.uint32).reshape(-1)
        done = self._c.board_write(self._board, address, words.size, words.ctypes.data, _ACCESS_CLOCKS)
        self._check()
        if done < words.size:
            raise LinkError(f"bus error: nothing answers a write at address {address + 4 * done:#x}")

    def close(self) -> None:
        """Free the simulation; a second call does nothing."""
        if self._board is not None:
            self._c.board_close(self._board)
            self._board = None

    # ---- the serial bridge's line ---------------------------------------------------------------------------------

    def serial_write(self, data: bytes) -> None:
        """Queue bytes for the board's receive pin; they take their time as clocks pass."""
        self._c.board_serial_write(self._board, data, len(data))

    def serial_read(self) -> bytes:
        """Take the bytes that the board has sent by now."""
        buffer = ctypes.create_string_buffer(1 << 16)
        count = self._c.board_serial_read(self._board, buffer, len(buffer))
        return buffer.raw[:count]

    def _enlarge(self) -> int:
        """Called from C. What it raises only gets printed there, and 0 is returned: `_check` then tells."""
        self.dram.grow()
        return DONE

    def _check(self) -> None:
        if self._c.board_failed(self._board):
            raise BoardError("the simulated DRAM failed; what it said is on standard error. Report it with the command")

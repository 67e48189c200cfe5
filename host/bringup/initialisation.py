"""JEDEC's power-up sequence: RESET#, CKE, mode registers, ZQ calibration, in order and with the waits between them.

The build's board.json says what goes into the mode registers, as LiteDRAM computed it (``dram_init``). Its waits are
counted in iterations of a CPU's loop and shorter than JEDEC's, and it holds ODT high throughout, which JEDEC forbids
where RTT_NOM is to be on: waits and ODT are seen to here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from host.bringup.injector import MODE_REGISTER_SET, SOFTWARE, Control, Dfi, Injector
from profiles.errors import BoardError

Pause = Callable[[float], None]
"""Waits for so many seconds, like `time.sleep`."""

MODE_REGISTERS = {"DDR3": (2, 3, 1, 0), "DDR4": (3, 6, 5, 4, 2, 1, 0)}  # the order that JEDEC writes them in
ZQ_CALIBRATION_LONG = Dfi.WE | Dfi.CS
_MODE_SETTLED = 15e-9  # the part of tMOD that is a time


@dataclass(frozen=True)
class InitialisationWaits:
    """Seconds to wait, JESD79-3F 3.3.1 and 4.13, JESD79-4 3.3.1.

    Attributes:
        reset_low: RESET# low, the supply being stable.
        clock_off: from RESET# high to CKE high.
        exit_reset: tXPR, from CKE high to the first MRS: tRFC + 10 ns, of the largest chips.
        between_modes: tMRD, from MRS to MRS.
        after_modes: tMOD and, as MR0 resets the DLL, tDLLK.
        calibration: tZQinit.
    """

    reset_low: float
    clock_off: float
    exit_reset: float
    between_modes: float
    after_modes: float
    calibration: float

    @classmethod
    def of(cls, memtype: str, tck_ps: int) -> "InitialisationWaits":
        """Those of "DDR3" or "DDR4" at a clock period; DDR4's tDLLK is that of its fastest grades."""
        tck = tck_ps * 1e-12
        mrd, mod, dllk, zqinit = {"DDR3": (4, 12, 512, 512), "DDR4": (8, 24, 1024, 1024)}[memtype]
        zqinit_s = max(zqinit * tck, 640e-9 if memtype == "DDR3" else 0.0)
        after = max(mod * tck, _MODE_SETTLED, dllk * tck)
        return cls(200e-6, 500e-6, max(5 * tck, 560e-9), mrd * tck, after, zqinit_s)


@dataclass(frozen=True)
class ModeRegister:
    """A mode register and what power-up writes into it."""

    number: int
    value: int


class PowerUp:
    """A build's power-up sequence.

    Args:
        steps: ``dram_init`` of its board.json.
        memtype: "DDR3" or "DDR4".
        tck_ps: DRAM clock period.
        sys_clk_hz: system clock, which the steps' own waits are counted in.

    Attributes:
        modes: mode registers, in order.

    Raises:
        BoardError: the steps are not that memory's sequence.
    """

    def __init__(self, steps: Sequence[Mapping[str, Any]], memtype: str, tck_ps: int, sys_clk_hz: float) -> None:
        if memtype not in MODE_REGISTERS:
            raise BoardError(f"bring-up knows DDR3 and DDR4, not {memtype}; build the gateware for such a module")
        self._waits = InitialisationWaits.of(memtype, tck_ps)
        try:
            self._read(steps, sys_clk_hz)
        except (KeyError, TypeError, ValueError) as error:
            raise BoardError(f"the build's board.json has no usable dram_init ({error!r}); build it anew") from error
        numbers = tuple(mode.number for mode in self.modes)
        if numbers != MODE_REGISTERS[memtype]:
            raise BoardError(
                f"the build's board.json sets mode registers {numbers}; {memtype} wants {MODE_REGISTERS[memtype]} in "
                "that order: build the gateware anew"
            )

    def _read(self, steps: Sequence[Mapping[str, Any]], sys_clk_hz: float) -> None:
        """Steps by what they do: two of the control register, the mode registers, ZQ calibration."""
        commands = [(step, frozenset(step["bits"])) for step in steps]
        shape = [step["register"] for step in steps]
        if shape != ["control"] * 2 + ["command"] * (len(steps) - 2):
            raise ValueError(f"registers {shape}")
        (_, released), (_, clocked), *modes, (calibration, zq) = commands
        if "reset_n" not in released or "cke" in released or not {"reset_n", "cke"} <= clocked:
            raise ValueError(f"control {sorted(released)}, then {sorted(clocked)}")
        if zq != {"we", "cs"} or not int(calibration["address"]) >> 10 & 1:
            raise ValueError("it does not end with ZQCL")
        if any(bits != {"ras", "cas", "we", "cs"} for _, bits in modes):
            raise ValueError("another command between CKE and ZQCL")
        self.modes = [ModeRegister(int(step["bank"]), int(step["address"])) for step, _ in modes]
        self._calibration_address = int(calibration["address"])
        delays = [int(step["delay_clocks"]) / sys_clk_hz for step in steps]
        self._released_s, self._clocked_s, self._modes_s = delays[0], delays[1], delays[-2]

    def mode(self, number: int) -> int:
        """What mode register ``number`` holds after power-up."""
        return next(mode.value for mode in self.modes if mode.number == number)

    def run(self, injector: Injector, while_reset: Callable[[], None], pause: Pause) -> None:
        """Reset the DRAM and set it up; its content is lost. The injector has it afterwards, its ODT pin high.

        Args:
            injector: issues the commands.
            while_reset: called while RESET# and CKE are low: the time to reset the PHY.
            pause: waits.
        """
        waits = self._waits
        injector.control(Control(0))
        while_reset()
        pause(waits.reset_low)
        injector.control(Control.RESET_N)
        pause(max(waits.clock_off, self._released_s))
        injector.control(Control.RESET_N | Control.CKE)
        pause(max(waits.exit_reset, self._clocked_s))
        for mode in self.modes:
            set_mode(injector, mode.number, mode.value)
            pause(waits.between_modes)
        pause(max(waits.after_modes, self._modes_s))
        injector.command(0, ZQ_CALIBRATION_LONG, self._calibration_address)
        pause(waits.calibration)
        injector.control(SOFTWARE)

    def level_writes(self, injector: Injector, on: bool, pause: Pause) -> None:
        """Switch the DRAM's write levelling mode (MR1, A7)."""
        set_mode(injector, 1, self.mode(1) | on << 7)
        pause(self._waits.after_modes)


def set_mode(injector: Injector, number: int, value: int) -> None:
    """Issue an MRS command."""
    injector.command(0, MODE_REGISTER_SET, value, number)

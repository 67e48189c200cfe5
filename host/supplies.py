"""From `eden.toml` to the rail of a board."""

from collections.abc import Mapping

from host.bus import Bus
from host.guardian import GuardedSupply
from host.pmbus import PmbusSupply, RailRegisters
from host.rail import Measurement, Rail, Supply
from host.supply_file import FixedSettings, PmbusSettings, ScpiSettings
from profiles.errors import RailError

JEDEC_BAND = 0.05  # of nominal, either way: where JEDEC has the supply of a DRAM that works


class FixedSupply:
    """A supply that nobody can move or read: taken to be nominal, within JEDEC's band. A `host.rail.Supply`."""

    identity = "fixed, as the supply's file says"

    def __init__(self, settings: FixedSettings) -> None:
        self._nominal_mv = settings.nominal
        uniform_mv = JEDEC_BAND * self._nominal_mv / 3**0.5
        self._uncertainty_mv = uniform_mv if settings.uncertainty_mv is None else settings.uncertainty_mv

    def set_millivolts(self, millivolts: int) -> None:
        """Raises RailError unless it is nominal."""
        if millivolts != self._nominal_mv:
            raise RailError(
                f"{millivolts} mV cannot be set: the supply is fixed at {self._nominal_mv} mV; name a controllable one "
                "in the supply's file, or change the plan"
            )

    def measure(self) -> Measurement:
        """Nominal, which nobody has measured, with the uncertainty of that."""
        return Measurement(float(self._nominal_mv), self._uncertainty_mv)

    def set_point_mv(self) -> float:
        """Nominal."""
        return float(self._nominal_mv)

    def close(self) -> None:
        """Nothing to release."""


class FixedRail(Rail):
    """The rail of a supply that cannot be moved: every other voltage than nominal is refused before anything begins."""

    def check(self, millivolts: int) -> None:
        """See `Rail.check`."""
        super().check(millivolts)
        if millivolts != self.nominal_mv:
            self._supply.set_millivolts(millivolts)


def open_supply(
    settings: FixedSettings | PmbusSettings | ScpiSettings,
    bus: Bus | None = None,
    registers: Mapping[str, int] | None = None,
) -> Supply:
    """The supply that ``settings`` describe; nothing is moved yet.

    Args:
        settings: from `host.supply_file.load_supply`.
        bus: link to the board, through which a PMBus supply is reached: a `host.bus.SharedBus`.
        registers: byte addresses of the build's registers by LiteX's names (`host.pmbus.register_addresses`).

    Raises:
        RailError: the supply is not there, is not what the file says, or is held by another process.
        LinkError: the board does not answer.
    """
    if isinstance(settings, FixedSettings):
        return FixedSupply(settings)
    if isinstance(settings, ScpiSettings):
        return GuardedSupply(settings)
    if bus is None or registers is None:
        raise RailError(
            "a PMBus supply is reached through its board's gateware, and there is no link to one here; name a bench "
            "supply or a fixed one in the supply's file"
        )
    return PmbusSupply(RailRegisters(bus, registers), settings)


def rail_of(settings: FixedSettings | PmbusSettings | ScpiSettings, supply: Supply, board_floor_mv: int = 0) -> Rail:
    """The rail that ``supply`` feeds.

    Args:
        settings: that it was opened by.
        supply: the device; let go of if the rail cannot be.
        board_floor_mv: the lowest voltage of the board's own description (``rail.floor_mv`` of its board.json).

    Raises:
        RailError: nominal is outside the limits.
    """
    try:
        if isinstance(settings, FixedSettings):
            return FixedRail(supply, settings.dram, settings.nominal, board_floor_mv)
        floor_mv = max(settings.floor_mv, board_floor_mv)
        return Rail(supply, settings.dram, settings.nominal, floor_mv, settings.ramp)
    except RailError:
        supply.close()
        raise

"""From `eden.toml` to the rail of a board."""

from contextlib import ExitStack

from host.bus import SharedBus
from host.guardian import GuardedSupply
from host.identity import Description, find_description, identify
from host.links import SPECIFICATIONS, open_link
from host.litex_server_bus import LitexServerBus
from host.pmbus import PmbusSupply, RailRegisters
from host.rail import Measurement, Rail, Supply
from host.supply_file import FixedSettings, PmbusSettings, ScpiSettings
from profiles.errors import BoardError, RailError

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


def open_supply(settings: FixedSettings | PmbusSettings | ScpiSettings) -> tuple[Supply, int]:
    """The supply that ``settings`` describe, and the floor of the board that they name, millivolts; 0 without a board.

    Nothing is moved yet.

    Raises:
        RailError: the supply is not there, is not what the file says, or is held by another process; or the board is
            not designed for its nominal.
        BoardError, LinkError: the board does not answer, or its build has no description here.
    """
    if isinstance(settings, FixedSettings):
        return FixedSupply(settings), 0
    if settings.board is None:
        return GuardedSupply(settings), 0
    with ExitStack() as unless_kept:
        link = open_link(settings.board)
        if link is None:
            raise RailError(
                f"'{settings.board}' is no link to a board; give board as {SPECIFICATIONS} in the supply's file"
            )
        unless_kept.callback(link.close)
        description = find_description(identify(link, settings.board), settings.board)
        supply, floor_mv = supply_of_board(settings, SharedBus(link), description)
        if isinstance(settings, PmbusSettings):  # reached through the link, which its close() closes
            unless_kept.pop_all()
        return supply, floor_mv


def supply_of_board(
    settings: FixedSettings | PmbusSettings | ScpiSettings, bus: SharedBus, description: Description
) -> tuple[Supply, int]:
    """As `open_supply`, for the board behind a link that is open, whatever board ``settings`` name."""
    if isinstance(settings, FixedSettings):
        return FixedSupply(settings), 0
    floor_mv = _board_floor(settings, description)
    if isinstance(settings, ScpiSettings):
        return GuardedSupply(settings), floor_mv
    if isinstance(bus.shared, LitexServerBus):
        raise RailError(
            "a regulator is not moved through litex_server, which may lose a write unnoticed; reach the board by "
            "etherbone: or serial:"
        )
    return PmbusSupply(RailRegisters(bus, description.registers()), settings), floor_mv


def _board_floor(settings: PmbusSettings | ScpiSettings, description: Description) -> int:
    try:
        rail = description.about["rail"]
        floor_mv, nominal_mv = int(rail["floor_mv"]), int(rail["nominal_mv"])
    except (KeyError, TypeError, ValueError) as error:
        raise BoardError(
            f"{description.path} does not say what its DRAM's rail may be ({error!r}); build the gateware anew"
        ) from error
    if settings.nominal != nominal_mv:
        raise RailError(
            f"the supply's file is for {settings.dram} at {settings.nominal} mV, {description.about['title']} for "
            f"{nominal_mv} mV; correct dram or nominal_mv there"
        )
    return floor_mv


def rail_of(settings: FixedSettings | PmbusSettings | ScpiSettings, supply: Supply, board_floor_mv: int = 0) -> Rail:
    """The rail that ``supply`` feeds.

    Args:
        settings: that it was opened by.
        supply: the device; let go of if the rail cannot be.
        board_floor_mv: the lowest voltage of the board's own description.

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

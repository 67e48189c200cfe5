"""Opens a real board: its supply, its module's SPD, its DRAM brought up and tested."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from host.board import Board
from host.bringup.sequence import bring_up
from host.bus import Bus, SharedBus
from host.die_temperature import DieSensor, find_sensor
from host.identity import Description, find_description, identify
from host.modbus import open_thermostat
from host.rail import LIMITS
from host.selftest import require_self_test
from host.spd import Spd, check_against_build, decode
from host.spd_eeprom import has_spd, read_spd
from host.supplies import rail_of, supply_of_board
from host.supply_file import SUPPLY_FILE, load_bench, load_supply
from host.thermostat import KeptEnvironment
from host.timings import JedecTimings, Timings, of_soldered_chips
from profiles.errors import BoardError
from profiles.progress import Progress, silent
from profiles.schema import ModuleIdentity


class Surroundings:
    """What surrounds a real DRAM, as far as its board tells.

    Args:
        die: sensor of its FPGA; None if the build has none. One that tells nothing when the board is opened is left
            alone, and `eden board info` says why; one that stops later is an error.

    Attributes:
        sensor: what it is.
    """

    def __init__(self, die: DieSensor | None) -> None:
        die = die if die is not None and die.converts else None
        self._die, self.sensor = die, None if die is None else die.name

    def begin_epoch(self, epoch: int, activations: int = 0) -> None:
        """Real DRAM draws from no epoch."""

    def temperature_c(self) -> float | None:
        """Of the FPGA's die, degrees Celsius; None where nothing tells."""
        return None if self._die is None else self._die.celsius()


@dataclass(frozen=True)
class Module:
    """The DRAM of a real board.

    Attributes:
        spd: of its module; None for chips on the board, or where the gateware does not reach it.
        remarks: what is out of the standard about how the gateware drives it, in words.
    """

    spd: Spd | None
    remarks: tuple[str, ...]


def find_module(bus: Bus, description: Description) -> Module:
    """Read and check the SPD of the module behind ``bus``, if the gateware reaches one; the DRAM is left alone.

    Raises:
        BoardError: it cannot be read, is damaged, or is of a module that the gateware was not built for.
    """
    addresses, about = description.registers(), description.about
    if not has_spd(addresses):
        return Module(None, ())
    memtype = about["phy"]["memtype"]
    spd = decode(read_spd(bus, addresses, about["board"], memtype))
    return Module(spd, tuple(check_against_build(spd, description.engine, memtype)))


def open_real(
    link: Bus, name: str, supply: Path | None, progress: Progress = silent, bring_up_dram: bool = True
) -> Board:
    """The board at the end of ``link``, its DRAM initialised, levelled and tested at nominal.

    Args:
        link: to it; closed with the board, or if it cannot be opened.
        name: its ``--board`` specification.
        supply: file that names what feeds its DRAM; None: `SUPPLY_FILE`.
        progress: of bring-up and self-test.
        bring_up_dram: False leaves DRAM and supply as they are: the board can be asked what it is, and not used.

    Raises:
        BoardError: it is of unknown build, its module is not the gateware's, cannot be levelled, or failed its test.
        RailError, TemperatureError, PlanError: the supply's file is wrong or missing, or the supply or the temperature
            controller is not there.
        LinkError: the link failed.
    """
    bus, file = SharedBus(link), supply or SUPPLY_FILE
    with ExitStack() as unless_opened:
        unless_opened.callback(bus.close)
        description = find_description(identify(bus, name), name)
        module = find_module(bus, description)
        settings, temperature = load_supply(file), load_bench(file).temperature
        check_supply(settings.dram, settings.nominal, module.spd, description)
        thermostat = None if temperature is None else open_thermostat(temperature)
        if thermostat is not None:
            unless_opened.callback(thermostat.close)
        rail = rail_of(settings, *supply_of_board(settings, bus, description))
        unless_opened.callback(rail.close)
        jedec = module.spd.jedec if module.spd else _soldered(description)
        identity = _identity(module.spd, settings.dram, settings.nominal, description, jedec)
        chip_width = description.engine.geometry.chip_width
        surroundings = Surroundings(find_sensor(bus, description.registers()))

        def opened() -> Board:
            board = Board(bus, rail, surroundings, identity, jedec, chip_width, name, seed=None)
            if thermostat is not None:
                board.kept_by(thermostat, KeptEnvironment(thermostat, surroundings.begin_epoch))
            return board

        if not bring_up_dram:
            unless_opened.pop_all()
            return opened()
        with rail.guarded():
            bring_up(bus, description, progress)
            board = opened()
            require_self_test(board, progress)
        unless_opened.pop_all()
    return board


def check_supply(dram: str, nominal_mv: int, spd: Spd | None, description: Description) -> None:
    """Hold what the supply's file says of the DRAM against gateware and SPD.

    Raises:
        BoardError: they contradict each other.
    """
    memtype = description.about["phy"]["memtype"]
    if dram.removesuffix("L") != memtype:
        raise BoardError(
            f"the supply's file is for {dram}, the gateware of {description.about['title']} for {memtype}; correct dram"
        )
    voltages = spd.voltages_mv if spd else ()
    if voltages and nominal_mv not in voltages:
        allowed = " or ".join(f"{millivolts} mV" for millivolts in voltages)
        types = " or ".join(name for name, limits in LIMITS.items() if limits.nominal_mv in voltages)
        assert spd is not None
        raise BoardError(
            f"the supply's file has {nominal_mv} mV for nominal, the SPD of {spd.part_number} {allowed}; set dram to "
            f"{types or 'its type'} there"
        )


def _soldered(description: Description) -> JedecTimings:
    return of_soldered_chips(description.about["phy"]["memtype"], description.engine.geometry)


def _identity(
    spd: Spd | None, dram: str, nominal_mv: int, description: Description, jedec: JedecTimings
) -> ModuleIdentity:
    engine = description.engine
    return ModuleIdentity(
        manufacturer=spd.maker if spd else "unknown",
        part_number=spd.part_number if spd else f"chips of {description.about['title']}",
        serial_number=spd.serial_number if spd else "unknown",
        dram_type=dram,
        nominal_vdd_mv=nominal_mv,
        nominal_trcd_ps=Timings.of(jedec, engine.tck_ps, engine.cas_write_latency).nominal_trcd_ps,
        spd_hex=spd.image.hex() if spd else None,
    )

"""Opens boards by their ``--board`` specification."""

from pathlib import Path
from typing import Protocol

from gateware.engine.parameters import EngineParameters
from host.board import Board
from host.bus import Bus
from host.chip_presets import PRESETS, REFERENCE_TEMPERATURE_C
from host.links import SPECIFICATIONS, open_link
from host.mock import MockBoard
from host.modbus import open_thermostat
from host.rail import Measurement, Rail, Supply
from host.real_board import open_real
from host.recording import record, replay
from host.simulation import SimulatedBoard
from host.supplies import open_supply, rail_of
from host.supply_file import load_bench
from host.thermostat import Holding, KeptEnvironment, Thermostat
from host.timings import DDR3_1600K, Timings
from profiles.errors import BoardError, PlanError, RailError
from profiles.geometry import Geometry
from profiles.progress import Progress, silent
from profiles.schema import ModuleIdentity

MOCK_SUPPLY_UNCERTAINTY_MV = 0.25

# The mock stands in for a KC705: DDR3L SO-DIMM of eight 1 Gb x8 chips, 500 MHz DRAM clock, four phases.
MOCK_GEOMETRY = Geometry(banks=8, rows=16384, columns=1024, data_width=64)
MOCK_TCK_PS = 2000


def mock_build(
    geometry: Geometry, nphases: int = 4, log_blocks: int = 256, buffer_bursts: int = 4096
) -> EngineParameters:
    """The gateware build that a mock of ``geometry`` stands in for; CL 7 and CWL 6 give its phases and latencies."""
    cl_clocks, cwl_clocks = -(-7 // nphases), -(-6 // nphases)
    return EngineParameters(
        geometry=geometry,
        tck_ps=MOCK_TCK_PS,
        nphases=nphases,
        read_phase=cl_clocks * nphases - 7,
        write_phase=cwl_clocks * nphases - 6,
        read_latency=cl_clocks + 6,
        write_latency=cwl_clocks - 1,
        cas_latency=7,
        cas_write_latency=6,
        log_blocks=log_blocks,
        buffer_bursts=buffer_bursts,
        row_counters=min(4096, geometry.rows),
    )


class SoftwareBoard(Bus, Protocol):
    """A board in software, mock or simulated: a bus, and the world around the board."""

    @property
    def environment(self) -> tuple[int, float]:
        """Supply in microvolts and temperature in degrees Celsius."""

    def set_environment(self, vdd_uv: int, temperature_c: float) -> None:
        """Change both."""

    def begin_epoch(self, epoch: int, activations: int = 0) -> None:
        """Draw reads from here on as epoch ``epoch`` does."""


class MockSupply:
    """The bench supply of a board in software."""

    identity = "model"

    def __init__(self, board: SoftwareBoard) -> None:
        self._board = board

    def set_millivolts(self, millivolts: int) -> None:
        self._board.set_environment(millivolts * 1000, self._board.environment[1])

    def measure(self) -> Measurement:
        return Measurement(self._board.environment[0] / 1000, MOCK_SUPPLY_UNCERTAINTY_MV)

    def set_point_mv(self) -> float:
        return self._board.environment[0] / 1000

    def close(self) -> None:
        """Nothing to release."""


class FollowedSupply:
    """A real supply that feeds a board in software: its DRAM is at the voltage that was read back, in whole millivolts.

    A `host.rail.Supply`: what a bench needs to be tried out before there is a board on it.
    """

    def __init__(self, supply: Supply, board: SoftwareBoard) -> None:
        self._supply, self._board, self.identity = supply, board, supply.identity

    def set_millivolts(self, millivolts: int) -> None:
        self._supply.set_millivolts(millivolts)

    def measure(self) -> Measurement:
        measured = self._supply.measure()
        self._board.set_environment(1000 * round(measured.millivolts), self._board.environment[1])
        return measured

    def set_point_mv(self) -> float:
        return self._supply.set_point_mv()

    def close(self) -> None:
        self._supply.close()


class MockController:
    """What heats and cools a board in software, at once; a `host.thermostat.Controller`."""

    identity = "model"

    def __init__(self, board: SoftwareBoard) -> None:
        self._board = board

    def set_celsius(self, celsius: float) -> None:
        self._board.set_environment(self._board.environment[0], celsius)

    def set_point_c(self) -> float:
        return self._board.environment[1]

    def measure_c(self) -> float:
        return self._board.environment[1]

    def close(self) -> None:
        """Nothing to release."""


class FollowedThermostat(Thermostat):
    """A real controller beside a board in software: its DRAM is at the temperature that is read, to a tenth."""

    def __init__(self, thermostat: Thermostat, board: SoftwareBoard) -> None:
        super().__init__(thermostat.controller, thermostat.holding)
        self._board = board

    def measure_c(self) -> float:
        celsius = super().measure_c()
        self._board.set_environment(self._board.environment[0], round(celsius, 1))
        return celsius


class MockEnvironment:
    """The surroundings of a board in software."""

    sensor: str | None = "model"

    def __init__(self, board: SoftwareBoard) -> None:
        self._board = board

    def begin_epoch(self, epoch: int, activations: int = 0) -> None:
        self._board.begin_epoch(epoch, activations)

    def temperature_c(self) -> float | None:
        return self._board.environment[1]


def open_mock(vendor: str, seed: int, geometry: Geometry = MOCK_GEOMETRY) -> Board:
    """A mock board with a DDR3L module of ``vendor`` ("A", "B" or "C")."""
    return software_board("mock", MockBoard(mock_build(geometry), PRESETS[vendor], seed), geometry, vendor, seed)


def open_simulation(vendor: str, seed: int) -> Board:
    """The simulated KC705 with the module that the mock has."""
    bus = SimulatedBoard("kc705", PRESETS[vendor], seed, DDR3_1600K)
    return software_board("sim", bus, bus.build.geometry, vendor, seed)


def software_board(kind: str, bus: SoftwareBoard, geometry: Geometry, vendor: str, seed: int) -> Board:
    """A board around ``bus``, with the module of ``vendor`` and ``seed``: the same one for every ``kind`` of board."""
    bus.set_environment(1_350_000, REFERENCE_TEMPERATURE_C)
    module = ModuleIdentity(
        manufacturer=f"vendor {vendor} (model)",
        part_number="MODEL-DDR3L-SODIMM",
        serial_number=f"{seed:08X}",
        dram_type="DDR3L",
        nominal_vdd_mv=1350,
        nominal_trcd_ps=Timings.of(DDR3_1600K, MOCK_TCK_PS, 6).nominal_trcd_ps,
    )
    rail = Rail(MockSupply(bus), module.dram_type, module.nominal_vdd_mv)
    name, environment = f"{kind}:{vendor}:{seed}", MockEnvironment(bus)
    board = Board(bus, rail, environment, module, DDR3_1600K, geometry.chip_width, name, seed)
    board.kept_by(Thermostat(MockController(bus), Holding(stable_s=0.0)), environment)
    return board


_KINDS = {"mock": open_mock, "sim": open_simulation}


def open_board(
    specification: str,
    supply: Path | None = None,
    recording: Path | None = None,
    progress: Progress = silent,
    bring_up_dram: bool = True,
) -> Board:
    """Open a board: ``mock:VENDOR[:SEED]`` or ``sim:VENDOR[:SEED]`` with VENDOR A, B or C, one behind a link, or one
    that was recorded, ``replay:FILE``.

    Args:
        specification: which board.
        supply: file that names what feeds its DRAM (`host.supply_file`). A board in software brings its own supply and
            needs none; with one, its DRAM follows what that supply is measured to give. A real board's is looked for in
            `host.supply_file.SUPPLY_FILE` if it is not given.
        recording: file to write all its traffic into (`host.recording`), from when its DRAM is ready.
        progress: of a real board's bring-up and self-test.
        bring_up_dram: False opens a real board to be asked what it is, its DRAM and supply left as they are.

    Raises:
        BoardError: the specification names no board, the simulated board is not built, or a real board cannot be
            brought up or fails its self-test (`host.real_board`); or the recording cannot be read or written.
        LinkError: nobody answers at the end of the link.
        RailError, TemperatureError: the supply or the temperature controller is not there, or is not for this DRAM.
        PlanError: the supply's file is wrong.
    """
    if (link := open_link(specification)) is not None:
        board = open_real(link, specification, supply, progress, bring_up_dram)
    else:
        board = _board_in_software(specification)
        if supply is not None:
            try:
                _feed(board, supply)
            except BaseException:
                board.close()
                raise
    return board if recording is None else record(board, recording)


def _feed(board: Board, file: Path) -> None:
    """Put a supply, a temperature controller or both on the bench in the place of a software board's own."""
    bench, module, bus = load_bench(file), board.module, board.bus
    if not isinstance(bus, MockBoard | SimulatedBoard):
        raise BoardError(f"a recorded board brings its supply; leave out {file}")
    if bench.supply is None and bench.temperature is None:
        raise PlanError(f"{file} says neither what feeds the DRAM nor what heats it; write [supply] or [temperature]")
    if bench.temperature is not None:
        thermostat = FollowedThermostat(open_thermostat(bench.temperature), bus)
        board.kept_by(thermostat, KeptEnvironment(thermostat, board.environment.begin_epoch))
    if (settings := bench.supply) is None:
        return
    if (settings.dram, settings.nominal) != (module.dram_type, module.nominal_vdd_mv):
        raise RailError(
            f"{file} is for {settings.dram} at {settings.nominal} mV, '{board.name}' has {module.dram_type} at "
            f"{module.nominal_vdd_mv} mV; correct dram and nominal_mv there"
        )
    opened, floor_mv = open_supply(settings)
    board.rail = rail_of(settings, FollowedSupply(opened, bus), floor_mv)


def _board_in_software(specification: str) -> Board:
    kind, *details = specification.split(":")
    if kind == "replay":
        return replay(Path(":".join(details)))
    if kind in _KINDS and 1 <= len(details) <= 2 and details[0] in PRESETS:
        seed = details[1] if len(details) == 2 else "1"
        if seed.isdecimal() and int(seed) < 1 << 32:
            return _KINDS[kind](details[0], int(seed))
    raise BoardError(
        f"'{specification}' names no board; use mock:A, mock:B or mock:C, or sim:A .. sim:C for the simulated "
        f"gateware, with a seed as in mock:A:7; or {SPECIFICATIONS} for a real board, or replay:FILE for a recorded one"
    )


def open_bus(specification: str) -> Bus:
    """The bus alone of what `open_board` opens; of a real board its DRAM need not be initialised.

    Raises:
        BoardError, LinkError: as `open_board`.
    """
    link = open_link(specification)
    return open_board(specification).bus if link is None else link

"""A scan's temperature: asked for, waited for, watched, recorded with its sensor; rail and heater when it is lost."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from host import temperature_window, thermostat
from host.board import Board
from host.boards import open_board, open_mock
from host.cli.scan_view import ScanView
from host.die_temperature import MONITORS, find_sensor
from host.plan import PlannedPoint, ScanPlan
from host.rail import Rail
from host.real_board import Surroundings
from host.scan import scan
from host.supply_file import load_supply
from host.temperature_plan import TemperaturePlan
from host.thermostat import Waiting
from profiles.errors import PlanError, TemperatureError
from profiles.geometry import Geometry
from profiles.storage import Profile
from tests.host.modbus_stand_in import Faults, ModbusStandIn
from tests.host.scpi_stand_in import ScpiStandIn

GEOMETRY = Geometry(banks=1, rows=32, columns=64, data_width=64)
PLAN = {
    "grid": [{"trcd_ps": 8000, "vdd_mv": [1350, 1100, 1050]}],
    "patterns": ["0x33"],
    "rounds": 2,
    "banks": [0],
    "rows": {"start": 0, "count": 32},
}
PLAN_TOML = """
banks = [0]
rows = { start = 0, count = 32 }
patterns = ["0x33"]
rounds = 2
[[grid]]
trcd_ps = 8000
vdd_mv = [1350, 1100, 1050]
"""


def plan_at(**temperature: object) -> ScanPlan:
    return ScanPlan.model_validate({**PLAN, "temperature": temperature})


class Weather:
    """The surroundings of a mock board, whose temperature is told by ``tell``, reading by reading."""

    sensor: str | None = "weather station"

    def __init__(self, board: Board, tell: Callable[[int], float | None]) -> None:
        self._environment, self._tell = board.environment, tell
        self.looks = 0

    def begin_epoch(self, epoch: int, activations: int = 0) -> None:
        self._environment.begin_epoch(epoch)

    def temperature_c(self) -> float | None:
        self.looks += 1
        return self._tell(self.looks - 1)


def board_in(tell: Callable[[int], float | None], keeps: bool = False) -> tuple[Board, Weather]:
    """A mock board in such weather, with no controller unless it ``keeps`` its own."""
    board = open_mock("B", 3, GEOMETRY)
    weather = Weather(board, tell)
    keeper = board.thermostat
    assert keeper is not None
    board.kept_by(keeper, weather)
    if not keeps:
        board.thermostat = None
    return board, weather


# ---- the plan --------------------------------------------------------------------------------------------------------

BAD = {
    "nothing": ({}, "give set_c, window_c, or both"),
    "empty window": ({"window_c": [50, 50]}, "which is empty"),
    "reversed window": ({"window_c": [50, 40]}, "which is empty"),
    "set outside": ({"set_c": 55, "window_c": [40, 50]}, "set_c 55 is outside window_c 40..50"),
    "too hot": ({"set_c": 95.1}, "95"),
    "too hot a window": ({"window_c": [80, 96]}, "95"),
    "too cold": ({"set_c": -1}, "0"),
    "no tries": ({"set_c": 50, "tries": 0}, "tries"),
    "not a number": ({"set_c": float("nan")}, "set_c"),
}


@pytest.mark.parametrize(("keys", "says"), BAD.values(), ids=BAD.keys())
def test_a_temperature_that_cannot_be_is_refused(keys: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        TemperaturePlan.model_validate(keys)


def test_a_window_is_about_the_set_point_and_within_jedecs_limits() -> None:
    assert TemperaturePlan(set_c=50).window == (49, 51)
    assert TemperaturePlan(set_c=84.5).window == (83.5, 85)
    assert TemperaturePlan(set_c=94.5).window == (93.5, 95)
    assert [TemperaturePlan(set_c=celsius).extended for celsius in (85, 86)] == [False, True]
    assert TemperaturePlan(set_c=50, window_c=(45, 52)).window == (45, 52)


def test_what_a_board_cannot_do_is_told_before_anything_is_touched(tmp_path: Path) -> None:
    board, weather = board_in(lambda _: 25.0)
    with pytest.raises(PlanError, match="asks for 30 °C, and no controller is there"):
        scan(board, plan_at(set_c=30), tmp_path / "p")
    weather.sensor = None
    with pytest.raises(PlanError, match="nothing tells this board's"):
        scan(board, plan_at(window_c=[20, 30]), tmp_path / "p")
    assert not (tmp_path / "p").exists()
    assert weather.looks == 0


def test_a_plan_without_a_temperature_takes_any_and_reads_as_before(tmp_path: Path) -> None:
    board, _ = board_in(lambda look: 10.0 + look)
    profile = scan(board, ScanPlan.model_validate(PLAN), tmp_path / "p")
    assert [record.temperature_sensor for record in profile.points] == ["weather station"] * 3
    assert all(record.temperature_range_c[0] < record.temperature_range_c[1] for record in profile.points)  # type: ignore[index]
    assert "temperature" not in profile.header.plan, "profiles of before go on as they were"


# ---- the window ------------------------------------------------------------------------------------------------------


def test_a_mock_is_brought_to_its_temperature_and_left_at_a_safe_one(tmp_path: Path) -> None:
    board = open_mock("B", 3, GEOMETRY)
    profile = scan(board, plan_at(set_c=70), tmp_path / "p")
    assert {record.temperature_c for record in profile.points} == {70.0}
    assert {record.temperature_sensor for record in profile.points} == {"model"}
    assert board.environment.temperature_c() == 20.0
    cold = scan(open_mock("B", 3, GEOMETRY), ScanPlan.model_validate(PLAN), tmp_path / "q")
    assert profile.points[2].errors != cold.points[2].errors, "the DRAM was as warm as it was said to be"


def test_above_85_degrees_it_refreshes_twice_as_often_and_says_so(tmp_path: Path) -> None:
    board, _ = board_in(lambda _: 90.0)
    hot = scan(board, plan_at(window_c=[88, 92]), tmp_path / "hot")
    board, _ = board_in(lambda _: 84.0)
    warm = scan(board, plan_at(window_c=[82, 85]), tmp_path / "warm")
    assert hot.header.timings_clocks["trefi"] == warm.header.timings_clocks["trefi"] // 2
    for twice, once in zip(hot.points, warm.points, strict=True):
        assert twice.refresh_interval_ps is not None
        assert once.refresh_interval_ps is not None
        assert twice.refresh_interval_ps <= 3_900_000 < once.refresh_interval_ps <= 7_800_000
        assert (twice.refreshes or 0) > 1.8 * (once.refreshes or 0) > 0
    assert board.build.timings.trefi == warm.header.timings_clocks["trefi"]
    with pytest.raises(TemperatureError, match=r"90 °C is outside 0\.\.85 °C"):
        scan(open_mock("B", 3, GEOMETRY), plan_at(set_c=90), tmp_path / "set")


def test_outside_the_window_nothing_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(temperature_window, "LOOK_S", 0.0)
    rail_mv: list[int] = []

    def tell(look: int) -> float:
        rail_mv.append(board.rail.present_mv)
        return 25.0 if look >= 6 else 31.0

    board, _ = board_in(tell)
    told: list[Waiting] = []
    programs_then: list[int] = []

    def waiting(now: Waiting) -> None:
        told.append(now)
        programs_then.append(board.usage.programs)

    profile = scan(board, plan_at(window_c=[20, 30]), tmp_path / "p", waiting=waiting)
    assert len(profile.points) == 3
    assert {(now.celsius, now.lowest_c, now.highest_c) for now in told[:-1]} == {(31.0, 20.0, 30.0)}
    assert [now.over for now in told] == [False] * 6 + [True]
    assert set(programs_then) == {0}
    assert set(rail_mv[:6]) == {1350}
    assert all(record.temperature_range_c == (25.0, 25.0) for record in profile.points)


def test_what_is_waited_for_is_shown_and_then_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(temperature_window, "LOOK_S", 0.0)
    board, _ = board_in(lambda look: 25.0 if look >= 2 else 31.0)
    plan = plan_at(window_c=[20, 30])
    view = ScanView(plan)
    states: list[str] = []
    lines: list[str] = []

    def watch(profile: Profile, planned: PlannedPoint | None) -> None:
        lines.extend(view.look(profile, planned))
        states.append(view._state())

    def waiting(now: Waiting) -> None:
        view.wait(now)
        states.append(view._state())

    scan(board, plan, tmp_path / "p", watch, waiting=waiting)
    assert ["waiting for 20 .. 30 °C: 31.0 °C" in state for state in states[:4]] == [False, True, True, False]
    assert all("25.0 °C of 20 .. 30 °C" in line for line in lines)
    assert "25.0 °C of 20 .. 30 °C" in states[-1]


def test_a_scan_says_what_it_waits_for_where_there_is_no_terminal(
    bench: Path, oven: ModbusStandIn, run_eden: Callable[..., str]
) -> None:
    text = PLAN_TOML.replace("[[grid]]", "[[scan.grid]]")
    (bench / "plan.toml").write_text(
        f'board = "mock:B:3"\noutput = "out"\n[scan]{text}[scan.temperature]\nset_c = 33.0\nwindow_c = [30, 36]\n'
    )
    said = run_eden("scan", bench / "plan.toml", "--supply", bench / "eden.toml", "--out", bench / "p")
    assert "waiting for 32.5 .. 33.5 °C: " in said
    assert said.count("°C of 33 °C (30 .. 36)") == 3
    assert [celsius for _, celsius in oven.set_points] == [33.0, 20.0]


def test_between_points_it_waits_at_nominal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second point is at 1100 mV; then it becomes too warm."""
    monkeypatch.setattr(temperature_window, "LOOK_S", 0.0)
    hot: list[int] = []

    def tell(look: int) -> float:
        done = len(Profile.open(tmp_path / "p").points) if (tmp_path / "p" / "profile.json").exists() else 0
        if done == 2 and len(hot) < 4:
            hot.append(board.rail.present_mv)
            return 31.0
        return 25.0

    board, _ = board_in(tell)
    assert len(scan(board, plan_at(window_c=[20, 30]), tmp_path / "p").points) == 3
    assert hot[1:] == [1350] * 3


@pytest.mark.parametrize("where", ["before", "during", "after"])
def test_a_test_that_left_the_window_is_repeated_and_comes_out_the_same(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = scan(open_mock("B", 3, GEOMETRY), plan_at(window_c=[10, 30]), tmp_path / "undisturbed")
    monkeypatch.setattr(temperature_window, "LOOK_S", 0.0)
    looks = {"before": 1, "during": 2, "after": 5}[where]
    board, weather = board_in(lambda look: 40.0 if look == looks else 20.0)
    profile = scan(board, plan_at(window_c=[10, 30]), tmp_path / "p")
    assert [record.errors for record in profile.points] == [record.errors for record in undisturbed.points]
    assert all(record.temperature_range_c == (20.0, 20.0) for record in profile.points), "what left is not kept"
    for index in range(3):
        assert np.array_equal(profile.cells(index).cell, undisturbed.cells(index).cell)
    calm, calm_weather = board_in(lambda look: 20.0)
    scan(calm, plan_at(window_c=[10, 30]), tmp_path / "calm")
    assert weather.looks > calm_weather.looks, "something was repeated"


def test_a_test_that_leaves_the_window_every_time_ends_the_scan(tmp_path: Path) -> None:
    board, _ = board_in(lambda look: 40.0 if look % 2 else 20.0)
    with pytest.raises(
        TemperatureError, match=r"the temperature was 40\.0 °C, outside 10\.\.30 °C, in each of 2 tries; .*tries of"
    ):
        scan(board, plan_at(window_c=[10, 30], tries=2), tmp_path / "p")
    assert board.rail.present_mv == 1350
    assert Profile.open(tmp_path / "p").points == []


def test_a_window_that_is_not_reached_in_time_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(temperature_window, "LOOK_S", 0.01)
    board, _ = board_in(lambda _: 31.0)
    with pytest.raises(TemperatureError, match=r"31\.0 °C after \d+ s, outside 20\.\.30 °C, .*weather station"):
        scan(board, plan_at(window_c=[20, 30], wait_s=0.05), tmp_path / "p")


def test_a_sensor_that_is_gone_in_mid_scan_ends_it(tmp_path: Path) -> None:
    board, _ = board_in(lambda look: 25.0 if look < 4 else None)
    with pytest.raises(TemperatureError, match="sensor is gone"):
        scan(board, plan_at(window_c=[20, 30]), tmp_path / "p")
    assert board.rail.present_mv == 1350


# ---- the sensor on the board -----------------------------------------------------------------------------------------


class Registers:
    """A bus with one register."""

    def __init__(self, value: int) -> None:
        self.value, self.asked = value, list[tuple[int, int]]()

    def read(self, address: int, count: int) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint32]]":
        self.asked.append((address, count))
        return np.array([self.value], np.uint32)

    def write(self, address: int, words: object) -> None:
        raise AssertionError("a sensor is only read")

    def close(self) -> None:
        """Nothing to release."""


@pytest.mark.parametrize(
    ("register", "reading", "celsius"),
    [
        ("xadc_temperature", 0x977, 24.8),  # UG480: 0x977 is 25 °C
        ("xadc_temperature", 0xAE4, 69.9),  # Table of alarms, rounded: reset of the over-temperature alarm at 70 °C
        ("sysmon_temperature", 605, 20.5),
    ],
)
def test_the_fpgas_sensor_reads_as_its_maker_says(register: str, reading: int, celsius: float) -> None:
    bus = Registers(reading)
    surroundings = Surroundings(find_sensor(bus, {"other": 4, register: 0xF0007000}))
    assert surroundings.temperature_c() == pytest.approx(celsius, abs=0.3)
    assert set(bus.asked) == {(0xF0007000, 1)}
    assert surroundings.sensor == MONITORS[register].name


@pytest.mark.parametrize(("register", "reading"), [("xadc_temperature", 0), ("sysmon_temperature", 1023)])
def test_a_monitor_that_does_not_convert_is_told_and_one_that_never_did_is_left_alone(
    register: str, reading: int
) -> None:
    bus = Registers(reading)
    never = Surroundings(find_sensor(bus, {register: 0}))
    assert never.sensor is None
    assert never.temperature_c() is None
    bus.value = 605
    stopped = Surroundings(find_sensor(bus, {register: 0}))
    bus.value = reading
    with pytest.raises(TemperatureError, match="which is no temperature"):
        stopped.temperature_c()


def test_a_board_without_a_sensor_tells_nothing() -> None:
    surroundings = Surroundings(find_sensor(Registers(0), {"ctrl_reset": 0}))
    assert surroundings.temperature_c() is None
    assert surroundings.sensor is None


# ---- with a controller: the whole bench ------------------------------------------------------------------------------


@pytest.fixture
def oven() -> Iterator[ModbusStandIn]:
    with ModbusStandIn() as stand_in:
        yield stand_in


@pytest.fixture
def supply() -> Iterator[ScpiStandIn]:
    with ScpiStandIn() as stand_in:
        yield stand_in


@pytest.fixture
def bench(oven: ModbusStandIn, supply: ScpiStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An `eden.toml` with both, and a plan."""
    monkeypatch.chdir(tmp_path)
    supply.file(tmp_path / "eden.toml")
    with (tmp_path / "eden.toml").open("a") as file:
        file.write(oven.table(timeout_s=1.0))
    return tmp_path


def test_a_scan_heats_waits_records_and_lets_cool(bench: Path, oven: ModbusStandIn, supply: ScpiStandIn) -> None:
    board = open_board("mock:B:3", bench / "eden.toml")
    told: list[Waiting] = []
    at_rail: list[float] = []

    def waiting(now: Waiting) -> None:
        told.append(now)
        at_rail.append(supply.out_mv())

    profile = scan(board, plan_at(set_c=45.0, window_c=[44, 46]), bench / "p", waiting=waiting)
    board.close()
    assert [celsius for _, celsius in oven.set_points] == [45.0, 20.0]
    assert told
    assert set(at_rail) == {1350.0}
    for record in profile.points:
        low, high = record.temperature_range_c or (0, 0)
        assert 44 <= low <= record.temperature_c <= high <= 46  # type: ignore[operator]
        assert record.temperature_sensor == f"Delta DTB (DTB4824, 4848, 4896, 9696) at {oven.port}, unit 1"
    assert supply.out_mv() == 1350


GONE = {
    "silent": (Faults(silent=True), "no temperature controller answers"),
    "damaged": (Faults(bad_crc=True), "no Modbus answer"),
    "exception": (Faults(exception=4), "answers exception 4"),
    "sensor unplugged": (Faults(sensor_gone=True), "has no sensor connected"),
    "too hot": (Faults(frozen_c=96.0), "above 95 °C"),
}


@pytest.mark.parametrize(("faults", "says"), GONE.values(), ids=GONE.keys())
def test_whatever_becomes_of_the_sensor_the_rail_goes_back_to_nominal(
    faults: Faults, says: str, bench: Path, oven: ModbusStandIn, supply: ScpiStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In mid-scan, with the rail low; the supply's own log tells."""
    monkeypatch.setattr(thermostat, "PATIENCE_S", 0.2)
    board = open_board("mock:B:3", bench / "eden.toml")

    def low() -> None:
        while supply.out_mv() > 1100:
            time.sleep(0.001)
        oven.faults = faults

    threading.Thread(target=low, daemon=True).start()
    with pytest.raises(TemperatureError, match=says) as caught:
        scan(board, plan_at(set_c=30.0, window_c=[20, 40]), bench / "p")
    assert min(supply.settings_sent()) <= 1100
    assert supply.settings_sent()[-1] == 1350
    assert supply.out_mv() == 1350
    if "answers" in says or "no Modbus" in says:
        assert "could not be set to 20 °C: switch its heater off by hand" in str(caught.value)
    else:
        assert oven.set_points[-1][1] == 20.0
    oven.faults = Faults()
    board.close()


def test_an_adapter_pulled_out_in_mid_scan(
    bench: Path, oven: ModbusStandIn, supply: ScpiStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thermostat, "PATIENCE_S", 0.2)
    board = open_board("mock:B:3", bench / "eden.toml")

    def low() -> None:
        while supply.out_mv() > 1100:
            time.sleep(0.001)
        oven.unplug()

    threading.Thread(target=low, daemon=True).start()
    with pytest.raises(TemperatureError, match="no temperature controller answers"):
        scan(board, plan_at(set_c=30.0, window_c=[20, 40]), bench / "p")
    assert supply.settings_sent()[-1] == 1350
    with pytest.raises(TemperatureError, match="could not be set"):
        board.close()


def test_a_rail_that_fails_leaves_the_heater_safe(bench: Path, oven: ModbusStandIn, supply: ScpiStandIn) -> None:
    supply.faults.overshoot_from_mv = 1200
    board = open_board("mock:B:3", bench / "eden.toml")
    with pytest.raises(Exception, match="back at nominal"):
        scan(board, plan_at(set_c=30.0, window_c=[20, 40]), bench / "p")
    assert oven.set_points[-1][1] == 20.0
    board.close()


def test_a_controller_alone_will_do_and_a_broken_one_lets_the_rail_go(
    bench: Path, oven: ModbusStandIn, supply: ScpiStandIn
) -> None:
    (bench / "eden.toml").write_text(oven.table())
    board = open_board("mock:B:3", bench / "eden.toml")
    assert board.environment.temperature_c() == pytest.approx(24.0, abs=0.1)
    assert isinstance(board.rail, Rail)
    board.close()
    (bench / "eden.toml").write_text("")
    with pytest.raises(PlanError, match="says neither what feeds the DRAM nor what heats it"):
        open_board("mock:B:3", bench / "eden.toml")
    (bench / "eden.toml").write_text(oven.table())
    with pytest.raises(PlanError, match=r"has no \[supply\]"):
        load_supply(bench / "eden.toml")


# ---- recorded --------------------------------------------------------------------------------------------------------


def test_a_recording_has_the_temperature_and_needs_no_controller(bench: Path, oven: ModbusStandIn) -> None:
    board = open_board("mock:B:3", bench / "eden.toml", bench / "recording")
    told: list[Waiting] = []
    profile = scan(board, plan_at(set_c=40.0), bench / "p", waiting=told.append)
    board.close()
    assert told
    assert [celsius for _, celsius in oven.set_points] == [40.0, 20.0]
    oven.unplug()
    again = scan(open_board(f"replay:{bench / 'recording'}"), plan_at(set_c=40.0), bench / "again")
    assert [record.errors for record in again.points] == [record.errors for record in profile.points]
    assert {record.temperature_sensor for record in again.points} == {
        record.temperature_sensor for record in profile.points
    }
    assert all(abs((record.temperature_c or 0) - 40) < 1 for record in again.points)
    with pytest.raises(Exception, match="was not brought to 50 °C next"):
        scan(open_board(f"replay:{bench / 'recording'}"), plan_at(set_c=50.0), bench / "other")


# ---- the command line ------------------------------------------------------------------------------------------------


def test_the_command_shows_sets_and_leaves_safe(
    bench: Path, oven: ModbusStandIn, run_eden: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    shown = run_eden("temperature", "show")
    assert "controller  Delta DTB" in shown
    assert "set to      20.0 °C" in shown
    assert "reads       24.0 °C" in shown
    assert "0..85 °C" in shown
    assert oven.set_points == []
    said = run_eden("temperature", "set", "35", "--hold-s", "0", "--yes")
    assert "waiting for 34.5 .. 35.5 °C: " in said
    assert "stable      3" in said
    assert said.rstrip().endswith("set to 20 °C")
    assert [celsius for _, celsius in oven.set_points] == [35.0, 20.0]
    oven.oven.set_c = 60.0
    assert "set to 20 °C; reads" in run_eden("temperature", "safe")
    assert oven.oven.set_c == 20.0
    with pytest.raises(SystemExit):
        run_eden("temperature", "set", "86", "--yes")
    assert "86 °C is outside 0..85 °C" in capsys.readouterr().err
    listed = run_eden("temperature", "presets")
    assert "delta-dtb" in listed
    assert "0x1000" in listed
    assert "Manual" in listed


def test_nobody_to_ask_means_no(bench: Path, oven: ModbusStandIn, run_eden: Callable[..., str]) -> None:
    with pytest.raises(SystemExit):
        run_eden("temperature", "set", "35")
    assert oven.set_points == []

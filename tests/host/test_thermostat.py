"""A temperature controller is spoken to as its manual says, heats within a DRAM's limits, and is left safe."""

import math
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from host import thermostat
from host.controller_presets import PRESETS, Register
from host.modbus import ModbusController
from host.temperature_file import TemperatureSettings
from host.thermostat import EXTENDED_C, Holding, Thermostat, Waiting
from host.toml_file import first_problem
from profiles.errors import TemperatureError
from tests.host.modbus_stand_in import Faults, ModbusStandIn, crc16

FAMILIES = ("delta-dtb", "watlow-ez-zone", "eurotherm")


@pytest.fixture
def oven() -> Iterator[ModbusStandIn]:
    with ModbusStandIn() as stand_in:
        yield stand_in


def settings_of(stand_in: ModbusStandIn, **more: object) -> TemperatureSettings:
    return TemperatureSettings.model_validate(stand_in.settings(**more))


def thermostat_of(stand_in: ModbusStandIn, **more: object) -> Thermostat:
    settings = settings_of(stand_in, **more)
    return Thermostat(ModbusController(settings), settings.holding)


def brought_to_25(warm: Thermostat, then: Callable[[], None]) -> None:
    """Measures after ``then``, which happens while it is guarded."""
    with warm.guarded():
        warm.bring_to(25.0)
        then()
        warm.measure_c()


def set_points(stand_in: ModbusStandIn) -> list[float]:
    return [celsius for _, celsius in stand_in.set_points]


# ---- numbers and frames ----------------------------------------------------------------------------------------------

REGISTERS = st.builds(
    Register,
    address=st.integers(0, 0xFFFF),
    type=st.sampled_from(["int16", "uint16", "float32"]),
    scale=st.sampled_from([1.0, 0.1, 0.01, 0.5]),
    low_word_first=st.booleans(),
)


@given(REGISTERS, st.floats(-300, 300, allow_nan=False))
def test_what_is_encoded_is_decoded_to_the_nearest_number(register: Register, degrees: float) -> None:
    try:
        words = register.encode(degrees)
    except TemperatureError:
        assert register.type == "uint16" or abs(degrees / register.scale) > 32767
        assume(False)
    assert len(words) == register.words
    assert all(0 <= word <= 0xFFFF for word in words)
    nearest = 1e-4 if register.type == "float32" else register.scale / 2
    assert register.decode(words) == pytest.approx(degrees, abs=nearest * (1 + 1e-9))
    assert register.encode(register.decode(words)) == words


@given(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF))
def test_words_stand_for_what_the_standards_say(high: int, low: int) -> None:
    expected = struct.unpack(">f", struct.pack(">HH", high, low))[0]
    for register, words in (
        (Register(address=1, type="float32"), [high, low]),
        (Register(address=1, type="float32", low_word_first=True), [low, high]),
    ):
        found = register.decode(words)
        assert found == expected or (math.isnan(found) and math.isnan(expected))
    assert Register(address=1).decode([high]) == struct.unpack(">h", struct.pack(">H", high))[0]


@pytest.mark.parametrize("degrees", [math.nan, math.inf, 4000.0, -4000.0])
def test_a_number_that_does_not_fit_is_refused(degrees: float) -> None:
    with pytest.raises(TemperatureError, match="counts of register 7"):
        Register(address=7, scale=0.1).encode(degrees)


def test_the_stand_ins_checksum_is_the_specifications() -> None:
    """The example of MODBUS over Serial Line V1.02, 6.2.2 (02 07: 41 12), and of a DTB's manual."""
    assert crc16(bytes([0x02, 0x07])) == bytes([0x41, 0x12])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_read_and_set(family: str) -> None:
    with ModbusStandIn(family=family, unit=7) as stand_in:
        stand_in.oven.settle(37.5)
        controller = ModbusController(settings_of(stand_in))
        assert controller.measure_c() == pytest.approx(37.5, abs=0.1)
        assert controller.set_point_c() == pytest.approx(37.5, abs=0.01)
        controller.set_celsius(-4.2)
        controller.set_celsius(-4.2)
        assert controller.set_point_c() == pytest.approx(-4.2, abs=0.001)
        assert set_points(stand_in) == [pytest.approx(-4.2, abs=0.001)], "the same set-point is not written twice"
        controller.close()
        controller.close()
        assert stand_in.hurried == 0, "frames were told apart by silence"
        assert all(frame[0] == 7 and crc16(frame[:-2]) == frame[-2:] for frame in stand_in.requests)


def test_a_read_is_the_frame_that_the_specification_has(oven: ModbusStandIn) -> None:
    controller = ModbusController(settings_of(oven))
    controller.close()
    assert oven.requests[0] == bytes.fromhex("01 03 10 00 00 01") + crc16(bytes.fromhex("01 03 10 00 00 01"))


def test_a_watlow_tells_its_unit() -> None:
    for fahrenheit in (True, False):
        with ModbusStandIn(family="watlow-ez-zone", fahrenheit=fahrenheit) as stand_in:
            stand_in.oven.settle(50.0)
            controller = ModbusController(settings_of(stand_in))
            assert controller.measure_c() == pytest.approx(50.0, abs=0.1)
            controller.set_celsius(60.0)
            assert set_points(stand_in) == [60.0]
            controller.close()


# ---- set and wait ----------------------------------------------------------------------------------------------------


def test_it_waits_until_the_temperature_is_stable(oven: ModbusStandIn) -> None:
    told: list[Waiting] = []
    warm = thermostat_of(oven)
    with warm.guarded():
        reading = warm.bring_to(50.0, told.append)
        assert abs(reading - 50.0) <= 0.5
        assert abs(oven.now_c() - 50.0) <= 1.0
        assert set_points(oven) == [50.0]
    assert set_points(oven) == [50.0, 20.0]
    near = [abs(each.celsius - 50.0) <= 0.5 for each in told]
    waited = [each.waited_s for each in told]
    first_stable = max(k for k in range(len(told)) if k == 0 or not near[k - 1])
    assert waited[-1] - waited[first_stable] >= 0.2 - 0.1, "it counts from when it was last away"
    assert {(each.lowest_c, each.highest_c) for each in told} == {(49.5, 50.5)}
    assert any(each.left_s is not None for each in told)
    assert all(each.left_s is None or each.left_s >= 0 for each in told)
    warm.close()


def test_an_estimate_is_that_of_a_body_that_is_heated() -> None:
    """Planted: an exponential of 100 s from 20 to 50 °C is within 0.5 °C after 100 ln(60) s."""
    approach = thermostat._Approach(50.0, Holding(tolerance_c=0.5, stable_s=10.0))
    for second in range(100):
        approach.look(float(second), 50.0 - 30.0 * math.exp(-second / 100))
    expected = 100 * math.log(60) - 99 + 10
    assert approach.left_s(99.0) == pytest.approx(expected, rel=0.35)
    for second in range(100, 120):
        approach.look(float(second), 40.0 - second / 10)
    assert thermostat._Approach(50.0, Holding()).stable_for(0.0) < 0


def test_a_ramp_goes_in_steps_of_one_degree(oven: ModbusStandIn) -> None:
    oven.oven.settle(30.0)
    warm = thermostat_of(oven, ramp_c_per_min=100.0, wait_s=30.0)
    begun = time.monotonic()
    warm.bring_to(33.0)
    took = time.monotonic() - begun
    sent = set_points(oven)
    assert sent[-1] == 33.0
    assert all(abs(after - before) <= 1.01 for before, after in pairwise([30.0, *sent]))
    assert took >= 3 / 100 * 60 * 2 / 3
    warm.close()


@given(st.floats(0, 85), st.floats(0, 85), st.one_of(st.none(), st.floats(0.1, 100)), st.floats(0.01, 50))
def test_a_ramp_is_monotonic_and_ends_where_it_should(
    first: float, last: float, rate: float | None, look_s: float
) -> None:
    steps = thermostat._Steps(first, last, rate)
    given_steps: list[float] = []
    at = 0.0
    while not steps.done:
        if (step := steps.next(at)) is not None:
            given_steps.append(step)
        at += look_s
        assert at < steps.seconds + look_s * (abs(last - first) + 3)
    assert given_steps[-1] == last
    assert steps.next(1e9) is None
    path = [first, *given_steps]
    assert all((after - before) * (last - first) >= -1e-9 for before, after in pairwise(path))
    if rate is not None:
        assert all(abs(after - before) <= 1 + 1e-9 for before, after in pairwise(path))


@pytest.mark.parametrize("celsius", [-0.1, 85.1, 95.1, math.nan])
def test_outside_the_limits_nothing_is_sent(celsius: float, oven: ModbusStandIn) -> None:
    warm = thermostat_of(oven)
    before = len(oven.requests)
    with pytest.raises(TemperatureError, match=r"is outside 0\.\.85 °C"):
        warm.bring_to(celsius)
    assert len(oven.requests) == before
    warm.close()
    assert oven.set_points == []


@pytest.mark.parametrize("keys", [{"highest_c": 95.1}, {"lowest_c": -1}, {"safe_c": 96}, {"lowest_c": 30}])
def test_no_file_goes_beyond_what_a_dram_takes(keys: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TemperatureSettings.model_validate({"preset": "delta-dtb", "port": "x", **keys})
    assert TemperatureSettings.model_validate({"preset": "delta-dtb", "port": "x", "highest_c": EXTENDED_C})


BAD = {
    "no registers": ({"port": "x"}, "give preset, or both"),
    "one register": ({"port": "x", "process_value": {"address": 1}}, "give preset, or both"),
    "unknown preset": ({"port": "x", "preset": "acme"}, "is none of delta-dtb"),
    "both": ({"port": "x", "preset": "delta-dtb", "degrees": "F"}, "leave out one"),
    "unit 0 is everyone": ({"port": "x", "preset": "delta-dtb", "unit": 0}, "unit"),
    "register beyond": ({"port": "x", "set_point": {"address": 65536}}, "set_point.address"),
    "input": (
        {"port": "x", "process_value": {"address": 1}, "set_point": {"address": 1, "table": "input"}},
        "cannot be written",
    ),
    "unknown key": ({"port": "x", "preset": "delta-dtb", "bauds": 1}, "unknown key 'bauds'"),
}


@pytest.mark.parametrize(("keys", "says"), BAD.values(), ids=BAD.keys())
def test_a_bad_table_is_one_clear_line(keys: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TemperatureSettings.model_validate(keys)
    assert says in first_problem(caught.value)


def test_every_preset_names_its_manual() -> None:
    for preset in PRESETS.values():
        assert "Manual" in preset.source
        assert preset.set_point.table == "holding"


# ---- what goes wrong -------------------------------------------------------------------------------------------------

WRONG = {
    "silent": (Faults(silent=True), "no temperature controller answers at .*, unit 1, to reading register 4096"),
    "damaged": (Faults(bad_crc=True), "bytes that are no Modbus answer to reading register 4096, 3 times"),
    "cut short": (Faults(truncated=True), "bytes that are no Modbus answer"),
    "another unit": (Faults(other_unit=9), "bytes that are no Modbus answer"),
    "exception": (Faults(exception=2), r"answers exception 2 \(illegal data address\) to reading register 4096"),
    "always busy": (Faults(exception=6), r"answers exception 6 \(server device busy\)"),
    "no sensor": (Faults(sensor_gone=True), r"has no sensor connected \(it reads 0x8003\)"),
    "no such temperature": (Faults(frozen_c=-200.0), "reads -200 °C, outside -60..200 °C"),
}


@pytest.mark.parametrize(("faults", "says"), WRONG.values(), ids=WRONG.keys())
def test_a_sensor_that_is_gone_is_a_clear_error(faults: Faults, says: str, oven: ModbusStandIn) -> None:
    warm = thermostat_of(oven, timeout_s=0.4)
    warm.measure_c()
    oven.faults = faults
    with pytest.raises(TemperatureError, match=says) as caught:
        warm.measure_c()
    assert "check" in str(caught.value)
    assert "\n" not in str(caught.value)
    oven.faults = Faults()
    assert warm.measure_c() == pytest.approx(24.0, abs=0.1), "it answers again, and nothing late is taken for an answer"
    warm.close()


@pytest.mark.parametrize("faults", [Faults(silent=True), Faults(bad_crc=True), Faults(exception=1)])
def test_what_is_not_there_is_not_opened(faults: Faults, oven: ModbusStandIn) -> None:
    oven.faults = faults
    with pytest.raises(TemperatureError):
        ModbusController(settings_of(oven, timeout_s=0.4))
    oven.faults = Faults()
    ModbusController(settings_of(oven)).close()


@pytest.mark.parametrize("faults", [Faults(busy_times=2), Faults(corrupt_times=2)])
def test_a_passing_disturbance_is_asked_again(faults: Faults, oven: ModbusStandIn) -> None:
    warm = thermostat_of(oven, timeout_s=0.4)
    oven.faults = faults
    assert warm.measure_c() == pytest.approx(24.0, abs=0.1)
    warm.close()


def test_an_adapter_that_is_pulled_out_is_a_clear_error(oven: ModbusStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thermostat, "PATIENCE_S", 0.3)
    warm = thermostat_of(oven, timeout_s=0.4)
    with pytest.raises(
        TemperatureError, match=r"no temperature controller answers.*; and .* could not be set to 20 °C"
    ):
        brought_to_25(warm, oven.unplug)


def test_a_port_that_is_not_there_or_taken_is_named(oven: ModbusStandIn, tmp_path: Path) -> None:
    with pytest.raises(TemperatureError, match=r"no temperature controller answers at .*nowhere"):
        ModbusController(settings_of(oven, port=str(tmp_path / "nowhere"), timeout_s=0.4))
    first = ModbusController(settings_of(oven))
    with pytest.raises(TemperatureError, match="who else uses the port"):
        ModbusController(settings_of(oven, timeout_s=0.4))
    first.measure_c()
    first.close()


def test_a_frozen_sensor_is_told_while_it_is_waited_for(oven: ModbusStandIn) -> None:
    oven.faults = Faults(frozen_c=31.5)
    warm = thermostat_of(oven, frozen_s=0.3)
    with pytest.raises(TemperatureError, match=r"has read 31.5 °C without any change"), warm.guarded():
        warm.bring_to(50.0)
    assert set_points(oven) == [50.0, 20.0]
    warm.close()


def test_a_heater_without_power_ends_in_an_error(oven: ModbusStandIn) -> None:
    oven.oven.heater = False
    oven.oven.celsius = 40.0
    warm = thermostat_of(oven, wait_s=0.3)
    with pytest.raises(TemperatureError, match=r"°C after \d+ s, which is not within 0.5 °C of 50 °C"), warm.guarded():
        warm.bring_to(50.0)
    assert set_points(oven) == [50.0, 20.0]
    warm.close()


@pytest.mark.parametrize("faults", [Faults(keys_locked=True), Faults(deaf_above_c=40.0)])
def test_a_set_point_that_is_not_taken_is_told(faults: Faults, oven: ModbusStandIn) -> None:
    warm = thermostat_of(oven)
    oven.faults = faults
    with pytest.raises(TemperatureError, match="after being set to 50 °C; check its set-point limits"):
        warm.bring_to(50.0)
    oven.faults = Faults()
    warm.close()


def test_hotter_than_a_dram_may_be_it_is_made_safe_at_once(oven: ModbusStandIn) -> None:
    warm = thermostat_of(oven)
    with pytest.raises(TemperatureError, match=r"reads 95\.4 °C, above 95 °C.*set to 20 °C"):
        brought_to_25(warm, lambda: setattr(oven, "faults", Faults(frozen_c=95.4)))
    assert set_points(oven)[-1] == 20.0
    warm.close()


@pytest.mark.parametrize("leaving", [SystemExit(130), KeyboardInterrupt(), ValueError("x"), None])
def test_it_is_left_safe_on_every_exit(leaving: BaseException | None, oven: ModbusStandIn) -> None:
    warm = thermostat_of(oven, safe_c=15.0)

    def leave() -> None:
        if leaving is not None:
            raise leaving

    with nullcontext() if leaving is None else pytest.raises(type(leaving)):
        brought_to_25(warm, leave)
    assert set_points(oven) == [25.0, 15.0]
    warm.close()


def test_one_that_was_only_read_is_never_written(oven: ModbusStandIn) -> None:
    warm = thermostat_of(oven)
    oven.oven.set_c = 37.0
    with warm.guarded():
        warm.measure_c()
        warm.set_point_c()
    warm.close()
    assert oven.set_points == []


def test_after_a_disturbance_at_the_end_it_is_still_made_safe(oven: ModbusStandIn) -> None:
    """A controller that is silent for a moment as the scan ends."""
    warm = thermostat_of(oven, timeout_s=0.05)
    warm.bring_to(25.0)
    oven.faults = Faults(silent=True)
    threading.Timer(0.5, lambda: setattr(oven, "faults", Faults())).start()
    warm.close()
    assert set_points(oven) == [25.0, 20.0]

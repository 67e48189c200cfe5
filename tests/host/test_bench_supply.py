"""A bench supply is spoken to in its maker's words, and is back at nominal however a scan ends: its own log says so."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyvisa.constants import ResourceAttribute

from host import guardian
from host.boards import open_board
from host.guardian import GuardedSupply, _Guardian, _Lines
from host.plan import ScanPlan
from host.rail import LIMITS, Measurement, Rail, Ramp
from host.scan import scan
from host.scpi import ScpiSupply
from host.supplies import FixedSupply, open_supply, rail_of
from host.supply_file import FixedSettings, ScpiSettings, load_supply
from host.toml_file import load_toml
from profiles.errors import PlanError, RailError
from profiles.storage import Profile
from tests.host.scpi_stand_in import GRAMMARS, Faults, ScpiStandIn

RESTORED_S = 30.0  # after this a test gives up waiting for nominal: a hang, not a speed (20 ms are usual)
PLAN = """
banks = [0, 1]
patterns = ["0x00"]
rounds = 2
rows = { count = 8 }
[[grid]]
trcd_ps = 10_000
vdd_mv = [1350, 1100, 1040]
"""


def settings_of(stand_in: ScpiStandIn, channel: int = 1, **more: object) -> ScpiSettings:
    return ScpiSettings(**stand_in.settings(channel, **more))  # type: ignore[arg-type]


def rail_over(stand_in: ScpiStandIn, **more: object) -> Rail:
    wanted = settings_of(stand_in, **more)
    return rail_of(wanted, *open_supply(wanted))


@pytest.fixture
def supply() -> Iterator[ScpiStandIn]:
    with ScpiStandIn() as stand_in:
        yield stand_in


# ---- dialects --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", GRAMMARS)
def test_every_make_is_set_and_read(dialect: str) -> None:
    channel = 1 if dialect == "keysight-e36100" else 2
    with ScpiStandIn(dialect) as stand_in:
        opened = ScpiSupply(settings_of(stand_in, channel))
        assert opened.identity == stand_in.identity
        assert opened.set_point_mv() == 1350
        opened.set_millivolts(1230)
        assert stand_in.out_mv(channel) == opened.set_point_mv() == 1230
        measured = opened.measure()
        assert (measured.millivolts, measured.uncertainty_mv, measured.milliamperes) == (1230, 1.7, 246)
        assert measured.milliwatts == pytest.approx(1.23 * 246)
        opened.close()
        assert [stand_in.out_mv(each) for each in (1, 2, 3) if each != channel] == [1350, 1350]
        assert not [text for _, text in stand_in.log if "OUTP" in text and "?" not in text]


@pytest.mark.parametrize("dialect", GRAMMARS)
def test_another_make_is_refused_and_not_set(dialect: str) -> None:
    for other in GRAMMARS:
        if other != dialect:
            with ScpiStandIn(other) as stand_in:
                with pytest.raises(RailError, match="correct resource or dialect"):
                    ScpiSupply(settings_of(stand_in, dialect=dialect))
                assert [text for _, text in stand_in.log] == ["*IDN?"]


@pytest.mark.parametrize("dialect", GRAMMARS)
def test_an_output_that_is_off_or_is_not_the_drams_is_refused_and_not_set(dialect: str) -> None:
    with ScpiStandIn(dialect) as stand_in:
        stand_in.outputs[1].on = False
        with pytest.raises(RailError, match=r"output 1 of .* is off"):
            ScpiSupply(settings_of(stand_in))
        stand_in.outputs[1].on = True
        stand_in.outputs[1].set_mv = 5000
        with pytest.raises(RailError, match=r"5000 mV, outside 900\.\.1425 mV of DDR3L"):
            ScpiSupply(settings_of(stand_in))
        assert stand_in.settings_sent() == []


def test_a_channel_that_the_supply_lacks_is_refused(supply: ScpiStandIn) -> None:
    with pytest.raises(RailError, match=r"channel 4 is outside 1\.\.3"):
        ScpiSupply(settings_of(supply, 4))


def test_nobody_there_is_one_clear_line() -> None:
    with ScpiStandIn() as stand_in:
        wanted = settings_of(stand_in)
    with pytest.raises(RailError, match="no supply answers at TCPIP::127") as caught:
        ScpiSupply(wanted)
    assert "\n" not in str(caught.value)


def test_no_question_waits_for_the_setting_before_it_to_be_acknowledged(supply: ScpiStandIn) -> None:
    opened = ScpiSupply(settings_of(supply))
    for _ in range(2):
        assert opened._connection().get_visa_attribute(ResourceAttribute.tcpip_nodelay)
        opened._disconnect()  # as after a failure
    opened.close()


def test_after_a_time_out_no_late_answer_is_taken_for_the_next(supply: ScpiStandIn) -> None:
    opened = ScpiSupply(settings_of(supply, timeout_s=0.2))
    hear = supply._hear

    def late(command: str) -> str | None:
        time.sleep(0.4)
        return hear(command)

    supply._hear = late  # type: ignore[method-assign]
    with pytest.raises(RailError, match=r"within 0\.2 s"):
        opened.measure()
    supply._hear = hear  # type: ignore[method-assign]
    time.sleep(0.3)
    assert opened.measure().milliamperes == 270
    opened.close()


# ---- through the rail, in this process -------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(880, 1470), max_size=4), st.integers(1000, 1300), st.integers(5, 25))
def test_any_sequence_of_voltages_keeps_to_limits_and_steps(voltages: list[int], floor_mv: int, step_mv: int) -> None:
    with ScpiStandIn() as stand_in:
        wanted = settings_of(stand_in, floor_mv=floor_mv, step_mv=step_mv, settle_s=0.1)
        rail = rail_of(wanted, ScpiSupply(wanted))
        with rail.guarded():
            for millivolts in voltages:
                if floor_mv <= millivolts <= 1425:
                    assert rail.set(millivolts).millivolts == pytest.approx(stand_in.out_mv())
                    assert stand_in.out_mv() == millivolts
                else:
                    with pytest.raises(RailError, match=f"outside {floor_mv}..1425 mV"):
                        rail.set(millivolts)
        rail.close()
        sent = [1350.0, *stand_in.settings_sent()]
        assert all(floor_mv <= each <= 1425 for each in sent[1:] if each != 1350)
        assert all(abs(b - a) <= step_mv for a, b in pairwise(sent) if b != 1350)
        assert sent[-1] == stand_in.out_mv() == 1350


@pytest.mark.parametrize("dialect", ["rigol-dp800", "siglent-spd3303x-e"])
def test_a_supply_of_coarse_steps_is_moved_in_them_or_not_at_all(dialect: str) -> None:
    with ScpiStandIn(dialect) as stand_in:
        wanted = settings_of(stand_in, step_mv=25)
        rail = rail_of(wanted, ScpiSupply(wanted))
        with pytest.raises(RailError, match="1304 mV cannot be set: this supply sets 10 mV at a time"):
            rail.set(1304)
        assert stand_in.settings_sent() == []
        assert rail.set(1300).millivolts == 1300
        assert stand_in.settings_sent() == [1330, 1310, 1300]
        rail.close()
        assert stand_in.out_mv() == 1350


def test_a_supply_found_elsewhere_than_at_nominal_is_only_moved_by_hand(supply: ScpiStandIn) -> None:
    """It may feed another DRAM: 1.5 V is nominal of one and harmful to another."""
    supply.outputs[1].set_mv = supply.outputs[1].out_mv = 1300
    wanted = settings_of(supply)
    rail = rail_of(wanted, ScpiSupply(wanted))
    with pytest.raises(RailError, match=r"set to 1300 mV, not to nominal, 1350 mV of DDR3L; nothing"), rail.guarded():
        rail.set(1200)
    rail.close()
    assert (supply.settings_sent(), supply.out_mv()) == ([], 1300)
    rail = rail_of(wanted, ScpiSupply(wanted))
    rail.restore()
    rail.close()
    assert supply.out_mv() == 1350


def test_a_ramp_keeps_to_its_slew(supply: ScpiStandIn) -> None:
    wanted = settings_of(supply, slew_mv_per_s=500)
    rail = rail_of(wanted, ScpiSupply(wanted))
    begun = time.monotonic()
    rail.set(1250)
    assert time.monotonic() - begun >= 100 / 500
    times = [when for when, _, _ in supply.voltages]
    assert np.diff(times).min() >= 0.9 * 25 / 500
    rail.close()


def test_no_option_reaches_beyond_the_limits(supply: ScpiStandIn) -> None:
    for spoilt in ({"step_mv": 26}, {"slew_mv_per_s": 20_000}, {"tolerance_mv": 30}, {"floor_mv": 1400}):
        with pytest.raises(ValueError, match=next(iter(spoilt)).split("_")[0]):
            settings_of(supply, **spoilt)
    with pytest.raises(RailError):
        Ramp(step_mv=26)
    with pytest.raises(RailError):
        Ramp(slew_mv_per_s=10_001)
    with pytest.raises(RailError, match=r"1600 mV is outside 1000\.\.1425 mV"):
        rail_over(supply, nominal_mv=1600)
    wanted = settings_of(supply, floor_mv=950)
    rail = rail_of(wanted, ScpiSupply(wanted), board_floor_mv=1140)
    with pytest.raises(RailError, match=r"outside 1140\.\.1425 mV"):
        rail.set(1100)
    rail.close()
    assert all(1000 <= each <= 1425 for each in supply.settings_sent())


def test_limits_lie_below_what_jedec_says_destroys() -> None:
    """Of makers' data sheets, DC: Micron's MT9KDF12872PZ and Alliance's AS4C512M16D3L, Transcend's TS1GSH72V1H."""
    stated = {"DDR3": (1500, 1575, 1975), "DDR3L": (1350, 1425, 1975), "DDR4": (1200, 1260, 1500)}
    for family, (nominal_mv, highest_mv, absolute_mv) in stated.items():
        limits = LIMITS[family]
        assert (limits.nominal_mv, limits.highest_mv) == (nominal_mv, highest_mv)
        assert limits.absolute_mv <= absolute_mv
    for limits in LIMITS.values():
        assert limits.lowest_mv < limits.nominal_mv < limits.highest_mv < limits.absolute_mv


class Settling:
    """Takes a while to get where it is set; may end up elsewhere."""

    identity = "settling"

    def __init__(self, readings: dict[int, list[float]]) -> None:
        self._readings, self._left, self.sets = readings, [1350.0], list[int]()

    def set_millivolts(self, millivolts: int) -> None:
        self.sets.append(millivolts)
        self._left = list(self._readings.get(millivolts, [float(millivolts)]))

    def measure(self) -> Measurement:
        return Measurement(self._left.pop(0) if len(self._left) > 1 else self._left[0], 0.1)

    def set_point_mv(self) -> float:
        return self.sets[-1]

    def close(self) -> None:
        pass


def test_a_slow_output_is_waited_for_until_it_is_steady() -> None:
    supply = Settling({1330: [1349.0, 1340.0, 1334.0, 1331.0, 1330.4, 1330.2]})
    rail = Rail(supply, "DDR3L", 1350, ramp=Ramp(settle_s=5.0))
    assert rail.set(1330).millivolts == 1330.4
    assert supply.sets == [1330]


def test_a_reading_that_is_harmful_is_not_waited_out() -> None:
    supply = Settling({1330: [2000.0, 1330.0, 1330.0]})
    rail = Rail(supply, "DDR3L", 1350, ramp=Ramp(settle_s=5.0))
    with pytest.raises(RailError, match=r"reads 2000\.0 mV .* back at nominal"):
        rail.set(1330)
    assert supply.sets == [1330, 1350]


def test_a_rail_that_does_not_come_back_is_not_called_nominal() -> None:
    supply = Settling({1330: [1300.0], 1350: [1300.0]})
    with pytest.raises(RailError, match=r"nominal could not be had back: .*switch the supply off"):
        Rail(supply, "DDR3L", 1350).set(1330)


# ---- through the guardian --------------------------------------------------------------------------------------------


def test_a_normal_end_and_an_exception_are_nominal(supply: ScpiStandIn) -> None:
    rail = rail_over(supply)
    with rail.guarded():
        assert rail.set(1200).milliamperes == 240
    assert supply.out_mv() == 1350
    with pytest.raises(ZeroDivisionError), rail.guarded():
        _ = rail.set(1100).millivolts / 0
    assert supply.out_mv() == 1350
    rail.close()
    assert min(supply.settings_sent()) == 1100


def told(error: BaseException | None) -> str:
    """Everything that an error and those before it say."""
    return "" if error is None else f"{error} | {told(error.__context__)}"


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ({"overshoot_from_mv": 1250}, r"reads 1700\.0 mV after being set to 1250 mV .* back at nominal"),
        ({"reads_wrong_mv": -30.0}, "reads 12.*back at nominal"),
        ({"garbled": True}, r"answers '\?\?\?\?'"),
        ({"deaf_below_mv": 1260.0}, "the supply says 1275 mV after being set to 1250 mV"),
        ({"hangs_up": True}, "no supply answers"),
        ({"silent_from_mv": 1250, "silent_s": 1.5}, "no supply answers"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_supply_that_fails_is_back_at_nominal(fault: dict[str, object], says: str, supply: ScpiStandIn) -> None:
    rail = rail_over(supply, timeout_s=0.5)
    rail.set(1300)
    supply.faults = Faults(**fault)  # type: ignore[arg-type]
    mended = threading.Timer(2.0, lambda: setattr(supply, "faults", Faults()))
    mended.start()
    with pytest.raises(RailError) as caught:
        rail.set(1100)
    with (
        pytest.raises(RailError) if "garbled" in fault else nullcontext()
    ):  # what cannot be read back is not vouched for
        rail.close()
    assert re.search(says, told(caught.value))
    mended.join()
    supply.wait_for(1350, RESTORED_S)
    assert supply.settings_sent()[-1] == 1350


SCRIPT = """
import sys
from pathlib import Path
from host.boards import open_board
from host.plan import ScanPlan
from host.scan import scan
from host.toml_file import load_toml
folder = Path(sys.argv[1])
board = open_board("mock:B:5", folder / "eden.toml")
print("ready", flush=True)
try:
    scan(board, load_toml(folder / "plan.toml", ScanPlan), folder / "profile")
finally:
    board.close()
"""


@pytest.fixture
def folder(supply: ScpiStandIn, tmp_path: Path) -> Path:
    supply.file(tmp_path / "eden.toml")
    (tmp_path / "plan.toml").write_text(PLAN)
    return tmp_path


def start(folder: Path, script: str) -> "subprocess.Popen[bytes]":
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    return child


def until_low(supply: ScpiStandIn, millivolts: float = 1345) -> None:
    end = time.monotonic() + 60
    while supply.out_mv() >= millivolts:
        assert time.monotonic() < end
        time.sleep(0.001)


RAMPS = """
import sys
from pathlib import Path
from host.supplies import open_supply, rail_of
from host.supply_file import load_supply
settings = load_supply(Path(sys.argv[1]) / "eden.toml")
rail = rail_of(settings, *open_supply(settings))
print("ready", flush=True)
with rail.guarded():
    while True:
        rail.set(1040)
        rail.set(1300)
"""


@pytest.mark.slow
def test_killed_at_any_moment_the_rail_comes_back(supply: ScpiStandIn, folder: Path) -> None:
    rng = np.random.default_rng(3)
    for _ in range(6):
        child = start(folder, RAMPS)
        until_low(supply)
        time.sleep(float(rng.uniform(0, 0.3)))
        os.kill(child.pid, signal.SIGKILL)
        killed = time.monotonic()
        child.wait()
        supply.wait_for(1350, RESTORED_S)
        time.sleep(0.3)
        assert supply.settings_sent()[-1] == 1350
        assert not [when for when, _, out in supply.voltages if out != 1350 and when > killed + RESTORED_S]


@pytest.mark.slow
def test_a_killed_scan_goes_on_from_nominal(supply: ScpiStandIn, folder: Path) -> None:
    child = start(folder, SCRIPT)
    until_low(supply, 1101)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    supply.wait_for(1350, RESTORED_S)
    child = start(folder, SCRIPT)
    child.communicate()
    assert child.returncode == 0
    points = Profile.open(folder / "profile").points
    assert [record.vdd_measured_mv for record in points] == [1350, 1100, 1040]
    assert points[2].errors > points[1].errors
    assert supply.out_mv() == 1350


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_or_terminated_the_rail_comes_back(number: int, supply: ScpiStandIn, folder: Path) -> None:
    """SIGTERM has no handler in this script: the guardian alone stands for it."""
    child = start(folder, RAMPS)
    until_low(supply)
    os.kill(child.pid, number)
    child.communicate()
    assert child.returncode != 0
    supply.wait_for(1350, RESTORED_S)


@pytest.mark.slow
def test_a_scan_killed_while_the_supply_is_silent_is_waited_out_by_the_guardian(
    supply: ScpiStandIn, folder: Path
) -> None:
    supply.file(folder / "eden.toml", timeout_s=0.5)
    child = start(folder, RAMPS)
    until_low(supply)
    supply.faults = Faults(silent=True)
    os.kill(child.pid, signal.SIGKILL)
    time.sleep(2.0)
    assert supply.out_mv() < 1350
    supply.faults = Faults()
    supply.wait_for(1350, RESTORED_S)
    assert child.stderr is not None
    assert b"is back at 1350 mV (the scan is gone)" in child.stderr.readline()
    child.communicate()


def test_a_scan_records_what_the_supply_measured(supply: ScpiStandIn, folder: Path) -> None:
    board = open_board("mock:B:5", folder / "eden.toml")
    try:
        profile = scan(board, load_toml(folder / "plan.toml", ScanPlan), folder / "profile")
    finally:
        board.close()
    for record in profile.points:
        assert (record.vdd_measured_mv, record.vdd_uncertainty_mv) == (record.point.vdd_mv, 1.7)
        assert record.current_ma == pytest.approx(record.point.vdd_mv / 5)
        assert record.power_mw == pytest.approx(record.point.vdd_mv**2 / 5000)
    assert supply.out_mv() == 1350


def test_a_scan_with_a_voltage_below_the_floor_touches_nothing(supply: ScpiStandIn, folder: Path) -> None:
    supply.file(folder / "eden.toml", floor_mv=1060)
    board = open_board("mock:B:5", folder / "eden.toml")
    with pytest.raises(RailError, match=r"1040 mV is outside 1060\.\.1425 mV"):
        scan(board, load_toml(folder / "plan.toml", ScanPlan), folder / "profile")
    assert supply.settings_sent() == []
    assert not (folder / "profile").exists()
    board.close()


def test_a_second_process_is_refused_until_the_first_lets_go(supply: ScpiStandIn) -> None:
    first = GuardedSupply(settings_of(supply))
    with pytest.raises(RailError, match="another process holds the supply"):
        GuardedSupply(settings_of(supply))
    first.set_millivolts(1300)
    first.close()
    assert supply.out_mv() == 1350
    with pytest.raises(RailError, match="let go of"):
        first.set_millivolts(1300)
    first.close()
    GuardedSupply(settings_of(supply)).close()


def test_without_its_guardian_the_supply_only_goes_to_nominal(supply: ScpiStandIn) -> None:
    rail = rail_over(supply)
    guarded = rail._supply
    assert isinstance(guarded, GuardedSupply)
    rail.set(1200)
    guarded._guardian.kill()
    guarded._guardian.wait()
    with pytest.raises(RailError, match="guardian is gone"):
        rail.set(1100)
    rail.close()
    assert supply.out_mv() == 1350


def test_a_guardian_that_is_told_to_end_restores_first(supply: ScpiStandIn) -> None:
    guarded = GuardedSupply(settings_of(supply))
    guarded.set_millivolts(1200)
    os.kill(guarded._guardian.pid, signal.SIGTERM)
    supply.wait_for(1350, RESTORED_S)
    with pytest.raises(RailError, match=r"took the rail back \(the guardian was told to end\)"):
        guarded.measure()
    guarded.close()


def test_a_scan_that_hangs_loses_the_rail(supply: ScpiStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beats hold it for as long as they come."""
    monkeypatch.setattr(guardian, "SILENCE_S", 0.4)
    reading, writing = os.pipe()
    lines = [{"number": 1, "set": 1200}, *[{"beat": 1}] * 5]
    spoken: list[dict[str, object]] = []
    monkeypatch.setattr(guardian, "_say", spoken.append)
    begun = time.monotonic()

    def scan_that_hangs() -> None:
        for line in lines:
            os.write(writing, json.dumps(line).encode() + b"\n")
            time.sleep(0.2)

    threading.Thread(target=scan_that_hangs).start()
    before = signal.getsignal(signal.SIGTERM)
    with _Guardian(settings_of(supply)) as guarding:
        guarding.obey(_Lines(reading))
        assert supply.out_mv() == 1200
    signal.signal(signal.SIGTERM, before)
    assert time.monotonic() - begun > 5 * 0.2 + 0.4
    assert supply.out_mv() == 1350
    assert "no sign of life of the scan for 0.4 s" in str(spoken[-1]["error"])
    os.close(reading)
    os.close(writing)


def test_a_guardian_that_cannot_restore_says_so(
    supply: ScpiStandIn, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(guardian, "PERSISTENCE_S", 0.5)
    monkeypatch.setattr(guardian, "_say", lambda answer: None)
    before = signal.getsignal(signal.SIGTERM)
    with _Guardian(settings_of(supply, timeout_s=0.1)) as guarding:
        guarding._do({"set": 1200})
        supply.faults = Faults(silent=True)
    signal.signal(signal.SIGTERM, before)
    assert "DID NOT REACH 1350 mV: set it by hand" in capsys.readouterr().err


# ---- eden.toml, and supplies that cannot be moved --------------------------------------------------------------------

GOOD = """
[supply]
kind = "scpi"
dram = "DDR3L"
floor_mv = 1140
uncertainty_mv = 1.7
resource = "TCPIP::192.168.1.60::5025::SOCKET"
dialect = "keysight-e36300"
"""
BAD = {
    "unknown key": (GOOD + "volts = 3", "volts"),
    "unknown kind": (GOOD.replace('"scpi"', '"usb"'), "usb"),
    "unknown dram": (GOOD.replace("DDR3L", "DDR2"), "DDR2"),
    "unknown dialect": (GOOD.replace("keysight-e36300", "acme"), "acme"),
    "no floor": (GOOD.replace("floor_mv = 1140\n", ""), "floor_mv"),
    "no uncertainty": (GOOD.replace("uncertainty_mv = 1.7\n", ""), "uncertainty_mv"),
    "floor above nominal": (GOOD.replace("1140", "1400"), "above nominal"),
    "step too large": (GOOD + "step_mv = 26", "step_mv"),
    "slew too fast": (GOOD + "slew_mv_per_s = 10_001", "slew_mv_per_s"),
    "no time-out": (GOOD + "timeout_s = 0", "timeout_s"),
    "channel 0": (GOOD + "channel = 0", "channel"),
    "nothing": ("", "supply"),
    "no TOML": ("[supply", "not valid TOML"),
    "no SMBus address": (
        '[supply]\nkind = "pmbus"\nboard = "x"\ndram = "DDR3"\nfloor_mv = 1140\nuncertainty_mv = 4\naddresses = [1]',
        "8",
    ),
    "no board": ('[supply]\nkind = "pmbus"\ndram = "DDR3"\nfloor_mv = 1140\nuncertainty_mv = 4', "board"),
}


@pytest.mark.parametrize(("text", "says"), BAD.values(), ids=BAD.keys())
def test_a_bad_file_is_one_clear_line(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "eden.toml").write_text(text)
    with pytest.raises(PlanError) as caught:
        load_supply(tmp_path / "eden.toml")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_good_file_is_read_and_a_missing_one_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RailError, match=r"no eden\.toml"):
        load_supply()
    Path("eden.toml").write_text(GOOD)
    loaded = load_supply()
    assert (loaded.kind, loaded.nominal) == ("scpi", 1350)


def test_a_fixed_supply_is_nominal_or_nothing(tmp_path: Path) -> None:
    (tmp_path / "eden.toml").write_text('[supply]\nkind = "fixed"\ndram = "DDR3L"\n')
    (tmp_path / "plan.toml").write_text(PLAN)
    plan = load_toml(tmp_path / "plan.toml", ScanPlan)
    board = open_board("mock:B:5", tmp_path / "eden.toml")
    with pytest.raises(RailError, match="1100 mV cannot be set: the supply is fixed at 1350 mV"):
        scan(board, plan, tmp_path / "profile")
    only = plan.model_copy(update={"grid": (plan.grid[0].model_copy(update={"vdd_mv": (1350,)}),)})
    (record,) = scan(board, only, tmp_path / "profile").points
    assert record.vdd_measured_mv == 1350
    assert record.vdd_uncertainty_mv == pytest.approx(0.05 * 1350 / 3**0.5)
    assert record.current_ma is None
    with pytest.raises(RailError, match="fixed"):
        FixedSupply(FixedSettings(kind="fixed", dram="DDR4")).set_millivolts(1100)
    board.close()


def test_a_file_for_another_dram_is_refused(supply: ScpiStandIn, tmp_path: Path) -> None:
    supply.file(tmp_path / "eden.toml", dram="DDR3", nominal_mv=1500)
    with pytest.raises(RailError, match="is for DDR3 at 1500 mV, 'mock:B:5' has DDR3L at 1350 mV"):
        open_board("mock:B:5", tmp_path / "eden.toml")
    assert supply.log == []


@pytest.mark.parametrize("kind", ["pmbus", "scpi"])
def test_a_board_that_is_named_must_be_behind_a_link(kind: str, supply: ScpiStandIn, tmp_path: Path) -> None:
    supply.file(tmp_path / "eden.toml", board="mock:B:5")
    if kind == "pmbus":
        (tmp_path / "eden.toml").write_text(
            '[supply]\nkind = "pmbus"\nboard = "mock:B:5"\ndram = "DDR3L"\nfloor_mv = 1140\nuncertainty_mv = 4\n'
        )
    with pytest.raises(RailError, match="'mock:B:5' is no link to a board"):
        open_board("mock:B:5", tmp_path / "eden.toml")
    assert supply.log == []

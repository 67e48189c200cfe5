"""The command line: every bad input is one clear line and a non-zero exit, and nothing is lost."""

import errno
import io
import json
import os
import re
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from gateware.boards.base import DramRail
from host.cli import main as cli
from host.cli.plan import load_plan
from host.pmbus import WATCHDOG_MS
from host.supply_file import load_supply
from profiles.storage import Profile
from tests.host.command import alone, begin, points_in, until, write_plan
from tests.host.etherbone_peer import EtherboneServer
from tests.host.pmbus_stand_in import (
    DISARMED,
    PAGE,
    PHASE,
    RESTORED,
    VOUT_COMMAND,
    RailStandIn,
    Ucd9248,
    board_with_regulators,
    raw,
)
from tests.host.scpi_stand_in import ScpiStandIn
from tests.host.test_scan import assert_same


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs the command line in this process: (exit status, stdout, stderr)."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["eden", *map(str, arguments)])
        monkeypatch.setattr(signal, "signal", lambda *_: None)
        try:
            cli.main()
            status = 0
        except SystemExit as leaving:
            status = int(leaving.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    return call


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    return alone(write_plan(folder), "mock:B:1", folder / "run" / "profile").path


def assert_one_line(status: int, err: str, *words: str) -> None:
    assert status == 1
    assert err.startswith("eden: ")
    assert err.count("\n") == 1, err
    for word in words:
        assert word in err, err


def test_profile_shows_every_operating_point(run, profile: Path) -> None:
    status, out, _ = run("profile", "show", profile)
    assert status == 0
    assert "1100 mV, 10 ns" in out
    assert "1040 mV, 10 ns" in out


@pytest.mark.parametrize(
    ("by", "says"),
    [
        ("bank", ("1040 mV, 10 ns", "written at: nominal", "95 %")),
        ("row_block", ("rows from",)),
        ("bitline", ("subarray 0, column", "the worst 32 of")),
        ("dq", ("the worst 32 of 64",)),
        ("direction", ("0 to 1", "1 to 0")),
        ("pattern", ("0x",)),
        ("operating_point", ("1100 mV, 10 ns", "1040 mV, 10 ns")),
        ("rounds", ("of 3", "fails in another")),
    ],
)
def test_profile_shows_groups(run, profile: Path, by: str, says: tuple[str, ...]) -> None:
    status, out, err = run("profile", "show", profile, "--by", by)
    assert status == 0, err
    assert all(text in out for text in says), out


def test_profiles_are_compared(run, profile: Path, tmp_path: Path) -> None:
    status, out, err = run("profile", "compare", profile, profile)
    assert status == 0, err
    assert "one module" in out
    assert "1.000 (" in out
    plan = tmp_path / "plan.toml"
    plan.write_text(write_plan(tmp_path).read_text().replace("mock:B:1", "mock:B:2"))
    assert run("scan", plan, "--out", tmp_path / "second")[0] == 0
    status, out, err = run("profile", "compare", profile, tmp_path / "second")
    assert status == 0, err
    assert "00000001 and 00000002" in out
    other = tmp_path / "third"
    assert run("scan", write_plan(tmp_path, "[1050]"), "--out", other)[0] == 0
    assert_one_line(*_without_output(run("profile", "compare", profile, other)), "no point at the same")


def test_schema_is_json(run) -> None:
    status, out, _ = run("profile", "schema")
    assert status == 0
    assert {"header", "point"} <= set(json.loads(out))


def test_published_rates_are_imported(run, tmp_path: Path) -> None:
    study = tmp_path / "study.csv"
    banks = ",".join(f"Bank{k}" for k in range(8))
    study.write_text(
        f",{banks},DIMMBER,Label,Pattern,Temperature,VendorMask,tRAS,tRCD,tRP,Model\n"
        f"0,{','.join(['0.1'] * 8)},0.1,z1,0xff,20,C,35.0,12.5,5.0,C-M0\n"
    )
    status, out, err = run("profile", "import", study, tmp_path / "study.parquet")
    assert status == 0, err
    assert "1 tests" in out
    assert (tmp_path / "study.parquet").is_file()
    study.write_text("a,b\n1,2\n")
    assert_one_line(*_without_output(run("profile", "import", study, tmp_path / "other")), "study.csv")


def test_the_study_of_mapping_writes_figures_and_a_picture(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("host.cli.mapping_study.SIZES", {(12, 4, 2, 3): (10.0, 1e-6), (10, 3, 2, 3): (10.0, 1e-6)})
    status, out, err = run("study", "mapping", "--out", tmp_path)
    assert status == 0, err
    rows = json.loads((tmp_path / "mapping.json").read_text())["rows"]
    assert [row["what"].partition(",")[0] for row in rows] == ["proven gap", "cost saved against Algorithm 1"] * 2
    for row in rows:
        assert {"network", "precision", "figure", "interval", "seeds", "goal", "met"} <= row.keys()
        compared = any(share is not None for share in row.get("saved", [0.0]))
        assert (row["seeds"], row["met"], len(row["seconds"])) == ([1, 2, 3], True if compared else None, 3)
        assert row["interval"][0] <= row["figure"] <= row["interval"][1]
    for proven, saved in zip(rows[::2], rows[1::2], strict=True):
        assert 0 <= proven["figure"] <= proven["goal"]
        assert all(share is None or share >= 0 for share in saved["saved"])
    assert (tmp_path / "mapping.png").stat().st_size > 1000
    assert "mapping.json" in out


def test_fit_writes_a_model_that_loads(run, profile: Path, tmp_path: Path) -> None:
    from profiles.error_models import load_error_model

    model = tmp_path / "model.parquet"
    arguments = ("fit", profile, "--vdd-mv", "1040", "--trcd-ps", "10000", "--out", model)
    status, out, err = run(*arguments)
    assert status == 0, err
    assert "Model 3" in out
    assert load_error_model(model).ber() > 1e-4
    status, out, err = run(*arguments, "--anywhere")
    assert status == 0, err
    assert load_error_model(model).number in (0, 3)


def test_surface_tells_what_is_known_between_points_and_nothing_beyond(run, profile: Path) -> None:
    status, out, err = run("profile", "surface", profile, "--vdd-mv", "1060", "--trcd-ps", "10000")
    assert status == 0, err
    assert "BER unknown, 0 .. " in out
    assert "between measured points" in out
    assert "1100 mV" in out
    assert_one_line(
        *_without_output(run("profile", "surface", profile, "--vdd-mv", "1000", "--trcd-ps", "10000")),
        "1000 mV, 10 ns",
        "1040..1100 mV",
        "scan it",
    )


def test_pictures_of_a_bank_and_of_models(run, profile: Path, tmp_path: Path) -> None:
    zoom = ("--bank", "1", "--rows", "0:2", "--bitlines", "64:128")
    status, _, err = run("profile", "plot", profile, "--out", tmp_path, *zoom)
    assert status == 0, err
    names = {"ber.png", "map.png", "where.png", "zoom.png", "models_nominal.png", "models_operating_point.png"}
    assert {file.name for file in tmp_path.iterdir()} == names
    for arguments, words in (
        (("--bank", "1", "--rows", "all"), ("--rows is 'all'", "FIRST:END")),
        (("--rows", "0:2"), ("give --bank",)),
        (("--bank", "1", "--rows", "0:9"), ("rows 0:9 are outside 0:4",)),
    ):
        assert_one_line(*_without_output(run("profile", "plot", profile, "--out", tmp_path, *arguments)), *words)


def test_export_and_import_round_trip(run, profile: Path, tmp_path: Path) -> None:
    assert run("profile", "export", profile, tmp_path / "p.zip")[0] == 0
    assert run("profile", "import", tmp_path / "p.zip", tmp_path / "copy")[0] == 0
    assert Profile.open(tmp_path / "copy").points == Profile.open(profile).points


@pytest.mark.parametrize(
    ("vdd", "words"),
    [
        ("[5000]", ("5000 mV", "900..1425")),
        ("[400]", ("400 mV", "900..1425")),
        ("[]", ("vdd_mv",)),
        ("[1100]\ncolour = 3", ("colour", "unknown key")),
        ("[1100", ("TOML",)),
        ("{ from = 1100, to = 1000, step = 0 }", ("step",)),
    ],
)
def test_bad_plans_say_what_is_wrong(run, tmp_path: Path, vdd: str, words: tuple[str, ...]) -> None:
    status, _, err = run("scan", write_plan(tmp_path, vdd))
    assert_one_line(status, err, *words)
    assert not (tmp_path / "run" / "profile" / "points").exists()


def test_unknown_board_and_missing_plan(run, tmp_path: Path) -> None:
    plan = write_plan(tmp_path)
    assert_one_line(*_without_output(run("scan", plan, "--board", "mock:Z")), "mock:A")
    assert_one_line(*_without_output(run("scan", tmp_path / "none.toml")), "none.toml")


def test_a_plan_need_not_name_the_board(run, tmp_path: Path) -> None:
    plan = write_plan(tmp_path)
    plan.write_text("\n".join(line for line in plan.read_text().splitlines() if not line.startswith("board")))
    assert_one_line(*_without_output(run("scan", plan)), "--board", "mock:B:1")
    assert run("scan", plan, "--board", "mock:B:1")[0] == 0


def test_a_recorded_scan_is_replayed(run, tmp_path: Path) -> None:
    plan, file = write_plan(tmp_path), tmp_path / "recording"
    assert run("scan", plan, "--record", file)[0] == 0
    status, out, err = run("scan", plan, "--board", f"replay:{file}", "--out", tmp_path / "again")
    assert status == 0, err
    assert out.splitlines()[-1].split(" errors")[0] == run("scan", plan)[1].splitlines()[-1].split(" errors")[0]
    assert_one_line(*_without_output(run("scan", plan, "--record", file)), "is there already")


def _without_output(result: tuple[int, str, str]) -> tuple[int, str]:
    return result[0], result[2]


def test_another_plan_in_the_same_folder_is_refused(run, profile: Path, tmp_path: Path) -> None:
    other = write_plan(tmp_path, "[1090]")
    assert_one_line(*_without_output(run("scan", other, "--out", profile)), "another plan")


@pytest.mark.parametrize("damage", ["truncated", "foreign", "future"])
def test_bad_profiles_are_refused(run, profile: Path, tmp_path: Path, damage: str) -> None:
    copy = tmp_path / "profile"
    shutil.copytree(profile, copy)
    header = copy / "profile.json"
    if damage == "truncated":
        point = sorted((copy / "points").iterdir())[0]
        point.write_bytes(point.read_bytes()[:-7])
    elif damage == "foreign":
        header.write_text('{"hello": "world"}')
    else:
        content = json.loads(header.read_text())
        header.write_text(json.dumps(content | {"version": 99}))
    assert_one_line(*_without_output(run("profile", "show", copy)), str(copy))


def test_foreign_network_and_missing_files_are_refused(run, profile: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "network.safetensors"
    foreign.write_bytes(b"no tensors here")
    mapping = tmp_path / "mapping.json"
    assert_one_line(*_without_output(run("infer", foreign, mapping, "--board", "mock:B")), "network.safetensors")
    assert_one_line(*_without_output(run("report", tmp_path)), "report.json")


AGAIN = "run the same command again: scans, runs, studies and boosting go on where they stopped"
MANY = "{ from = 1100, to = 1042, step = 2 }"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    folder = tmp_path_factory.mktemp("whole")
    return alone(write_plan(folder, MANY), "mock:B:1", folder / "profile")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status", "says"),
    [
        (signal.SIGKILL, -signal.SIGKILL, ""),
        (signal.SIGTERM, 143, f"eden: terminated; {AGAIN}\n"),
        (signal.SIGINT, 130, f"eden: interrupted; {AGAIN}\n"),
    ],
    ids=["SIGKILL", "SIGTERM", "SIGINT"],
)
def test_a_stopped_scan_is_no_success_and_goes_on_to_the_same_profile(
    run, whole: Profile, tmp_path: Path, number: int, status: int, says: str
) -> None:
    """A script that goes on after `eden scan && ...` must not take half a profile for a whole one."""
    plan, folder = write_plan(tmp_path, MANY), tmp_path / "run" / "profile"
    child = begin("scan", plan)
    until(lambda: points_in(folder) >= 10, child)
    child.send_signal(number)
    _, err = child.communicate()
    assert (child.returncode, err) == (status, says)
    assert 10 <= points_in(folder) < len(whole.points)
    assert run("scan", plan)[0] == 0
    assert_same(Profile.open(folder), whole)


@pytest.mark.parametrize("command", ["scan", "run", "show", "plot", "export", "import", "compare", "fit", "report"])
@pytest.mark.parametrize("kind", ["missing", "binary", "json", "folder", "device"])
def test_bad_files_are_one_line(run, tmp_path: Path, command: str, kind: str) -> None:
    bad = tmp_path / "bad"
    if kind == "binary":
        bad.write_bytes(b"\x00\x01nothing\xff")
    elif kind == "json":
        bad.write_text('{"a": 1}')
    elif kind == "folder":
        bad.mkdir()
    elif kind == "device":
        bad = Path("/dev/null")
    arguments = {
        "show": ("profile", "show", bad),
        "plot": ("profile", "plot", bad, "--out", tmp_path / "plots"),
        "export": ("profile", "export", bad, tmp_path / "x.csv"),
        "import": ("profile", "import", bad, tmp_path / "copy"),
        "compare": ("profile", "compare", bad, bad),
        "fit": ("fit", bad, "--vdd-mv", "1040", "--trcd-ps", "10000"),
    }.get(command, (command, bad))
    assert_one_line(*_without_output(run(*arguments)), bad.name)


RUNG = {"ber": 0.01, "rates": {}, "drop": 0.0, "drop_high": 0.01, "holds": True}
CERTIFICATE = {"confidence": 0.95, "target_drop": 0.01, "images": 1000, "draws": 8, "batch": 1, "rungs": [RUNG]}
TOLERANCE = {
    **{"format": "eden-tolerance", "version": 2, "target_accuracy": 0.9, "coarse": 0.01, "fine": {}},
    **{"certificate": {"population": "this DIMM's map", **CERTIFICATE}, "final_check": None},
}


@pytest.mark.parametrize("command", ["boost", "tolerance", "map", "infer"])
@pytest.mark.parametrize("kind", ["missing", "binary", "folder", "device"])
def test_bad_networks_are_one_line(run, profile: Path, tmp_path: Path, command: str, kind: str) -> None:
    bad = tmp_path / "bad"
    if kind == "binary":
        bad.write_bytes(b"no tensors here")
    elif kind == "folder":
        bad.mkdir()
    elif kind == "device":
        bad = Path("/dev/null")
    tolerances, mapping = tmp_path / "tolerance.json", tmp_path / "mapping.json"
    tolerances.write_text(json.dumps(TOLERANCE))
    mapping.write_text('{"images": 1, "alignment_bits": 512, "vdd_mv": 1350, "placements": {}}')
    model = tmp_path / "model.parquet"
    arguments = {
        "boost": (bad, "--model", model, "--out", tmp_path / "o"),
        "tolerance": (bad, "--model", model),
        "map": (bad, profile, "--tolerance", tolerances, "--out", tmp_path / "o"),
        "infer": (bad, mapping, "--board", "mock:B:1"),
    }[command]
    assert_one_line(*_without_output(run(command, *arguments)), bad.name)


@pytest.mark.parametrize("command", ["scan", "plot", "csv", "parquet", "zip", "import", "fit"])
@pytest.mark.parametrize("kind", ["under a file", "disk full"])
def test_outputs_that_cannot_be_written_are_one_line(
    run, profile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, kind: str
) -> None:
    folder = tmp_path / "out"
    archive = tmp_path / "p.zip"
    assert run("profile", "export", profile, archive)[0] == 0
    if kind == "under a file":
        folder.write_text("a file")
    else:

        def full(*_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        folder.mkdir()
        for function in ("replace", "rename", "fsync"):
            monkeypatch.setattr(os, function, full)
        monkeypatch.setattr(Figure, "savefig", full)
    arguments = {
        "scan": ("scan", write_plan(tmp_path), "--out", folder / "p"),
        "plot": ("profile", "plot", profile, "--out", folder / "plots"),
        "import": ("profile", "import", archive, folder / "copy"),
        "fit": ("fit", profile, "--vdd-mv", "1040", "--trcd-ps", "10000", "--out", folder / "model.parquet"),
    }.get(command, ("profile", "export", profile, folder / f"x.{command}"))
    assert_one_line(*_without_output(run(*arguments)))
    assert kind == "under a file" or not list(folder.rglob("*.part")), "temporary files are left"


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("fit",),
        ("fit", "x", "--vdd-mv", "many", "--trcd-ps", "10000"),
        ("fit", "x", "--colour", "red"),
        ("train", "--precision", "int3", "--out", "x"),
    ],
)
def test_bad_usage_is_one_line(run, arguments: tuple[str, ...]) -> None:
    status, _, err = run(*arguments)
    assert status != 0
    assert err.startswith("eden: ")
    assert err.count("\n") == 1


def test_an_impossible_operating_point_is_one_line(run, profile: Path) -> None:
    status, _, err = run("fit", profile, "--vdd-mv", "-3", "--trcd-ps", "10000")
    assert status == 2
    assert err.startswith("eden: ")
    assert err.count("\n") == 1
    assert "--vdd-mv" in err


@pytest.mark.parametrize("name", ["x[/b]", "[bold]x", ":A:", "a\nb"])
def test_messages_are_printed_as_they_are(run, name: str) -> None:
    assert_one_line(*_without_output(run("profile", "show", name)), name.replace("\n", " "))


def test_the_readme_fits_a_point_of_the_default_plan() -> None:
    root = Path(__file__).parents[2]
    commands = re.findall(r"eden fit .*--vdd-mv (\d+) --trcd-ps (\d+)", (root / "README.md").read_text())
    assert commands
    points = {(p.point.vdd_mv, p.point.trcd_ps) for p in load_plan(root / "plans" / "default.toml").scan.points()}
    for vdd_mv, trcd_ps in commands:
        assert (int(vdd_mv), int(trcd_ps)) in points


# ---- the supply ------------------------------------------------------------------------------------------------------


def test_eden_rail_shows_moves_and_restores_a_supply(run, tmp_path: Path) -> None:
    file = tmp_path / "eden.toml"
    with ScpiStandIn() as supply:
        supply.file(file)
        status, out, _ = run("rail", "show", "--supply", file)
        assert status == 0
        for line in (
            "Keysight Technologies,E36312A",
            "1350.0 mV\n",
            "1350.0 ± 1.7 mV, 270 mA, 365 mW",
            "1000..1425 mV",
        ):
            assert line in out
        assert supply.settings_sent() == []
        status, out, _ = run("rail", "set", "1200", "--supply", file, "--yes", "--hold-s", "0.05")
        assert (status, out.count("1200.0 ± 1.7 mV, 240 mA")) == (0, 2)
        assert "back at nominal, 1350 mV" in out
        assert (min(supply.settings_sent()), supply.out_mv()) == (1200, 1350)
        supply.outputs[1].set_mv = supply.outputs[1].out_mv = 1100
        assert "set to      1100.0 mV" in run("rail", "show", "--supply", file)[1]
        assert "at nominal, 1350 mV; reads 1350.0" in run("rail", "restore", "--supply", file)[1]
        assert supply.out_mv() == 1350
    assert "siglent-spd3303x-e" in run("rail", "dialects")[1]


def test_eden_rail_moves_nothing_that_it_should_not(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "eden.toml"
    with ScpiStandIn() as supply:
        supply.file(file)
        monkeypatch.setattr("sys.stdin", io.StringIO(""))
        status, _, err = run("rail", "set", "1200", "--supply", file)
        assert status == 1
        assert "was not moved" in err.splitlines()[-1]
        status, _, err = run("rail", "set", "999", "--supply", file, "--yes")
        assert_one_line(status, err, "999 mV is outside 1000..1425 mV")
        assert set(supply.settings_sent()) <= {1350}
    status, _, err = run("rail", "show", "--supply", tmp_path / "none.toml")
    assert_one_line(status, err, "says what feeds the DRAM")


def test_a_scan_moves_the_supply_that_it_is_given(run, tmp_path: Path) -> None:
    with ScpiStandIn("rigol-dp800") as supply:
        supply.file(tmp_path / "eden.toml", channel=2)
        status, _, err = run("scan", write_plan(tmp_path, "[1040]"), "--supply", tmp_path / "eden.toml")
        assert (status, err) == (0, "")
        assert min(supply.settings_sent()) == 1040
        assert [supply.out_mv(channel) for channel in (1, 2, 3)] == [1350, 1350, 1350]
    record = Profile.open(tmp_path / "run" / "profile").points[-1]
    assert (record.vdd_measured_mv, record.vdd_uncertainty_mv, record.current_ma) == (1040, 1.7, 208)


def test_the_readmes_first_map_needs_no_supply_that_moves(run, tmp_path: Path) -> None:
    (tmp_path / "eden.toml").write_text('[supply]\nkind = "fixed"\ndram = "DDR3L"\n')
    plan = Path(__file__).parents[2] / "plans" / "first.toml"
    status, _, err = run(
        *("scan", plan, "--board", "mock:A", "--out", tmp_path / "first", "--supply", tmp_path / "eden.toml")
    )
    assert status == 0, err
    errors = [point.errors for point in Profile.open(tmp_path / "first").points]
    assert errors[:2] == [0, 0]
    assert min(errors[-2:]) > 100 * max(errors[2:4])


def test_the_readmes_supplies_are_read_and_may_run_its_plan(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent.parent
    blocks = re.findall(r"^```toml\n(\[supply\]\n.*?)^```$", (root / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    kinds = {}
    for block in blocks:
        (tmp_path / "eden.toml").write_text(block)
        loaded = load_supply(tmp_path / "eden.toml")
        kinds[loaded.kind] = loaded
    assert sorted(kinds) == ["pmbus", "scpi"]
    lowest_mv = min(planned.point.vdd_mv for planned in load_plan(root / "plans" / "default.toml").scan.points())
    assert kinds["scpi"].floor_mv <= lowest_mv


PMBUS = """
[supply]
kind = "pmbus"
board = "{board}"
dram = "{dram}"
floor_mv = 1000
uncertainty_mv = 4.0
settle_s = 0.2
slew_mv_per_s = 10_000
"""


@pytest.fixture
def regulators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RailStandIn:
    monkeypatch.chdir(tmp_path)
    return RailStandIn()


def pmbus_file(server: EtherboneServer, dram: str = "DDR3") -> None:
    Path("eden.toml").write_text(PMBUS.format(board=f"etherbone:{server.host}:{server.port}", dram=dram))


def test_eden_rail_finds_shows_and_moves_a_pmbus_regulator(run, regulators: RailStandIn, tmp_path: Path) -> None:
    with board_with_regulators(tmp_path, DramRail(1500, 1140, "PMBus"), regulators) as server:
        pmbus_file(server)
        status, out, err = run("rail", "show")
        assert (status, err) == (0, "")
        for line in ("page 1 of UCD9248-64 at SMBus address 53", "set to      1500.0 mV", "1500.0 ± 4.0 mV, 6250 mA"):
            assert line in out
        assert "1140..1575 mV" in out  # the board's own floor, not the file's
        written = {command for _, command, value, _ in regulators.transactions if value is not None}
        assert written == {PAGE, PHASE}
        status, _, err = run("rail", "set", "1100", "--yes")
        assert_one_line(status, err, "1100 mV is outside 1140..1575 mV")
        assert {command for _, command, _ in regulators.regulator.log} == {PAGE, PHASE}
        status, out, err = run("rail", "set", "1200", "--yes", "--hold-s", "0.05")
        assert (status, err) == (0, "")
        assert out.count("reads       1200.0 ± 4.0 mV, 6250 mA, 7500 mW") == 2
        assert "back at nominal, 1500 mV" in out
        outs = [value for _, command, value in regulators.regulator.log if command == VOUT_COMMAND]
        assert (min(outs), outs[-1]) == (raw(1.2), 0x1800)
        assert "at nominal, 1500 mV; reads 1500.0" in run("rail", "restore")[1]
        assert regulators.state == DISARMED


def test_eden_rail_refuses_a_board_for_another_dram_or_without_pmbus(
    run, regulators: RailStandIn, tmp_path: Path
) -> None:
    with board_with_regulators(tmp_path, DramRail(1500, 1140, "PMBus"), regulators) as server:
        pmbus_file(server, "DDR3L")
        status, _, err = run("rail", "show")
        assert_one_line(status, err, "for DDR3L at 1350 mV, Xilinx KC705 (stand-in) for 1500 mV")
        pmbus_file(server)
        (tmp_path / "build/gateware/kc705/csr.json").write_text('{"csr_registers": {}}')
        status, _, err = run("rail", "show")
        assert_one_line(status, err, "no PMBus master")
        (tmp_path / "build/gateware/kc705/csr.json").unlink()
        status, _, err = run("rail", "show")
        assert_one_line(status, err, "lists no registers")
    assert regulators.transactions == []


@pytest.mark.slow
def test_a_board_that_dies_while_eden_rail_holds_it_low_is_brought_back_by_its_gateware(
    run, regulators: RailStandIn, tmp_path: Path
) -> None:
    with board_with_regulators(tmp_path, DramRail(1500, 1140, "PMBus"), regulators) as server:
        pmbus_file(server)

        def dies() -> None:
            while regulators.regulator.out_mv > 1201:
                time.sleep(0.01)
            server.answering = False

        threading.Thread(target=dies, daemon=True).start()
        status, out, err = run("rail", "set", "1200", "--yes")
        assert_one_line(status, err, f"{server.host}:{server.port}")
        assert "back at nominal" not in out
    regulators.pass_time(WATCHDOG_MS / 1000)
    assert regulators.state == RESTORED
    regulators.pass_time(0.1)
    assert regulators.regulator.out_mv == 1500


def test_a_scan_follows_a_pmbus_regulator(run, regulators: RailStandIn, tmp_path: Path) -> None:
    regulators.regulators[53] = Ucd9248((2.5, 1.35, 1.0, 1.2))
    with board_with_regulators(tmp_path, DramRail(1350, 1000, "PMBus"), regulators) as server:
        pmbus_file(server, "DDR3L")
        status, _, err = run("scan", write_plan(tmp_path, "[1040]"), "--supply", "eden.toml")
        assert (status, err) == (0, "")
    record = Profile.open(tmp_path / "run" / "profile").points[-1]
    assert record.vdd_measured_mv == 1000 * raw(1.04) / 4096  # what the regulator reads, to the bit
    assert (record.vdd_uncertainty_mv, record.current_ma) == (4.0, 6250)
    assert regulators.regulator.out_mv == pytest.approx(1350, abs=0.2)
    assert regulators.state == DISARMED


@pytest.mark.slow
def test_ctrl_c_ends_eden_rail_set_at_nominal(tmp_path: Path) -> None:
    with ScpiStandIn() as supply:
        supply.file(tmp_path / "eden.toml")
        child = begin("rail", "set", "1200", "--yes", "--supply", tmp_path / "eden.toml")
        until(lambda: supply.out_mv() == 1200, child)
        child.send_signal(signal.SIGINT)
        out, _ = child.communicate()
        assert child.returncode == 130
        assert "back at nominal, 1350 mV" in out
        assert supply.out_mv() == 1350


@pytest.mark.slow
def test_ctrl_c_ends_eden_rail_set_at_nominal_over_pmbus(regulators: RailStandIn, tmp_path: Path) -> None:
    with board_with_regulators(tmp_path, DramRail(1500, 1140, "PMBus"), regulators) as server:
        pmbus_file(server)
        child = begin("rail", "set", "1200", "--yes")
        until(lambda: regulators.regulator.out_mv <= 1201, child)
        child.send_signal(signal.SIGINT)
        out, _ = child.communicate()
        assert child.returncode == 130
        assert "back at nominal, 1500 mV" in out
        assert regulators.regulator.out_mv == 1500
        assert regulators.state == DISARMED

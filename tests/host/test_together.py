"""Several boards at once: each scanned as it would be alone, failing alone, stopped and resumed together."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from host.cli.together import BoardScan, board_scans, picture
from host.scan_status import ScanStatus
from profiles.errors import PlanError
from profiles.storage import Profile, appending, is_growing
from tests.host.command import alone, begin, points_in, until, write_plan
from tests.host.scpi_stand_in import ScpiStandIn

BOARDS = ("mock:B:1", "mock:C:2")
FOLDERS = ("mock-B-1", "mock-C-2")


def scan_of(plan: Path, *boards: str, supplies: tuple[Path, ...] = ()) -> "subprocess.Popen[str]":
    named = (word for board in boards for word in ("--board", board))
    fed = (word for supply in supplies for word in ("--supply", supply))
    return begin("scan", plan, *named, *fed)


def assert_same(expected: Profile, found: Profile) -> None:
    assert found.complete
    for ours, theirs in zip(found.points, expected.points, strict=True):
        times = {"started": theirs.started, "duration_s": theirs.duration_s}
        measured = {name: getattr(theirs, name) for name in ("current_ma", "power_mw", "vdd_uncertainty_mv")}
        assert ours.model_copy(update=times | measured) == theirs
        for column in ("cell", "errors", "stored"):
            there, here = getattr(expected.cells(theirs.index), column), getattr(found.cells(ours.index), column)
            assert (there == here).all()


@pytest.mark.slow
def test_each_board_gives_what_it_gives_alone(tmp_path: Path) -> None:
    plan = write_plan(tmp_path)
    child = scan_of(plan, *BOARDS)
    out, err = child.communicate()
    assert (child.returncode, err) == (0, "")
    for board, folder in zip(BOARDS, FOLDERS, strict=True):
        assert f"\n{board}  [8/8] 1040 mV, 10 ns, 0xFF" in out
        assert_same(alone(plan, board, tmp_path / folder), Profile.open(tmp_path / "run" / folder))
    assert "2 boards" in out
    assert out.count(" done") == 2


@pytest.mark.slow
def test_one_boards_failure_is_its_own(tmp_path: Path) -> None:
    plan, broken = write_plan(tmp_path), tmp_path / "run" / FOLDERS[0]
    broken.parent.mkdir()
    alone(write_plan(broken.parent, "[1090]"), BOARDS[0], broken)  # another plan's profile is where this one's would go
    held = tmp_path / "run" / "mock-A-3"
    with appending(held):
        child = scan_of(plan, BOARDS[0], BOARDS[1], "mock:A:3", "mock:Z")
        out, err = child.communicate()
    assert child.returncode == 1
    assert err.count("\n") == 1
    assert err.startswith("eden: 3 of 4 boards were not scanned to the end: ")
    for says in (
        f"{BOARDS[0]}: {broken} holds a scan with another plan",
        f"mock:A:3: another process scans into {held}",
        "mock:Z: 'mock:Z' names no board",
    ):
        assert says in err
    assert len(Profile.open(broken).points) == 4
    assert_same(alone(plan, BOARDS[1], tmp_path / "alone"), Profile.open(tmp_path / "run" / FOLDERS[1]))
    assert out.count(" done") == 1


@pytest.fixture
def supplies(tmp_path: Path) -> Iterator[tuple[list[ScpiStandIn], tuple[Path, ...]]]:
    with ExitStack() as stack:
        stand_ins = [stack.enter_context(ScpiStandIn()) for _ in BOARDS]
        files = tuple(tmp_path / f"{folder}.toml" for folder in FOLDERS)
        for stand_in, file in zip(stand_ins, files, strict=True):
            stand_in.file(file)
        yield stand_ins, files


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.prove)])
def test_stopped_together_the_rails_come_back_and_the_scans_go_on(
    number: int, supplies: tuple[list[ScpiStandIn], tuple[Path, ...]], tmp_path: Path
) -> None:
    stand_ins, files = supplies
    plan = write_plan(tmp_path, "{ from = 1100, to = 1080, step = 10 }")
    folders = [tmp_path / "run" / folder for folder in FOLDERS]
    child = scan_of(plan, *BOARDS, supplies=files)
    until(lambda: all(points_in(folder) >= 2 for folder in folders), child)
    assert all(is_growing(folder) for folder in folders)
    child.send_signal(number)
    _, err = child.communicate()
    assert child.returncode == (128 + number if number != signal.SIGKILL else -number)
    if number != signal.SIGKILL:
        assert err.startswith("eden: interrupted")
        assert not any(is_growing(folder) for folder in folders)
        assert [stand_in.out_mv() for stand_in in stand_ins] == [1350, 1350]
    for stand_in, folder in zip(stand_ins, folders, strict=True):
        while is_growing(folder):
            time.sleep(0.01)
        stand_in.wait_for(1350, 60)
        assert stand_in.settings_sent()[-1] == 1350
        assert points_in(folder) < 12
    child = scan_of(plan, *BOARDS, supplies=files)
    assert child.wait() == 0, child.communicate()
    child.communicate()
    for board, folder in zip(BOARDS, folders, strict=True):
        assert_same(alone(plan, board, tmp_path / f"alone-{folder.name}"), Profile.open(folder))


@pytest.mark.slow
def test_a_killed_scan_is_named_and_the_others_end(tmp_path: Path) -> None:
    plan = write_plan(tmp_path, "{ from = 1100, to = 1070, step = 2 }")
    child = scan_of(plan, *BOARDS)
    until(lambda: points_in(tmp_path / "run" / FOLDERS[0]) > 2, child)
    (victim,) = [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdecimal() and _is_scan_of(entry, BOARDS[0], tmp_path / "run" / FOLDERS[0])
    ]
    os.kill(victim, signal.SIGKILL)
    _, err = child.communicate()
    assert child.returncode == 1
    assert f"1 of 2 boards were not scanned to the end: {BOARDS[0]}: killed by SIGKILL" in err
    assert Profile.open(tmp_path / "run" / FOLDERS[1]).complete


def _is_scan_of(process: Path, board: str, folder: Path) -> bool:
    try:
        words = (process / "cmdline").read_text().split("\0")
    except OSError:
        return False
    return board in words and str(folder) in words


@pytest.mark.parametrize(
    ("boards", "shared"),
    [
        (("mock:B:1", "mock:C", "mock:B"), "the board mock:B:1"),
        (("etherbone:10.0.0.9", "etherbone:10.0.0.9:1234"), "the board at 10.0.0.9:1234"),
        (("litex_server:lab", "litex_server:lab:1234"), "the board at lab:1234"),
        (("serial:/dev/ttyUSB1", "serial:/dev/../dev/ttyUSB1:921600"), "the board at /dev/ttyUSB1"),
        (("etherbone:a-b", "etherbone:a:b"), "the folder out/etherbone-a-b"),
    ],
)
def test_the_same_board_twice_is_refused(boards: tuple[str, ...], shared: str) -> None:
    with pytest.raises(PlanError, match=f"'{boards[0]}' and '{boards[-1]}' would both use {shared}, which one of them"):
        board_scans(boards, Path("out"), ())


def test_two_boards_on_one_supply_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [tmp_path / "one.toml", tmp_path / "two.toml"]
    with ScpiStandIn() as one, ScpiStandIn() as two:
        one.file(files[0])
        two.file(files[1])
        found = board_scans(BOARDS, Path("out"), files)
        assert [(each.board, each.supply, each.folder.name) for each in found] == [
            (board, file, folder) for board, file, folder in zip(BOARDS, files, FOLDERS, strict=True)
        ]
        one.file(files[1])
        refused = f"would both use the supply {one.resource}, which one of them has at a time"
        with pytest.raises(PlanError, match=refused):
            board_scans(BOARDS, Path("out"), files)
        one.file(tmp_path / "eden.toml")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PlanError, match=refused):  # by default: eden.toml
        board_scans(("etherbone:10.0.0.1", "etherbone:10.0.0.2"), Path("out"), ())
    (tmp_path / "eden.toml").write_text('[supply]\nkind = "fixed"\ndram = "DDR3"\n')
    assert len(board_scans(("etherbone:10.0.0.1", "etherbone:10.0.0.2"), Path("out"), ())) == 2
    (tmp_path / "eden.toml").write_text('[temperature]\npreset = "delta-dtb"\nport = "/dev/../dev/ttyUSB2"\n')
    with pytest.raises(PlanError, match="would both use the temperature controller at /dev/ttyUSB2"):
        board_scans(BOARDS, Path("out"), [tmp_path / "eden.toml"] * 2)
    with pytest.raises(PlanError, match="boards: 2, supplies: 1"):
        board_scans(BOARDS, Path("out"), files[:1])


def test_bad_plans_and_options_are_one_line_before_anything_begins(
    tmp_path: Path, run_eden: Callable[..., str]
) -> None:
    plan = write_plan(tmp_path)
    for arguments in (("--record", tmp_path / "r"), ("--supply", tmp_path / "none.toml")):
        with pytest.raises(SystemExit):
            run_eden("scan", plan, "--board", BOARDS[0], "--board", BOARDS[1], *arguments)
    assert not (tmp_path / "run").exists()


def test_the_live_table_shows_each_board(tmp_path: Path) -> None:
    plan = write_plan(tmp_path)
    done = alone(plan, BOARDS[0], tmp_path / "done")
    scans = [BoardScan(BOARDS[0], done.path, None), BoardScan(BOARDS[1], tmp_path / "nothing", None, line="bring-up")]
    with appending(done.path):
        columns = {str(column.header): [str(cell) for cell in column.cells] for column in picture(scans).columns}
    assert columns["board"] == list(BOARDS)
    assert columns["tests"] == ["8 of 8", ""]
    assert columns["last test"][0] == "1040 mV, 10 ns"
    assert columns["rail"][0] == "1040.0 mV"
    assert columns["state"] == ["scanning", "bring-up"]
    last = done.points[-1]
    assert columns["BER"][0] == f"{last.errors / (2 * 4 * done.geometry.row_bits * 3):.1e}"


def test_what_is_left_follows_from_what_was_measured(tmp_path: Path) -> None:
    done = alone(write_plan(tmp_path), BOARDS[0], tmp_path / "done")
    half = Profile(done.path, done.header, {record.index: record for record in done.points[:2]})
    status = ScanStatus.of(half)
    seconds = sum(record.duration_s for record in done.points[:2])
    assert (status.done, status.planned, status.last) == (2, 8, done.points[1])
    assert status.seconds_left == pytest.approx(seconds / 2 * 6)
    assert status.errors_per_s == pytest.approx(sum(record.errors for record in done.points[:2]) / seconds)
    nothing = ScanStatus.of(Profile(done.path, done.header, {}))
    assert (nothing.seconds_left, nothing.errors_per_s, nothing.last, nothing.last_ber) == (None, None, None, None)

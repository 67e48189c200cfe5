"""A profile goes on under a larger plan: the same as if that had been the plan from the start; nothing else mixes."""

import shutil
from pathlib import Path

import numpy as np
import pytest

import host.scan
from host.board import Board
from host.boards import open_mock
from host.plan import ScanPlan
from host.scan import scan
from profiles import exchange, statistics
from profiles.errors import ProfileError
from profiles.fit import fit
from profiles.geometry import Geometry
from profiles.schema import WriteCondition
from profiles.storage import Profile
from tests.host.test_scan import Interrupted

GEOMETRY = Geometry(banks=2, rows=32, columns=128, data_width=64, subarray_rows=16)
PLAN = {
    "grid": [{"trcd_ps": 6000, "vdd_mv": [1350, 1250]}],
    "patterns": ["0x00", "random:3/invert"],
    "rounds": 2,
    "banks": [0, 1],
    "rows": {"start": 3, "count": 20},
    "write": ["nominal", "operating_point"],
}
FINER = {"trcd_ps": 6000, "vdd_mv": [1300]}
LATER = {"started", "duration_s", "sessions"}


def board(seed: int = 5) -> Board:
    return open_mock("B", seed, GEOMETRY)


def plan(**changes: object) -> ScanPlan:
    return ScanPlan.model_validate(PLAN | changes)


def assert_same(a: Profile, b: Profile) -> None:
    """Equal in everything but when it happened."""
    assert [r.model_dump(exclude=LATER) for r in a.points] == [r.model_dump(exclude=LATER) for r in b.points]
    assert a.header.model_dump(exclude={"created"}) == b.header.model_dump(exclude={"created"})
    for record in a.points:
        x, y = a.cells(record.index), b.cells(record.index)
        np.testing.assert_array_equal(x.cell, y.cell)
        np.testing.assert_array_equal(x.errors, y.errors)
        if record.counted:
            for bank in record.region.banks:
                for kind in ("rows", "bitlines", "lanes"):
                    lines = [getattr(each.lines(record.index, bank), kind) for each in (a, b)]
                    np.testing.assert_array_equal(*lines)


def test_rounds_and_points_added_are_those_of_the_larger_plan(tmp_path: Path) -> None:
    scan(board(), plan(), tmp_path / "p")
    first = Profile.open(tmp_path / "p").points
    larger = plan(rounds=5, grid=[*PLAN["grid"], FINER])  # type: ignore[misc]
    extended = scan(board(), larger, tmp_path / "p", extend=True)
    whole = scan(board(), larger, tmp_path / "whole")
    assert_same(extended, whole)
    assert_same(Profile.open(tmp_path / "p"), whole)
    assert sum(record.errors for record in whole.points) > 1000
    for before, record in zip(first, extended.points, strict=False):
        assert [session.rounds for session in record.sessions] == [2, 3]
        assert record.sessions[0].started == record.started == before.started
        assert record.sessions[1].started > before.started
        assert record.duration_s == pytest.approx(sum(session.duration_s for session in record.sessions))
    assert all(not record.sessions for record in extended.points[len(first) :])
    started = [record.sessions[-1].started if record.sessions else record.started for record in extended.points]
    assert started == sorted(started)


def test_counted_points_take_more_rounds_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counters and single cells of part of the region, and each of a point's files of the time before is gone."""
    monkeypatch.setattr(host.scan, "ONE_PART_CELLS", 0)
    cells = [{"banks": [1], "rows": {"start": 5, "count": 7}}]
    scan(board(), plan(cells=cells), tmp_path / "p")
    extended = scan(board(), plan(cells=cells, rounds=3), tmp_path / "p", extend=True)
    extended = scan(board(), plan(cells=cells, rounds=7), tmp_path / "p", extend=True)
    whole = scan(board(), plan(cells=cells, rounds=7), tmp_path / "whole")
    assert all(record.counted for record in whole.points)
    assert_same(extended, whole)
    extended.verify()
    kept = {file.name for file in (tmp_path / "p" / "points").iterdir()}
    assert kept == {file.name for record in extended.points for file in extended.files(record.index)}
    exchange.export(extended, tmp_path / "p.zip")
    assert_same(exchange.import_profile(tmp_path / "p.zip", tmp_path / "copy"), whole)


def test_points_in_parts_draw_anew_and_stay_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.scan, "ONE_PART_CELLS", 0)
    monkeypatch.setattr(host.scan, "COUNTED_BER", 1.0)
    monkeypatch.setattr(host.scan, "PART_READS", 3000)
    few = scan(board(), plan(), tmp_path / "p").points
    many = scan(board(), plan(rounds=6), tmp_path / "p", extend=True)
    many.verify()
    for before, record in zip(few, many.points, strict=True):
        assert record.errors == pytest.approx(3 * before.errors, rel=0.1, abs=60)


def test_stopped_anywhere_an_extension_goes_on_to_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of points too: what was there before is there until the new rounds are."""
    larger = plan(rounds=4, grid=[*PLAN["grid"], FINER])  # type: ignore[misc]
    whole = scan(board(), larger, tmp_path / "whole")
    before = scan(board(), plan(), tmp_path / "p")
    rng, stops = np.random.default_rng(2), 0
    run = Board.run
    while True:
        left = int(rng.integers(1, 25))

        def stopping(self: Board, *arguments: object) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                raise Interrupted
            return run(self, *arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(Board, "run", stopping)
        try:
            scan(board(), larger, tmp_path / "p", extend=True)
            break
        except Interrupted:
            stops += 1
        now = Profile.open(tmp_path / "p")
        now.verify()
        assert all(a.rounds <= b.rounds for a, b in zip(before.points, now.points, strict=False))
    assert stops > 3
    assert_same(Profile.open(tmp_path / "p"), whole)


def test_killed_between_its_files_a_point_is_what_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each rename in turn the process is gone: the folder as it was then is a profile, and goes on."""
    monkeypatch.setattr(host.scan, "ONE_PART_CELLS", 0)
    one = {"grid": [{"trcd_ps": 6000, "vdd_mv": [1250]}], "patterns": ["0x00"], "write": ["nominal"]}
    cells = [{"banks": [1], "rows": {"start": 5, "count": 7}}]
    small, large = plan(**one, cells=cells), plan(**one, cells=cells, rounds=3)
    whole = scan(board(), large, tmp_path / "whole")
    scan(board(), small, tmp_path / "small")
    replace, copies = Path.replace, []

    def watched(self: Path, target: Path) -> Path:
        done = replace(self, target)
        copies.append(tmp_path / f"killed{len(copies)}")
        shutil.copytree(tmp_path / "small", copies[-1])
        return done

    monkeypatch.setattr(Path, "replace", watched)
    scan(board(), large, tmp_path / "small", extend=True)
    monkeypatch.setattr(Path, "replace", replace)
    assert len(copies) >= 3  # header, counters, cells
    rounds = []
    for copy in copies:
        profile = Profile.open(copy)
        profile.verify()
        rounds.append(profile.points[0].rounds)
        assert_same(scan(board(), large, copy), whole)
    assert rounds == sorted(rounds)
    assert set(rounds) == {2, 3}


def test_what_would_mix_is_refused_and_the_profile_stays(tmp_path: Path) -> None:
    path = tmp_path / "p"
    scan(board(), plan(), path)
    grid = PLAN["grid"]
    refused = {
        "patterns": (board(), plan(patterns=["0x00", "0xFF"])),
        "banks": (board(), plan(banks=[0])),
        "rows": (board(), plan(rows={"start": 3, "count": 21})),
        "write": (board(), plan(write=["nominal"])),
        "refresh": (board(), plan(refresh="withheld")),
        "1 rounds": (board(), plan(rounds=1)),
        "do not begin with": (board(), plan(grid=[FINER, *grid])),  # type: ignore[misc]
        "another module": (board(seed=6), plan(rounds=3)),
        "another geometry": (open_mock("B", 5, GEOMETRY.model_copy(update={"rows": 64})), plan(rounds=3)),
    }
    for says, (opened, larger) in refused.items():
        with pytest.raises(ProfileError, match=says):
            scan(opened, larger, path, extend=True)
    with pytest.raises(ProfileError, match="--extend"):
        scan(board(), plan(rounds=3), path)
    with pytest.raises(ProfileError, match="no profile to extend"):
        scan(board(), plan(rounds=3), tmp_path / "none", extend=True)
    scan(board(), plan(rewrite_each_round=False), tmp_path / "kept")
    with pytest.raises(ProfileError, match="rewrite_each_round"):
        scan(board(), plan(rewrite_each_round=False, rounds=3), tmp_path / "kept", extend=True)
    assert_same(Profile.open(path), scan(board(), plan(), tmp_path / "again"))


def test_cliffs_are_found_between_points_that_are_there_already(tmp_path: Path) -> None:
    rungs = [1350, 1250, 1200]
    grid = [{"trcd_ps": 8000, "vdd_mv": rungs}]
    cliff = {"trcd_ps": 8000, "vdd_mv": {"from": 1350, "to": 1200, "step": 10}, "ber": [1e-3]}
    before = scan(board(), plan(grid=grid), tmp_path / "p")
    extended = scan(board(), plan(grid=grid, cliff=[cliff]), tmp_path / "p", extend=True)
    assert_same(extended, scan(board(), plan(grid=grid, cliff=[cliff]), tmp_path / "whole"))
    new = extended.points[len(before.points) :]
    assert new
    assert all(record.point.vdd_mv not in rungs for record in new)
    with pytest.raises(ProfileError, match="search for cliffs"):
        scan(board(), plan(grid=grid, cliff=[cliff], rounds=3), tmp_path / "p", extend=True)
    further = {"vdd_mv": 1350, "trcd_ps": [14_000, 8000, 6000, 4000], "ber": [1e-3]}
    both = plan(grid=grid, cliff=[cliff, further])
    assert_same(scan(board(), both, tmp_path / "p", extend=True), scan(board(), both, tmp_path / "both"))


def test_added_rounds_serve_statistics_and_fits(tmp_path: Path) -> None:
    scan(board(), plan(), tmp_path / "p")
    extended = scan(board(), plan(rounds=6), tmp_path / "p", extend=True)
    assert statistics.stability(extended, extended.find(extended.points[0].point)).rounds == 6
    assert fit(extended, extended.points[0].point, WriteCondition.NOMINAL).fits

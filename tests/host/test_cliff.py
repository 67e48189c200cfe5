"""Cliffs that a scan finds by bisection: where the chips' own law puts them, on few tests, whatever stops it."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

import host.mock
from host import chip as model
from host.board import Board
from host.boards import open_mock
from host.chip_presets import PRESETS, Preset, build_chip
from host.plan import ScanPlan
from host.rehearsal import rehearse
from host.scan import scan
from host.toml_file import load_toml
from profiles.cliffs import Cliff, find_cliffs
from profiles.errors import PlanError, RailError
from profiles.fit import fit
from profiles.geometry import Geometry
from profiles.plots import plot_ber_map, plot_ber_surface
from profiles.schema import OperatingPoint, WriteCondition
from profiles.statistics import clopper_pearson
from profiles.storage import Profile
from profiles.surface import BerSurface
from tests.host import expectation
from tests.host.test_scan import Interrupted, assert_same

GEOMETRY = Geometry(banks=4, rows=128, columns=256, data_width=64, subarray_rows=128)
BANKS = tuple(range(4))
BASE = {"patterns": ["0x00", "0xFF"], "rounds": 2, "banks": list(BANKS), "rows": {"start": 0, "count": 128}}
# from well above to well below each vendor's cliff at 10 ns, in steps of 2 mV
VDD_MV = {"A": (1100, 1000), "B": (1100, 1000), "C": (1280, 1130)}


def plan_of(cliff: object, **changes: object) -> ScanPlan:
    return ScanPlan.model_validate(BASE | {"cliff": cliff} | changes)


def vdd_plan(vendor: str, targets: list[float], step: int = 2) -> ScanPlan:
    mild, harsh = VDD_MV[vendor]
    return plan_of([{"trcd_ps": 10_000, "vdd_mv": {"from": mild, "to": harsh, "step": step}, "ber": targets}])


def board(vendor: str = "B", seed: int = 3) -> Board:
    return open_mock(vendor, seed, GEOMETRY)


def cliffs_of(profile: Profile, plan: ScanPlan) -> list[Cliff]:
    return [cliff for ladder, targets in plan.ladders() for cliff in find_cliffs(profile, ladder, targets)]


def truth(vendor: str, seed: int, bank: int, point: OperatingPoint) -> float:
    """The bank's expected BER over the two patterns, by the preset's own law and the chip's own bank factor."""
    factor = build_chip(GEOMETRY, PRESETS[vendor], seed).bank_factor[bank] / (1 << model.FACTOR_UNIT)
    return expectation.bank_ber(PRESETS[vendor], point.vdd_mv, point.trcd_ps, float(factor))


@pytest.mark.slow
@pytest.mark.parametrize("vendor", ["A", "B", "C"])
def test_cliffs_in_vdd_lie_where_the_chips_law_puts_them(vendor: str, tmp_path: Path) -> None:
    targets, seeds = [1e-4, 1e-3], (1, 2, 3)
    wrong = claims = 0
    widths = []
    for seed in seeds:
        plan = vdd_plan(vendor, targets)
        profile = scan(board(vendor, seed), plan, tmp_path / f"{seed}")
        found = cliffs_of(profile, plan)
        assert {(cliff.bank, cliff.target) for cliff in found} == {(b, t) for b in BANKS for t in targets}
        for cliff in found:
            assert cliff.searched
            assert cliff.contradiction is None
            assert cliff.below is not None
            assert cliff.above is not None
            claims += 1
            wrong += not (
                truth(vendor, seed, cliff.bank, cliff.below)
                < cliff.target
                < truth(vendor, seed, cliff.bank, cliff.above)
            )
            widths.append(cliff.below.vdd_mv - cliff.above.vdd_mv)
    print(f"vendor {vendor}: {wrong} of {claims} wrong; width median {np.median(widths)} mV, largest {max(widths)} mV")
    assert claims == 24
    assert wrong <= binom.ppf(0.999, claims, 0.05)
    assert np.median(widths) <= 12


def test_cliffs_in_trcd_are_found_to_the_boards_clock(tmp_path: Path) -> None:
    plan = plan_of(
        [{"vdd_mv": 1350, "trcd_ps": {"from": 14_000, "to": 2000, "step": 2000}, "ber": [1e-3, 0.03]}],
        rows={"start": 0, "count": 64},
    )
    profile = scan(board(), plan, tmp_path / "p")
    for cliff in cliffs_of(profile, plan):
        assert cliff.resolved
        assert cliff.below is not None
        assert cliff.above is not None
        assert cliff.below.trcd_ps - cliff.above.trcd_ps == 2000
        assert truth("B", 3, cliff.bank, cliff.below) < cliff.target < truth("B", 3, cliff.bank, cliff.above)


def test_banks_share_points_and_untested_ones_stay_untested(tmp_path: Path) -> None:
    plan = vdd_plan("B", [1e-3], step=1)
    opened = board()
    profile = scan(opened, plan, tmp_path / "p")
    assert profile.complete
    assert Profile.open(tmp_path / "p").complete
    profile.verify()
    (ladder, _), *_ = plan.ladders()
    rungs, tested = len(ladder.points), ladder.visits(profile)
    # each bank's search is no longer than one alone, and whatever was tested was asked for
    assert all(len(at) <= ladder.most_tests for at in tested.values())
    tests = sum(len(at) for at in tested.values())
    supplies = [point.vdd_mv for point in ladder.points]
    grid = ScanPlan.model_validate(BASE | {"grid": [{"trcd_ps": 10_000, "vdd_mv": supplies}]})
    full = rehearse(board(), grid, None)[0].clocks
    share = tests / (rungs * len(BANKS))
    print(f"{share:.1%} of the full grid's tests of a bank, {opened.usage.clocks / full:.1%} of its DRAM time")
    assert share < 0.25
    assert opened.usage.clocks < 0.5 * full
    sizes = {len(record.region.banks) for record in profile.points}
    assert max(sizes) == 4
    assert min(sizes) < 4
    for record in profile.points:
        cells = profile.cells(record.index)
        assert set(np.unique(GEOMETRY.bank(cells.cell)).tolist()) <= set(record.region.banks)
    # a bank's rate at each point is of that bank's reads, whichever banks were tested beside it
    for cliff in cliffs_of(profile, plan):
        for rung, rate in cliff.rates.items():
            records = tested[cliff.bank][rung]
            errors = sum(int(profile.cells(record.index, cliff.bank).errors.sum()) for record in records)
            assert (rate.errors, rate.trials) == (errors, 2 * 2 * 128 * GEOMETRY.row_bits)


def test_stopped_anywhere_it_goes_on_to_the_same_cliffs(tmp_path: Path) -> None:
    plan = plan_of(
        [{"trcd_ps": 10_000, "vdd_mv": {"from": 1100, "to": 1020, "step": 4}, "ber": [1e-3, 1e-2]}],
        grid=[{"trcd_ps": 8000, "vdd_mv": [1350]}],
        rows={"start": 0, "count": 32},
        write=["nominal", "operating_point"],
    )
    whole = scan(board(), plan, tmp_path / "whole")
    rng, looks = np.random.default_rng(1), 0
    while not (tmp_path / "parts" / "profile.json").exists() or not Profile.open(tmp_path / "parts").complete:
        left = int(rng.integers(1, 5))

        def stop(profile: Profile, planned: object) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Interrupted

        looks += 1
        try:
            scan(board(), plan, tmp_path / "parts", stop)
        except Interrupted:
            continue
    assert looks > 5
    assert_same(Profile.open(tmp_path / "parts"), whole)
    points = len(whole.points)
    assert len(scan(board(), plan, tmp_path / "parts").points) == points


def test_a_profile_of_cliffs_serves_surface_fits_and_plots(tmp_path: Path) -> None:
    plan = vdd_plan("B", [1e-3], step=1)
    profile = scan(board(), plan, tmp_path / "p")
    whole = BerSurface.of(profile, WriteCondition.NOMINAL)
    every = {record.region.banks for record in profile.points if record.point in whole.measured}
    assert every == {BANKS}
    own = 0
    for bank in BANKS:
        surface = BerSurface.of(profile, WriteCondition.NOMINAL, bank=bank)
        assert set(whole.measured) <= set(surface.measured)
        own += len(surface.measured) - len(whole.measured)
        rates = [surface.measured[point] for point in sorted(surface.measured, key=lambda point: -point.vdd_mv)]
        assert all(a.low <= b.high for a, b in pairwise(rates))
    assert own > 0
    some = next(record for record in reversed(profile.points) if len(record.region.banks) < 4 and record.errors > 1000)
    assert fit(profile, some.point, WriteCondition.NOMINAL).fits
    assert plot_ber_surface(profile)
    assert plot_ber_map(profile)


def test_rates_that_fall_again_are_reported_and_no_cliff_is_claimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A DRAM whose supply, as read, goes on down, but which sees more again."""
    follow = host.mock.set_conditions

    def unfollowed(chip: model.Chip, preset: Preset, vdd_uv: int, *rest: object) -> None:
        follow(chip, preset, vdd_uv if vdd_uv > 1_000_000 else 1_060_000, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(host.mock, "set_conditions", unfollowed)
    plan = vdd_plan("B", [1e-3])
    found = cliffs_of(scan(board(), plan, tmp_path / "p"), plan)
    assert len(found) == 4
    for cliff in found:
        assert not cliff.resolved
        assert cliff.searched
        out_of_order = cliff.contradiction is not None and cliff.contradiction[1].vdd_mv <= 1000
        assert out_of_order or (cliff.below is not None and cliff.above is None)
    assert any(cliff.contradiction is not None for cliff in found)


LADDER = {"trcd_ps": 10_000, "vdd_mv": {"from": 1100, "to": 1000, "step": 4}, "ber": [1e-3]}
BAD = {
    "two numbers": ([LADDER | {"vdd_mv": 1100}], "three steps"),
    "two axes": ([LADDER | {"trcd_ps": [10_000, 8000, 6000]}], "three steps"),
    "two steps": ([LADDER | {"vdd_mv": [1100, 1050]}], "three steps"),
    "no target": ([LADDER | {"ber": []}], "ber"),
    "half of all bits": ([LADDER | {"ber": [0.5]}], "0.5"),
    "a target of zero": ([LADDER | {"ber": [0.0]}], "0"),
    "a clean target that no number of these cells shows": ([LADDER | {"ber": [1e-3, 1e-8]}], "test at least"),
    "a tRCD between clocks": ([LADDER | {"trcd_ps": 9000}], "8 or 10 ns"),
    "below the supply's limit": ([LADDER | {"vdd_mv": [1100, 1000, 800]}], "800 mV"),
    "a negative voltage": ([LADDER | {"vdd_mv": [1100, 1000, -5]}], "outside 1..3000"),
    "an unknown key": ([LADDER | {"target": 1e-3}], "target"),
    "nothing to test": ([], "no operating points"),
}


@pytest.mark.parametrize(("cliff", "says"), BAD.values(), ids=BAD.keys())
def test_bad_searches_are_one_clear_line_and_touch_nothing(cliff: list[object], says: str, tmp_path: Path) -> None:
    file = tmp_path / "plan.toml"
    file.write_text(tomli_of(BASE | {"cliff": cliff}))
    with pytest.raises((PlanError, RailError)) as caught:
        scan(board(), load_toml(file, ScanPlan), tmp_path / "profile")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "profile").exists()


def tomli_of(plan: dict[str, object]) -> str:
    """JSON's values are TOML's, but for tables, which are written inline."""

    def value(each: object) -> str:
        if isinstance(each, dict):
            return "{" + ", ".join(f"{key} = {value(inner)}" for key, inner in each.items()) + "}"
        if isinstance(each, list):
            return "[" + ", ".join(value(inner) for inner in each) + "]"
        return json.dumps(each)

    return "\n".join(f"{key} = {value(each)}" for key, each in plan.items())


def test_the_targets_that_are_refused_could_not_be_shown(tmp_path: Path) -> None:
    """At the number of rows that the refusal names, a clean bank is below the target; with one row less it is not."""
    with pytest.raises(PlanError, match="test at least") as caught:
        scan(board(), plan_of([LADDER | {"ber": [3e-6]}], rows={"start": 0, "count": 2}), tmp_path / "p")
    rows = int(str(caught.value).split("at least ")[1].split()[0])
    with pytest.raises(PlanError, match="test at least 16 rows"):
        scan(board(), plan_of([LADDER], rows={"start": 0, "count": 15}), tmp_path / "p")
    plan = plan_of([LADDER | {"ber": [3e-6]}])
    (ladder, _), *_ = plan.ladders()
    highs = [
        float(clopper_pearson(0, count * GEOMETRY.row_bits * 2, ladder.confidence)[1]) for count in (rows - 1, rows)
    ]
    assert highs[1] < 3e-6 < highs[0]

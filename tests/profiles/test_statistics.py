"""Rates and intervals against counting by hand, and against the coverage they promise."""

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from profiles.cells import WeakCells
from profiles.errors import ProfileError
from profiles.pattern import Pattern, stored_bits
from profiles.schema import AccessMode, OperatingPoint, Region, WriteCondition
from profiles.statistics import (
    ber,
    ber_by,
    ber_surface,
    ber_tables,
    clopper_pearson,
    clustered_ber,
    comparable,
    estimate,
    overlap,
    stability,
)
from profiles.storage import Profile

NOMINAL = WriteCondition.NOMINAL


@given(errors=st.integers(0, 60), extra=st.integers(0, 60))
def test_interval_ends_leave_a_fortieth_in_each_tail(errors: int, extra: int) -> None:
    trials = errors + extra
    found = estimate(errors, trials)
    if trials == 0:
        assert np.isnan(found.ber)
        assert (found.low, found.high) == (0, 1)
        return
    assert found.low <= found.ber <= found.high
    assert found.low == 0 if errors == 0 else binom.sf(errors - 1, trials, found.low) == pytest.approx(0.025, rel=1e-6)
    assert found.high == 1 if extra == 0 else binom.cdf(errors, trials, found.high) == pytest.approx(0.025, rel=1e-6)


def test_intervals_of_huge_counts() -> None:
    low, high = clopper_pearson([0, 10**9], [10**12, 10**12])
    assert high[0] == pytest.approx(-np.log(0.025) / 1e12, rel=1e-6)
    assert (low[1], high[1]) == pytest.approx((1e-3 - 1.96 * 10**-7.5, 1e-3 + 1.96 * 10**-7.5), rel=1e-5)


def test_groups_against_counting_every_read(
    planted: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    geometry = planted.small_geometry()
    weak = planted.random_weak(geometry, 700)
    rng = np.random.default_rng(5)
    regions = [Region(banks=(0, 1), row_start=8, row_count=40), Region(banks=(1,), row_start=20, row_count=30)]
    profile = Profile.create(tmp_path / "dimm", planted.header(geometry, 2))
    trials, errors = np.zeros(geometry.cells, np.int64), np.zeros(geometry.cells, np.int64)
    directions = np.zeros((2, 2), np.int64)
    for index, (region, text, rounds) in enumerate(zip(regions, ("0x0F", "walking"), (3, 5), strict=True)):
        pattern = Pattern.parse(text)
        cells = planted.counts(geometry, weak, pattern, region, rounds, rng)
        profile.append(planted.record(geometry, cells, index, pattern=pattern, region=region, rounds=rounds), cells)
        tested = np.concatenate([planted.region_cells(geometry, region, bank) for bank in region.banks])
        trials[tested] += rounds
        errors[cells.cell] += cells.errors
        directions[1] += np.bincount(stored_bits(pattern, geometry, tested), minlength=2) * rounds
        directions[0] += np.bincount(cells.stored, weights=cells.errors, minlength=2).astype(np.int64)
    every = np.arange(geometry.cells)
    keys = {
        "bank": geometry.bank(every),
        "dq": geometry.dq(every),
        "bitline": geometry.bitline(every),
        "wordline_block": geometry.wordline(every) // 16 * 16,
        "bank_bitline": geometry.bank(every) * geometry.row_bits + every % geometry.row_bits,
    }
    for group, key in keys.items():
        expected_errors = np.bincount(key, weights=errors)
        expected_trials = np.bincount(key, weights=trials)
        table = ber_by(profile, profile.points, group, block_rows=16)
        tested = np.flatnonzero(expected_trials)
        assert table.keys == tested.tolist()  # groups that were not read are absent, not zero
        assert np.array_equal(table.errors, expected_errors[tested])
        assert np.array_equal(table.trials, expected_trials[tested])
        assert table[table.keys[0]] == dict(table.items())[table.keys[0]]
        with pytest.raises(KeyError):
            table[-1]
        by_bank = list(ber_tables(profile, profile.points, group, block_rows=16))
        monkeypatch.setattr("profiles.statistics._GROUPS_AT_ONCE", 0)  # as for a module
        parts = list(ber_tables(profile, profile.points, group, block_rows=16))
        monkeypatch.undo()
        assert (len(by_bank), len(parts)) == (1, 1 if group == "dq" else 2)
        assert [key for part in parts for key in part.keys] == table.keys
        assert np.array_equal(np.concatenate([part.errors for part in parts]), table.errors)
        worst = table.worst(5)
        assert worst.ber.tolist() == sorted(table.ber.tolist(), reverse=True)[:5]
        assert all(table[key] == b for key, b in worst.items())
    by_direction = ber_by(profile, profile.points, "direction")
    assert by_direction.keys == ["0 to 1", "1 to 0"]
    assert np.array_equal(by_direction.errors, directions[0])
    assert np.array_equal(by_direction.trials, directions[1])
    by_pattern = ber_by(profile, profile.points, "pattern")
    assert by_pattern.keys == ["0x0F", "walking"]
    by_point = ber_by(profile, profile.points, "operating_point")
    assert by_point.keys == [planted.POINT]
    assert by_point.errors.sum() == by_pattern.errors.sum()
    assert by_pattern.errors.sum() == ber(profile, profile.points).errors == errors.sum()
    assert by_pattern.trials.sum() == ber(profile, profile.points).trials == trials.sum()


def test_a_direction_that_was_not_tested_is_absent(planted: ModuleType, tmp_path: Path) -> None:
    geometry = planted.small_geometry()
    profile = planted.profile(tmp_path / "dimm", geometry, planted.random_weak(geometry, 100), ("0xFF",))
    assert ber_by(profile, profile.points, "direction").keys == ["1 to 0"]


def test_no_records_are_no_rate(planted: ModuleType, tmp_path: Path) -> None:
    geometry = planted.small_geometry()
    profile = Profile.create(tmp_path / "dimm", planted.header(geometry, 1))
    for untested in (ber, clustered_ber):
        with pytest.raises(ProfileError, match="untested is not a rate of zero"):
            untested(profile, [])
    with pytest.raises(ProfileError, match="untested"):
        ber_by(profile, [], "bank")
    assert ber_surface(profile, NOMINAL) == []


def test_clustered_interval_covers_where_the_binomial_one_does_not(planted: ModuleType, tmp_path: Path) -> None:
    """Weak rows: 40 modules of one population; the rate of that population lies inside about 95 % of the intervals."""
    geometry = planted.small_geometry()
    inside = np.zeros(2)
    for seed in range(40):
        rng = np.random.default_rng(seed)
        density = rng.gamma(0.5, 0.02 / 0.5, geometry.banks * geometry.rows)
        cell = np.flatnonzero(rng.random(geometry.cells) < np.repeat(density, geometry.row_bits)).astype(np.int64)
        weak = WeakCells(cell, np.full(cell.size, 0.5), np.full(cell.size, 0.5))
        profile = planted.profile(tmp_path / str(seed), geometry, weak, ("0xFF",), seed=seed)
        for index, interval in enumerate((ber, clustered_ber)):
            found = interval(profile, profile.points)
            inside[index] += found.low <= 0.01 <= found.high
    assert inside[0] < 15
    assert inside[1] >= 34


def test_clustered_interval_without_errors_counts_cells_once(planted: ModuleType, tmp_path: Path) -> None:
    geometry = planted.small_geometry()
    none = WeakCells(np.empty(0, np.int64), np.empty(0), np.empty(0))
    profile = planted.profile(tmp_path / "dimm", geometry, none, ("0xFF",), rounds=100)
    assert clustered_ber(profile, profile.points).high == pytest.approx(-np.log(0.025) / geometry.cells, rel=1e-3)
    assert ber(profile, profile.points).high == pytest.approx(-np.log(0.025) / geometry.cells / 100, rel=1e-3)


def test_surface_lists_what_was_measured(planted: ModuleType, tmp_path: Path) -> None:
    geometry = planted.small_geometry()
    profile = Profile.create(tmp_path / "dimm", planted.header(geometry, 4))
    rng = np.random.default_rng(1)
    for index, (vdd, count) in enumerate(((1350, 0), (1100, 300), (1100, 300))):
        point = OperatingPoint(vdd_mv=vdd, trcd_ps=7500)
        pattern = Pattern.parse(("0xFF", "0xFF", "0x00")[index])
        cells = planted.counts(geometry, planted.random_weak(geometry, count), pattern, planted.whole(geometry), 4, rng)
        profile.append(planted.record(geometry, cells, index, pattern=pattern, point=point), cells)
    (safe, safe_mv, safe_ber), (harsh, harsh_mv, harsh_ber) = ber_surface(profile, NOMINAL)
    assert (safe.vdd_mv, safe_mv, safe_ber.errors) == (1350, 1350.4, 0)
    assert safe_ber.high > 0
    assert (harsh.vdd_mv, harsh_mv) == (1100, pytest.approx(1100.4))
    assert harsh_ber.trials == 2 * 4 * geometry.cells
    assert [each.ber.trials for each in ber_surface(profile, NOMINAL, Pattern.parse("0x00"))] == [4 * geometry.cells]
    assert ber_surface(profile, WriteCondition.OPERATING_POINT) == []
    profile.append(
        planted.record(geometry, cells, 3, pattern=pattern, point=point).model_copy(
            update={"access_mode": AccessMode.LINEAR}
        ),
        cells,
    )
    with pytest.raises(ProfileError, match="access modes"):
        ber_surface(profile, NOMINAL)


# ---- stability and overlap -------------------------------------------------------------------------------------------


def of_probabilities(planted: ModuleType, path: Path, probability: float, seed: int, rounds: int = 8) -> Profile:
    geometry = planted.small_geometry()
    cell = planted.random_weak(geometry, 4000).cell
    weak = WeakCells(cell, np.full(cell.size, probability), np.full(cell.size, probability))
    return planted.profile(path, geometry, weak, ("0xFF", "0x00"), seed=seed, rounds=rounds)


def test_stability_is_the_chance_to_fail_again(planted: ModuleType, tmp_path: Path) -> None:
    found = stability(*_with_points(of_probabilities(planted, tmp_path / "some", 0.3, 1)))
    assert found.again == pytest.approx(0.3, abs=0.01)
    assert found.cells[0] == 0
    share = binom.pmf(np.arange(1, 9), 8, 0.3) / (1 - 0.7**8)
    assert np.allclose(found.cells[1:] / found.cells.sum(), share, atol=0.02)
    assert found.every_round.low <= share[-1] <= found.every_round.high
    sure = stability(*_with_points(of_probabilities(planted, tmp_path / "sure", 1.0, 1)))
    assert (sure.again, sure.every_round.ber) == (1, 1)
    with pytest.raises(ProfileError, match="above 1"):
        stability(*_with_points(of_probabilities(planted, tmp_path / "once", 0.3, 1, rounds=1)))


def _with_points(profile: Profile) -> tuple[Profile, list]:
    return profile, profile.points


def test_overlap_of_two_sets_of_rounds_and_of_two_modules(planted: ModuleType, tmp_path: Path) -> None:
    geometry = planted.small_geometry()
    a = of_probabilities(planted, tmp_path / "a", 0.2, 1)
    b = of_probabilities(planted, tmp_path / "b", 0.2, 2)
    ((point, pairs),) = comparable(a, b).items()
    assert point == planted.POINT
    assert [(x.index, y.index) for x, y in pairs] == [(0, 0), (1, 1)]
    found = overlap(a, b, pairs)
    expected = [
        (a.cells(k).cell.size, b.cells(k).cell.size, len(set(a.cells(k).cell) & set(b.cells(k).cell))) for k in (0, 1)
    ]
    assert (found.first, found.second, found.both) == tuple(np.sum(expected, axis=0))
    assert found.tested == 2 * geometry.cells
    seen = 1 - 0.8**8  # of a weak cell
    assert found.again.low <= seen <= found.again.high
    assert found.jaccard == pytest.approx(seen / (2 - seen), abs=0.02)
    assert found.first_ber == ber(a, a.points)
    other = planted.profile(tmp_path / "c", geometry, planted.random_weak(geometry, 4000, seed=9), ("0xFF",))
    apart = overlap(a, other, comparable(a, other)[planted.POINT])
    assert apart.both == pytest.approx(apart.expected_both, abs=4 * np.sqrt(apart.expected_both))


def test_overlap_takes_only_what_both_have_tested(planted: ModuleType, tmp_path: Path) -> None:
    geometry = planted.small_geometry()
    weak = planted.random_weak(geometry, 3000)
    regions = [Region(banks=(0, 1), row_start=0, row_count=30), Region(banks=(1,), row_start=20, row_count=44)]
    a, b = (
        planted.profile(tmp_path / str(k), geometry, weak, ("0xFF",), region=region, seed=k)
        for k, region in enumerate(regions)
    )
    found = overlap(a, b, comparable(a, b)[planted.POINT])
    assert found.tested == 10 * geometry.row_bits
    shared = [planted.inside(geometry, Region(banks=(1,), row_start=20, row_count=10), p.cells(0)) for p in (a, b)]
    assert (found.first, found.second) == (shared[0].cell.size, shared[1].cell.size)
    assert found.both == np.isin(shared[0].cell, shared[1].cell).sum()
    apart = planted.profile(
        tmp_path / "apart", geometry, weak, ("0xFF",), region=Region(banks=(0,), row_start=40, row_count=5)
    )
    with pytest.raises(ProfileError, match="no cells in common"):
        overlap(a, apart, comparable(a, apart)[planted.POINT])
    another = planted.profile(tmp_path / "other", geometry, weak, ("0x00",))
    with pytest.raises(ProfileError, match="no point at the same"):
        comparable(a, another)
